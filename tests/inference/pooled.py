"""A system whose scores are cheap to compute, and the official inference written out plainly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import transforms
from segjax.data.labels import LabelSpace, distinct_palette
from segjax.inference.windows import Settings
from segjax.ops import resize
from segjax.structs import IGNORE, Semantic
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image

CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Scores of cells of 4 x 4 pixels, from their mean colour, that of the whole window, and the
    place in the window: so it matters where windows lie, and what they hold beyond the image."""

    classes: int = CLASSES

    def init(self):
        random = np.random.default_rng(7)
        kernels = {name: random.normal(size=(3, self.classes)) for name in ("cell", "window")}
        return {"params": {k: jnp.asarray(2 * v, jnp.float32) for k, v in kernels.items()}}

    def predict(self, variables, batch):
        image = normalised_image(batch, IMAGENET_MEAN, IMAGENET_STD)
        many, height, width, _ = image.shape
        h, w = height // 4, width // 4
        cells = image.reshape(many, h, 4, w, 4, 3).mean((2, 4))
        kernel = variables["params"]
        tilt = jnp.linspace(-1, 1, h)[:, None, None] + jnp.linspace(-2, 2, w)[:, None]
        scores = cells @ kernel["cell"] + tilt * jnp.linspace(-0.5, 0.5, self.classes)
        scores = scores - (image.mean((1, 2)) @ kernel["window"])[:, None, None]
        labels = resize.bilinear(scores, (height, width)).argmax(-1).astype(jnp.int32)
        regions = jnp.arange(h)[:, None] // 2 * (w // 2) + jnp.arange(w) // 2
        regions = jnp.broadcast_to(regions, (many, h, w)).astype(jnp.int32)
        return Semantic(labels=labels, scores=scores, regions=regions)


def plain_probabilities(system, variables, image, settings):
    """mmsegmentation's `slide_inference` and `aug_test` with RegProxy's padding, step by step.

    Returns the mean probabilities [H, W, K] and the logits of the first copy.
    """
    settings = Settings.of(settings)
    predict = jax.jit(system.predict)
    total, first = 0, None
    for ratio in settings.ratios:
        size = transforms.rescaled_size(image.shape[:2], settings.scale, ratio)
        resized = transforms.resize_image(image, size)
        for mirrored in (False, True)[: 1 + settings.flip]:
            here = resized[:, ::-1] if mirrored else resized
            logits = plain_logits(predict, variables, here, settings)
            logits = np.asarray(resize.bilinear(jnp.asarray(logits)[None], image.shape[:2]))[0]
            first = logits if first is None else first
            chances = np.asarray(jax.nn.softmax(logits, axis=-1))
            total = total + (chances[:, ::-1] if mirrored else chances)
    return total / (len(settings.ratios) * (1 + settings.flip)), first


def plain_logits(predict, variables, image, settings):
    height, width = image.shape[:2]
    crop, stride = settings.crop, settings.stride
    if settings.mode == "whole":
        crop = stride = tuple(max(c, s + -s % 32) for c, s in zip(crop, (height, width)))
    total, count = 0, np.zeros((height, width, 1), np.float32)
    down = max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1
    across = max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1
    for i in range(down):
        for j in range(across):
            bottom = min(i * stride[0] + crop[0], height)
            right = min(j * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            window = np.zeros((*crop, 3), np.uint8)
            window[: bottom - top, : right - left] = image[top:bottom, left:right]
            extent = jnp.asarray([[bottom - top, right - left]])
            batch = {"image": jnp.asarray(window)[None], "image_size": extent}
            scores = predict(variables, batch).scores
            scores = np.asarray(resize.bilinear(scores, crop))[0]
            everywhere = np.zeros((height, width, scores.shape[-1]), np.float32)
            everywhere[top:bottom, left:right] = scores[: bottom - top, : right - left]
            total = total + everywhere
            count[top:bottom, left:right] += 1
    return total / count


def assert_same_labels(found, probabilities):
    """Equal wherever the best class is ahead by more than rounding, which is almost everywhere."""
    best = np.sort(probabilities, axis=-1)
    sure = best[..., -1] - best[..., -2] > 1e-4
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(found[sure], probabilities.argmax(-1)[sure])


def photo(size, seed=0):
    """Smooth random colours, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    return transforms.resize_image(coarse, size)


def label_space(classes=CLASSES):
    names = ("sky", "road", "a rather long name of a class", "tree", "lamp post", "cat")[:classes]
    return LabelSpace("test", names, distinct_palette(classes), (False,) * classes)


class Photos:
    """A dataset of photos of given sizes whose labels are noise; counts what is read."""

    def __init__(self, sizes, classes=CLASSES):
        self._sizes, self.label_space, self.read = sizes, label_space(classes), []

    def __len__(self):
        return len(self._sizes)

    def sizes(self):
        return np.array(self._sizes)

    def __getitem__(self, index):
        self.read.append(index)
        size = self._sizes[index]
        semantic = np.random.default_rng(index).integers(IGNORE, len(self.label_space.names), size)
        return {
            "image": photo(size, index),
            "semantic": semantic.astype(np.int16),
            "name": f"photo {index}",
        }
