"""Augmentation and test-time resizing, defined as mmsegmentation's pipelines define them.

Images are uint8 RGB [H, W, 3] and stay uint8 after every operation, as there; labels are int16
[H, W] with IGNORE. All chance is drawn from an explicit generator, or is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from segjax.data import segments
from segjax.structs import IGNORE, Size

# Resizing ---------------------------------------------------------------------------------------


def rescaled_size(size: Size, scale: tuple[int, int], ratio: float = 1.0) -> Size:
    """The size of an image resized, keeping its aspect, to fit `ratio` times `scale`.

    Args:
        size: (height, width) of the image.
        scale: (long side, short side) limits; multiplied by `ratio` and cut to integers.
        ratio: factor on the limits.

    Returns:
        (height, width): the largest that passes neither limit, each side rounded half up.
    """
    limits = [int(side * ratio) for side in scale]
    factor = min(max(limits) / max(size), min(limits) / min(size))
    return tuple(max(int(side * factor + 0.5), 1) for side in size)


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 [H, W, 3] bilinearly (half-pixel centres, no antialias, rounded to uint8)."""
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes labels [H, W] to the nearest one: source index floor(i * source / target)."""
    return cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def resize_keep_ratio(
    image: np.ndarray, labels: np.ndarray, scale: tuple[int, int], ratio: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels at `rescaled_size`."""
    size = rescaled_size(image.shape[:2], scale, ratio)
    return resize_image(image, size), resize_labels(labels, size)


# Cropping ---------------------------------------------------------------------------------------


