"""The training recipes of MaskFormer and Mask2Former, as detectron2's pipelines define them.

Images are uint8 RGB [H, W, 3]; maps are integers [H, W]. All chance is drawn from an explicit
generator, or is an argument. Photographs are resized by Pillow's bilinear filter, which averages
when it shrinks; maps by the nearest pixel, whose rule differs between maps (see the two functions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segjax.data import refinement_transforms, segments, transforms
from segjax.structs import IGNORE, Size

PADDING = 128
"""What images are filled up with where the network sees the padding as pixels."""

DETR_SHORTS = (400, 500, 600)
"""Short sides before the crop of the recipe detr."""

DETR_CROP = (384, 600)
"""Least and greatest side of that crop."""

Maps = list[np.ndarray]

# Resizing ---------------------------------------------------------------------------------------


def shortest_edge_size(size: Size, short: int, longest: float) -> Size:
    """The size of an image whose short side becomes `short`, unless the long one passes `longest`.

    Args:
        size: (height, width) of the image.
        short: length of the short side.
        longest: limit of the long side, enforced second.

    Returns:
        (height, width), each rounded half up (detectron2, ResizeShortestEdge).
    """
    # The order of these operations decides where a side ends in .5.
    factor = short / min(size)
    height, width = (short, factor * size[1]) if size[0] < size[1] else (factor * size[0], short)
    if max(height, width) > longest:
        shrink = longest / max(height, width)
        height, width = height * shrink, width * shrink
    return int(height + 0.5), int(width + 0.5)


def resize_photo(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 [H, W, 3] bilinearly, averaging when it shrinks (Pillow's BILINEAR)."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_centres(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a map [H, W] to the pixel below the centre, as Pillow does: the source index is
    floor((i + 0.5) * source / target)."""
    picture = Image.fromarray(np.ascontiguousarray(labels, np.int32))
    resized = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(labels.dtype)


