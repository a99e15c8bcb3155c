"""The training recipe of CascadePSP and CRM: a crop, and a coarse mask made of its exact one.

No image is resized: a crop shows the pixels as they are, which is what the network sees of a large
image too. Crop, mirroring, then the coarse mask by `perturb`, then colours; the colours change by
Pillow's operations, as in the published pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from segjax.data import perturb
from segjax.errors import SegjaxError
from segjax.structs import Size

BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.05, 0.05
"""How far each factor may lie from 1."""

GREY = 0.1
"""Probability that an image loses its colours."""


def draw_corner(size: Size, crop: Size, rng: np.random.Generator) -> Size:
    """(top, left) of a crop. Along a side that is too short the image lies anywhere within the
    crop, so the number is negative or 0."""
    spare = (whole - part for whole, part in zip(size, crop))
    top, left = (int(rng.integers(min(more, 0), max(more, 0) + 1)) for more in spare)
    return top, left


def cut(array: np.ndarray, corner: Size, crop: Size) -> np.ndarray:
    """`crop` of an array [H, W, ...] from (top, left) on, which may be negative; 0 beyond it."""
    result = np.zeros((*crop, *array.shape[2:]), array.dtype)
    here, there = [], []
    for start, length, whole in zip(corner, crop, array.shape):
        first, end = max(start, 0), min(start + length, whole)
        here.append(slice(first, end))
        there.append(slice(first - start, end - start))
    result[tuple(there)] = array[tuple(here)]
    return result


def color_jitter(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, order: np.ndarray
) -> np.ndarray:
    """Mixes uint8 [H, W, 3] with black, with its mean grey, and with its greys.

    A factor of 1 changes nothing, 0 leaves the other part alone.

    Args:
        image: uint8 [H, W, 3].
        brightness: factor of the image against black.
        contrast: against the mean of its grey levels.
        saturation: against its grey version.
        order: a permutation of 0, 1, 2: the order of brightness, contrast and saturation.
    """
    steps = (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    )
    picture = Image.fromarray(np.ascontiguousarray(image))
    for step in order:
        enhancer, factor = steps[int(step)]
        picture = enhancer(picture).enhance(factor)
    return np.asarray(picture)


def without_colours(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with all channels equal to the grey level (ITU-R 601)."""
    grey = Image.fromarray(np.ascontiguousarray(image)).convert("L")
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def train_example(
    example: Mapping[str, Any], augment: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One augmented training example of fixed shape.

    Args:
        example: has `image` uint8 [H, W, 3] and `mask` uint8 [H, W], grey.
        augment: `crop` (height, width); `flip`, a probability; `iou_target` (low, high) and
            `shape_choice`, see `perturb.perturb`; `photometric`, a flag.
        rng: the source of all draws.

    Returns:
        `image` uint8 [*crop, 3], black outside of the image; `mask` uint8 [*crop], grey as it was,
        0 there; `coarse_mask` uint8 [*crop], 0 or 255; `image_size` int32 [2], which is the crop,
        as black is what the network is shown there.

    Raises:
        SegjaxError: an example without a mask.
    """
    if "mask" not in example:
        raise SegjaxError(
            f"{example.get('name', 'example')}: it has no mask of an object; the recipe refine"
            " needs a dataset for refinement (shapescapes_masks, refinement_training, ...)."
        )
    image, mask, crop = example["image"], example["mask"], tuple(augment["crop"])
    corner = draw_corner(mask.shape, crop, rng)
    image, mask = cut(image, corner, crop), cut(mask, corner, crop)
    if rng.random() < augment["flip"]:
        image, mask = image[:, ::-1], mask[:, ::-1]
    target = rng.uniform(*augment["iou_target"])
    draws = perturb.GeneratorDraws(rng)
    coarse = perturb.perturb(mask, target, draws, augment.get("shape_choice", "fixed"))
    if augment["photometric"]:
        factors = (rng.uniform(1 - by, 1 + by) for by in (BRIGHTNESS, CONTRAST, SATURATION))
        image = color_jitter(image, *factors, rng.permutation(3))
        if rng.random() < GREY:
            image = without_colours(image)
    return {
        "image": np.ascontiguousarray(image),
        "coarse_mask": coarse,
        "mask": np.ascontiguousarray(mask),
        "image_size": np.array(crop, np.int32),
    }


def batch_shapes(augment: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, dtype) of every array of one example that `train_example` gives."""
    crop = tuple(augment["crop"])
    return {
        "image": ((*crop, 3), np.uint8),
        "coarse_mask": (crop, np.uint8),
        "mask": (crop, np.uint8),
        "image_size": ((2,), np.int32),
    }
