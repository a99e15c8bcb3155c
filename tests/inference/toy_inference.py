"""A system, a dataset and the plain way of inferring, for the tests beside this file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import transforms
from segjax.data.labels import LabelSpace, distinct_palette
from segjax.ops import resize
from segjax.structs import IGNORE, Semantic

CLASSES = 5
CELL = 4


@dataclasses.dataclass(frozen=True)
class Toy:
    """Scores of 4 x 4 cells that depend on their colour and, a little, on all of the window."""

    classes: int = CLASSES
    regions: bool = True

    def predict(self, variables, batch):
        image, size = batch["image"], batch["image_size"]
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255
        real = (jnp.arange(image.shape[1]) < size[:, :1])[:, :, None]
        real &= (jnp.arange(image.shape[2]) < size[:, 1:])[:, None]
        image = jnp.where(real[..., None], image, 0)
        count, height, width, _ = image.shape
        h, w = height // CELL, width // CELL
        cells = image[:, : h * CELL, : w * CELL].reshape(count, h, CELL, w, CELL, 3).mean((2, 4))
        cells += 0.3 * cells.mean((1, 2), keepdims=True)
        owner = jnp.arange(h * w, dtype=jnp.int32).reshape(h, w)
        return Semantic(
            labels=jnp.zeros((count, height, width), jnp.int32),
            scores=jnp.sin(3 * cells @ variables["params"]["mix"]),
            regions=jnp.broadcast_to(owner, (count, h, w)) if self.regions else None,
        )


def variables(seed=0):
    mix = np.random.default_rng(seed).normal(size=(3, CLASSES)).astype(np.float32)
    return {"params": {"mix": mix}}


def label_space(classes=CLASSES):
    names = tuple(f"class {k}" for k in range(classes))
    return LabelSpace("toy", names, distinct_palette(classes), (False,) * classes)


class Scenes:
    """Noise of the given sizes, smooth enough for labels to be decided. Notes what was read."""

    def __init__(self, sizes, classes=CLASSES, seed=0):
        rng = np.random.default_rng(seed)
        self.label_space, self.read = label_space(classes), []
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.examples = []
        for number, (h, w) in enumerate(sizes):
            coarse = rng.integers(0, 256, (h // 8 + 2, w // 8 + 2, 3)).astype(np.uint8)
            semantic = rng.integers(IGNORE, classes, (h, w)).astype(np.int16)
            image = transforms.resize_image(coarse, (h, w))
            self.examples.append({"image": image, "semantic": semantic, "name": f"scene {number}"})

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.read.append(index)
        return self.examples[index]

    def sizes(self):
        return self._sizes


def plain_probabilities(system, variables, image, settings):
    """[H, W, K], written as the definition reads, one window after another, all at full size."""
    total = 0
    for ratio in settings.ratios:
        for mirrored in (False, True) if settings.flip else (False,):
            size = transforms.rescaled_size(image.shape[:2], settings.scale, ratio)
            scaled = transforms.resize_image(image, size)
            logits = plain_logits(
                system, variables, scaled[:, ::-1] if mirrored else scaled, settings
            )
            logits = resize.bilinear(logits, image.shape[:2])
            probabilities = jax.nn.softmax(logits, axis=-1)
            total += np.asarray(probabilities[:, ::-1] if mirrored else probabilities)
    return total / len(settings.ratios) / (1 + settings.flip)


def plain_logits(system, variables, image, settings):
    """mmsegmentation's slide_inference with RegProxy's padding."""
    (h, w), (ch, cw), (sh, sw) = image.shape[:2], settings.crop, settings.stride
    if settings.mode == "whole":
        ch, cw = h, w
        if settings.pad_windows:
            ch, cw = (c if n <= c else -(-n // 32) * 32 for n, c in zip((h, w), settings.crop))
        sh, sw = ch, cw
    total = np.zeros((h, w, system.classes), np.float32)
    count = np.zeros((h, w, 1), np.float32)
    for row in range(max(h - ch + sh - 1, 0) // sh + 1):
        for column in range(max(w - cw + sw - 1, 0) // sw + 1):
            bottom, right = min(row * sh + ch, h), min(column * sw + cw, w)
            top, left = max(bottom - ch, 0), max(right - cw, 0)
            part = image[top:bottom, left:right]
            window = np.zeros((ch, cw, 3), image.dtype) if settings.pad_windows else part.copy()
            window[: part.shape[0], : part.shape[1]] = part
            batch = {
                "image": jnp.asarray(window[None]),
                "image_size": jnp.asarray([part.shape[:2]], jnp.int32),
            }
            scores = system.predict(variables, batch).scores
            large = np.asarray(resize.bilinear(scores, window.shape[:2]))[0]
            total[top:bottom, left:right] += large[: part.shape[0], : part.shape[1]]
            count[top:bottom, left:right] += 1
    return jnp.asarray(total / count)