def resize_floor(labels: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a map [H, W] as torch's nearest mode does with doubles: the source index is
    floor(i * source / target), the product rounded to single precision first."""
    rows, columns = (
        np.minimum((np.arange(new) * (old / new)).astype(np.float32).astype(np.int64), old - 1)
        for old, new in zip(labels.shape, size)
    )
    return labels[rows[:, None], columns]


# Colour -----------------------------------------------------------------------------------------


def color_jitter_ssd(
    image: np.ndarray,
    brightness_delta: float | None = None,
    contrast_first: bool = True,
    contrast_factor: float | None = None,
    saturation_factor: float | None = None,
    hue_shift: int | None = None,
) -> np.ndarray:
    """The colour jitter of SSD (Liu et al., 2016) with given draws; None skips a step.

    Brightness comes first; contrast second or last. Every step clips to 0..255 and cuts to uint8.

    Args:
        image: uint8 [H, W, 3] RGB.
        brightness_delta: added; -32..32 in the recipe.
        contrast_first: whether contrast precedes saturation and hue.
        contrast_factor: multiplies; 0.5..1.5 in the recipe.
        saturation_factor: multiplies the S of 8-bit HSV; 0.5..1.5 in the recipe.
        hue_shift: added to the H of 8-bit HSV, modulo 180; -18..18 in the recipe.

    Returns:
        uint8 [H, W, 3].
    """
    if brightness_delta is not None:
        image = transforms.brightness(image, brightness_delta)
    if contrast_first and contrast_factor is not None:
        image = transforms.contrast(image, contrast_factor)
    if saturation_factor is not None:
        image = transforms.saturation(image, saturation_factor)
    if hue_shift is not None:
        image = transforms.hue(image, hue_shift)
    if not contrast_first and contrast_factor is not None:
        image = transforms.contrast(image, contrast_factor)
    return image


def draw_color_jitter(rng: np.random.Generator) -> dict[str, Any]:
    """Draws the arguments of `color_jitter_ssd`: each step with probability 1/2, the order by a
    coin."""
    coins = rng.integers(2, size=5)
    return {
        "brightness_delta": rng.uniform(-32.0, 32.0) if coins[0] else None,
        "contrast_first": bool(coins[1]),
        "contrast_factor": rng.uniform(0.5, 1.5) if coins[2] else None,
        "saturation_factor": rng.uniform(0.5, 1.5) if coins[3] else None,
        "hue_shift": int(rng.integers(-18, 19)) if coins[4] else None,
    }


# Recipes ----------------------------------------------------------------------------------------


def large_scale_jitter(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    target: Size,
    flip: bool,
    scale_draw: float,
    crop_draw: float,
    image_pad: int = PADDING,
    map_pad: int = IGNORE,
) -> tuple[np.ndarray, Maps]:
    """Mirrors, resizes, cuts and fills up (Ghiasi et al., 2021; Mask2Former on
    COCO).

    Args:
        image: uint8 [H, W, 3].
        maps: integer maps [H, W].
        target: (height, width) of the result.
        flip: whether to mirror.
        scale_draw: the image is fitted into `target` times this number, 0.1..2 in the recipe.
        crop_draw: 0..1, where between both ends the crop lies; the same for both axes.
        image_pad: fills the image up at its right and bottom.
        map_pad: fills the maps up.

    Returns:
        The image [*target, 3] and the maps [*target].
    """
    if flip:
        image, maps = _mirrored(image, maps)
    limits = [side * scale_draw for side in target]
    factor = min(limit / side for limit, side in zip(limits, image.shape))
    # At least a pixel: the official code fails where a side is rounded to 0.
    size = tuple(max(round(side * factor), 1) for side in image.shape[:2])
    image, maps = resize_photo(image, size), [resize_centres(labels, size) for labels in maps]
    window = []
    for side, crop in zip(size, target):
        start = round(max(side - crop, 0) * crop_draw)
        window.append(slice(start, start + crop))
    image, *maps = (array[tuple(window)] for array in (image, *maps))
    return filled(image, target, image_pad), [filled(labels, target, map_pad) for labels in maps]


def shortest_edge_crop(
    image: np.ndarray,
    semantic: np.ndarray,
    maps: Sequence[np.ndarray],
    augment: Mapping[str, Any],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, Maps]:
    """Resizes the short side, cuts, distorts and mirrors (ADE20K, Cityscapes, Mapillary Vistas).

    Args:
        image: uint8 [H, W, 3].
        semantic: int [H, W], resized by `resize_floor`.
        maps: integer maps [H, W], resized by `resize_centres`.
        augment: `shorts`, `longest`, `crop`, `photometric`, `flip`.
        rng: the source of all draws.

    Returns:
        Image, class map and maps, at most as large as the crop.
    """
    short = augment["shorts"][rng.integers(len(augment["shorts"]))]
    size = shortest_edge_size(image.shape[:2], short, augment["longest"])
    window = _draw_window(size, augment["crop"], augment["crop"], rng)
    image, semantic = resize_photo(image, size)[window], resize_floor(semantic, size)[window]
    maps = [resize_centres(labels, size)[window] for labels in maps]
    if augment["photometric"]:
        image = color_jitter_ssd(np.ascontiguousarray(image), **draw_color_jitter(rng))
    if rng.random() < augment["flip"]:
        image, (semantic, *maps) = _mirrored(image, [semantic, *maps])
    return image, semantic, maps


def detr(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    augment: Mapping[str, Any],
    rng: np.random.Generator,
    first_shorts: Sequence[int] = DETR_SHORTS,
    first_crop: tuple[int, int] = DETR_CROP,
) -> tuple[np.ndarray, Maps]:
    """Mirrors and resizes the short side; in half of the cases after a crop (MaskFormer on COCO).

    Args:
        image: uint8 [H, W, 3].
        maps: integer maps [H, W].
        augment: `flip`, `shorts`, `longest`, `photometric`.
        rng: the source of all draws.
        first_shorts: before a crop the short side becomes one of these.
        first_crop: least and greatest side of the crop, drawn for each axis.

    Returns:
        Image and maps; their size varies, no side passes `longest`.
    """
    if rng.random() < augment["flip"]:
        image, maps = _mirrored(image, maps)
    if rng.random() < 0.5:
        short = first_shorts[rng.integers(len(first_shorts))]
        size = shortest_edge_size(image.shape[:2], short, math.inf)
        least, most = ((side, side) for side in first_crop)
        window = _draw_window(size, least, most, rng)
        image = resize_photo(image, size)[window]
        maps = [resize_centres(labels, size)[window] for labels in maps]
    short = augment["shorts"][rng.integers(len(augment["shorts"]))]
    size = shortest_edge_size(image.shape[:2], short, augment["longest"])
    image, maps = resize_photo(image, size), [resize_centres(labels, size) for labels in maps]
    if augment["photometric"]:
        image = color_jitter_ssd(image, **draw_color_jitter(rng))
    return image, maps


def filled(array: np.ndarray, size: Size, value: int) -> np.ndarray:
    """The array [h, w, ...] at the top left of one of `size`, `value` elsewhere."""
    result = np.full((*size, *array.shape[2:]), value, array.dtype)
    result[: array.shape[0], : array.shape[1]] = array
    return result


def _mirrored(image: np.ndarray, maps: Sequence[np.ndarray]) -> tuple[np.ndarray, Maps]:
    return image[:, ::-1], [labels[:, ::-1] for labels in maps]


def _draw_window(
    size: Size, least: Size, most: Size, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A window somewhere in `size`, each of its sides drawn between two limits (both included)."""
    window = []
    for side, low, high in zip(size, least, most):
        length = int(rng.integers(min(side, low), min(side, high) + 1))
        start = int(rng.integers(side - length + 1))
        window.append(slice(start, start + length))
    return tuple(window)


# Together ---------------------------------------------------------------------------------------


def train_example(
    example: Mapping[str, Any], augment: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One augmented training example of fixed shape, by `augment["recipe"]`.

    Args:
        example: an item of `prepared.Dataset`: `image`, `semantic`, and for targets of segments
            `segments`, `segment_class`, `segment_is_crowd`.
        augment: `config.augment`. The recipes: "scale_crop", see `transforms.train_example`;
            "large_scale_jitter"; "shortest_edge"; "detr"; "refine", see
            `refinement_transforms.train_example`.
        rng: the source of all draws.

    Returns:
        What `batch_shapes` lists. `image_size` is the extent of real pixels (at the top left) for
        scale_crop and detr, as what lies beyond is the mean colour there. The two other recipes
        show the network their grey padding, so there it is the whole crop.

    Raises:
        SegjaxError: segments that the dataset doesn't have, see `segments.layers_of`.
    """
    recipe, kind = augment.get("recipe", "scale_crop"), augment.get("segments", "")
    if recipe == "scale_crop":
        return transforms.train_example(example, augment, rng)
    if recipe == "refine":
        return refinement_transforms.train_example(example, augment, rng)
    image, semantic, crop = example["image"], example["semantic"], tuple(augment["crop"])
    layers = list(segments.layers_of(example, kind))
    extent = crop
    if recipe == "large_scale_jitter":
        flip = rng.random() < augment["flip"]
        scale, place = rng.uniform(*augment["jitter"]), rng.uniform(0.0, 1.0)
        if augment["photometric"]:
            image = color_jitter_ssd(image, **draw_color_jitter(rng))
        image, (semantic, *layers) = large_scale_jitter(
            image, [semantic, *layers], crop, flip, scale, place
        )
    elif recipe == "shortest_edge":
        image, semantic, layers = shortest_edge_crop(image, semantic, layers, augment, rng)
        image = filled(image, crop, PADDING)
    else:
        image, (semantic, *layers) = detr(image, [semantic, *layers], augment, rng)
        extent = semantic.shape
        image = filled(image, crop, 0)
    semantic = filled(semantic, crop, IGNORE)
    stacked = np.full((len(layers), *crop), -1, np.int32)
    for layer, labels in zip(stacked, layers):
        layer[: labels.shape[0], : labels.shape[1]] = labels
    return {
        "image": image,
        "semantic": semantic.astype(np.int16),
        "image_size": np.array(extent, np.int32),
        **segments.targets(stacked, semantic, example, augment),
    }


def batch_shapes(augment: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, dtype) of every array of one example that `train_example` gives."""
    if augment.get("recipe") == "refine":
        return refinement_transforms.batch_shapes(augment)
    crop = tuple(augment["crop"])
    return {
        "image": ((*crop, 3), np.uint8),
        "semantic": (crop, np.int16),
        "image_size": ((2,), np.int32),
        **segments.shapes(augment),
    }