def crop_window(
    labels: np.ndarray, crop: Size, cat_max_ratio: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Draws a crop in which no class dominates.

    A window is drawn anew up to ten times while it shows fewer than two classes or one class holds
    `cat_max_ratio` or more of its labelled pixels; the tenth redraw is taken as it is. Along a side
    on which the image is smaller than the crop, the window is the whole side.

    Args:
        labels: int [H, W], IGNORE where unlabelled.
        crop: (height, width).
        cat_max_ratio: 1 or more takes the first window.
        rng: the source of the draws.

    Returns:
        The rows and the columns to cut out.
    """
    window = _draw_window(labels.shape, crop, rng)
    if cat_max_ratio >= 1:
        return window
    for _ in range(10):
        counts = np.bincount((labels[window] - IGNORE).ravel())[1:]
        counts = counts[counts > 0]
        if len(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
        window = _draw_window(labels.shape, crop, rng)
    return window


def random_crop(
    image: np.ndarray,
    labels: np.ndarray,
    crop: Size,
    cat_max_ratio: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels in the window that `crop_window` draws."""
    window = crop_window(labels, crop, cat_max_ratio, rng)
    return image[window], labels[window]


def _draw_window(size: Size, crop: Size, rng: np.random.Generator) -> tuple[slice, slice]:
    top, left = (int(rng.integers(max(n - c, 0) + 1)) for n, c in zip(size, crop))
    return slice(top, min(top + crop[0], size[0])), slice(left, min(left + crop[1], size[1]))


# Photometric distortion -------------------------------------------------------------------------


def brightness(image: np.ndarray, delta: float) -> np.ndarray:
    """Adds `delta` (-32..32 in the recipe) to every channel."""
    return _scale_shift(image, 1.0, delta)


def contrast(image: np.ndarray, alpha: float) -> np.ndarray:
    """Multiplies every channel by `alpha` (0.5..1.5 in the recipe)."""
    return _scale_shift(image, alpha, 0.0)


def saturation(image: np.ndarray, alpha: float) -> np.ndarray:
    """Multiplies the S of OpenCV's 8-bit HSV by `alpha` (0.5..1.5 in the recipe)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = _scale_shift(hsv[..., 1], alpha, 0.0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def hue(image: np.ndarray, delta: int) -> np.ndarray:
    """Adds the integer `delta` (-18..17 in the recipe) to the H of 8-bit HSV, modulo 180."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + delta) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _scale_shift(values: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """values * alpha + beta in float32, clipped to 0..255 and cut (not rounded) to uint8."""
    # The result depends on the 8-bit value alone, so 256 entries tell it all.
    table = np.arange(256, dtype=np.float32) * np.float32(alpha) + np.float32(beta)
    return cv2.LUT(np.ascontiguousarray(values), np.clip(table, 0, 255).astype(np.uint8))


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each of brightness, contrast, saturation and hue with probability 1/2.

    Contrast comes second or last, by a coin. The draws are those of mmsegmentation's
    PhotoMetricDistortion with its default ranges, in its order.
    """
    if rng.integers(2):
        image = brightness(image, rng.uniform(-32.0, 32.0))
    contrast_first = bool(rng.integers(2))
    if contrast_first and rng.integers(2):
        image = contrast(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        image = saturation(image, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        image = hue(image, int(rng.integers(-18, 18)))
    if not contrast_first and rng.integers(2):
        image = contrast(image, rng.uniform(0.5, 1.5))
    return image


# Mirroring --------------------------------------------------------------------------------------


def mirror(
    image: np.ndarray, labels: np.ndarray, pairs: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Turns image [H, W, 3] and labels [H, W] around their vertical axis, and left into right.

    Args:
        image: any dtype.
        labels: int class numbers.
        pairs: classes that become each other, such as left arm and right arm (LIP's
            RandomSwapFlip).
    """
    return image[:, ::-1], exchange(labels[:, ::-1], pairs)


def exchange(classes: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """`classes` int [...] with the two of each pair exchanged."""
    exchanged = classes.copy() if len(pairs) else classes
    for one, other in pairs:
        exchanged[classes == one], exchanged[classes == other] = other, one
    return exchanged


# Together ---------------------------------------------------------------------------------------


def train_example(
    example: Mapping[str, Any], augment: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One augmented training example of fixed shape: resize, crop, flip, distort, pad.

    Args:
        example: has `image` uint8 [H, W, 3] and `semantic` int16 [H, W].
        augment: `scale` (long, short) in pixels; `ratio` (low, high), drawn uniformly and
            multiplying the scale; `crop` (height, width); `cat_max_ratio`; `flip`, a probability;
            `flip_pairs`, classes that become each other then (may be left out); `photometric`, a
            flag; and for segments, which follow the class map in everything, `segments`,
            `max_segments`, `layers` and `keep_empty`.
        rng: the source of all draws.

    Returns:
        `image` uint8 [*crop, 3], 0 outside the real pixels; `semantic` int16 [*crop], IGNORE
        there; `image_size` int32 [2], the extent of real pixels (at the top left); and what
        `segments.targets` gives.
    """
    image, labels = example["image"], example["semantic"]
    kind = augment.get("segments", "")
    layers = segments.layers_of(example, kind)
    crop = tuple(augment["crop"])
    ratio = rng.uniform(*augment["ratio"])
    size = rescaled_size(image.shape[:2], tuple(augment["scale"]), ratio)
    labels = resize_labels(labels, size)
    window = crop_window(labels, crop, augment["cat_max_ratio"], rng)
    image, labels = resize_image(image, size)[window], labels[window]
    mirrored = rng.random() < augment["flip"]
    if mirrored:
        pairs = augment.get("flip_pairs", ())
        image, labels = mirror(image, labels, pairs)
        if len(layers):
            example = {**example, "segment_class": exchange(example["segment_class"], pairs)}
    if augment["photometric"]:
        image = photometric_distortion(np.ascontiguousarray(image), rng)
    rows, columns = labels.shape
    padded_image = np.zeros((*crop, 3), np.uint8)
    padded_labels = np.full(crop, IGNORE, np.int16)
    padded_image[:rows, :columns] = image
    padded_labels[:rows, :columns] = labels
    arrays = {
        "image": padded_image,
        "semantic": padded_labels,
        "image_size": np.array((rows, columns), np.int32),
    }
    if kind == "":
        return arrays
    padded_layers = np.full((len(layers), *crop), -1, np.int32)
    for padded, layer in zip(padded_layers, layers):
        layer = resize_labels(layer, size)[window]
        padded[:rows, :columns] = layer[:, ::-1] if mirrored else layer
    return arrays | segments.targets(padded_layers, padded_labels, example, augment)
