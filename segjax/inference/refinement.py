"""Coarse masks made sharp: one mask, or a whole map of classes or segments.

    probability = refine(system, variables, image, mask)
    labels = refine_labels(system, variables, image, labels)

A system that refines has `turns(variables, image, mask, *, max_memory, progress)`: for an image
uint8 [H, W, 3] and a grey mask uint8 [H, W] it yields the probability float32 [H, W] after each of
its turns, the last one being the result.
"""

from __future__ import annotations

import collections
import contextlib
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from segjax.errors import SegjaxError
from segjax.structs import System, Variables
from segjax.systems.refiner import part_of

Progress = Callable[[int, int], None]
"""Is told (done, total) in some unit of work; total stays the same."""

Box = tuple[slice, slice]
"""Rows and columns of a part of an image."""

MARGIN = 0.125
"""A box is enlarged on every side by this share of its height or width (CascadePSP on ADE20K)."""

LEAST_MARGIN = 32
"""And by so many pixels at least: context for thin and small objects."""

OBJECT = 128
"""Grey level from which a pixel counts as the object's."""

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for ending, base in (("iB", 1024), ("B", 1000))
}


def is_refiner(system: System) -> bool:
    """Whether it sharpens masks instead of labelling images."""
    return hasattr(system, "turns")


# --------------------------------------------------------------------------------------------------
# What a mask is


def as_grey(mask: Any, name: str = "the mask") -> np.ndarray:
    """A mask in any of the usual forms as grey levels: uint8 [H, W], 255 where the object is.

    True is 255. Floats are certainties from 0 to 1: they become round(255 x). Integers are grey
    levels, but if there are none but 0 and 1, a 1 is 255.

    Args:
        mask: [H, W] or [H, W, 1].
        name: what to call it in errors.

    Raises:
        SegjaxError: another shape, NaN, numbers out of range; or integers other than 0 and 1 none
            of which reaches 128. Taken as grey, such a mask would hold no object: it is rather a
            map of class numbers, or wrongly scaled.
    """
    values = np.asarray(mask)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise SegjaxError(f"{name} has the shape {values.shape}; a mask is [height, width].")
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind not in "iuf" and values.dtype.name != "bfloat16":
        raise SegjaxError(f"{name} holds {values.dtype}; give bool, float 0..1 or uint8 0..255.")
    least, most = values.min(), values.max()
    if kind not in "iu":
        if not (least >= -1e-4 and most <= 1 + 1e-4):  # False for NaN too
            raise SegjaxError(
                f"{name} holds floats from {least:g} to {most:g}; they must be certainties from 0"
                " to 1, so divide grey levels by 255."
            )
        return np.round(np.clip(values.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    if least < 0 or most > 255:
        raise SegjaxError(
            f"{name} holds integers from {least} to {most}; grey levels go from 0 to 255, so scale"
            " it to 8 bits."
        )
    if most <= 1:
        return values.astype(np.uint8) * 255
    if most < OBJECT:
        raise SegjaxError(
            f"{name} holds integers from {least} to {most}, which are neither 0 and 1 nor grey"
            " levels up to 255; scale it, or refine it as a label map (kind 'labels') if these are"
            " class numbers."
        )
    return values.astype(np.uint8)


def check_sizes(image: np.ndarray, mask: np.ndarray, name: str = "the mask") -> None:
    """Raises a SegjaxError that names both sizes unless they are the same."""
    if image.shape[:2] == mask.shape[:2]:
        return
    (height, width), (rows, columns) = image.shape[:2], mask.shape[:2]
    turned = (height, width) == (columns, rows)
    remedy = (
        "turn the mask (photographs are turned as their EXIF data says)"
        if turned
        else "resize the mask to the image's size"
    )
    raise SegjaxError(
        f"the image is {width} x {height} pixels, but {name} is {columns} x {rows}; {remedy}."
    )


def memory(text: str | int | None) -> int | None:
    """Bytes of "6GiB", "4096MiB", "6GB" or "1000000"; None for None, "" and 0.

    Raises:
        SegjaxError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text or "0").strip())
    units = {name.lower(): factor for name, factor in UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise SegjaxError(
            f"'{text}' is not an amount of memory; write e.g. 6GiB, 4096MiB or a number of bytes."
        )
    return int(float(found[1]) * units[found[2].lower()]) or None


# --------------------------------------------------------------------------------------------------
# One mask


def refine(
    system: System,
    variables: Variables,
    image: np.ndarray,
    mask: np.ndarray,
    *,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """The probability that a pixel is the object's, at the image's own resolution.

    Args:
        system: one that refines, see above.
        variables: its variables.
        image: uint8 [H, W, 3] RGB.
        mask: the coarse mask [H, W], in any form that `as_grey` takes.
        max_memory: bytes that the device may hold for it; None for no bound.
        progress: is told how far it is.

    Returns:
        float32 [H, W].

    Raises:
        SegjaxError: image and mask differ in size, the mask is ambiguous, or memory runs out.
    """
    grey = as_grey(mask)
    check_sizes(image, grey)
    every = turns(system, variables, image, grey, max_memory=max_memory, progress=progress)
    (last,) = collections.deque(every, maxlen=1)
    return last


def turns(
    system: System,
    variables: Variables,
    image: np.ndarray,
    grey: np.ndarray,
    *,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """The system's turns on the host, float32 [H, W] each; `grey` is `as_grey` of a mask."""
    with _enough_memory(image):
        for probability in system.turns(
            variables, image, grey, max_memory=max_memory, progress=progress
        ):
            yield np.asarray(probability, np.float32)


def refine_in_box(
    system: System,
    variables: Variables,
    image: np.ndarray,
    mask: np.ndarray,
    *,
    margin: float = MARGIN,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """`refine` on the surroundings of the object alone, for objects much smaller than the image.

    What is seen is `box_of` the pixels with a grey level of 128 and more. Outside of it the
    probability is 0; a mask without such pixels gives 0 everywhere.

    Args:
        margin: see `box_of`; the others as of `refine`.

    Returns:
        float32 [H, W].
    """
    grey = as_grey(mask)
    check_sizes(image, grey)
    probability = np.zeros(grey.shape, np.float32)
    box = box_of(grey >= OBJECT, margin)
    if box is not None:
        probability[box] = refine(
            system,
            variables,
            np.ascontiguousarray(image[box]),
            np.ascontiguousarray(grey[box]),
            max_memory=max_memory,
            progress=progress,
        )
    return probability


def box_of(inside: np.ndarray, margin: float = MARGIN) -> Box | None:
    """The rectangle that just holds a mask bool [H, W], enlarged on every side by `margin` times
    its height or width, by LEAST_MARGIN pixels at least, and cut at the image's border; None for an
    empty mask."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None

    def enlarged(used: np.ndarray, side: int) -> slice:
        first, end = int(used[0]), int(used[-1]) + 1
        more = max(int((end - first) * margin), LEAST_MARGIN)
        return slice(max(first - more, 0), min(end + more, side))

    return enlarged(rows, inside.shape[0]), enlarged(columns, inside.shape[1])


@contextlib.contextmanager
def _enough_memory(image: np.ndarray) -> Iterator[None]:
    """A full device in one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SegjaxError(
            f"the device has not enough memory to refine {image.shape[1]} x {image.shape[0]}"
            " pixels; set a lower --max-memory."
        ) from error


# --------------------------------------------------------------------------------------------------
# Maps of classes or segments


def refine_labels(
    system: System,
    variables: Variables,
    image: np.ndarray,
    labels: np.ndarray,
    *,
    skip: Collection[int] = (),
    in_box: bool = False,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """A map of classes or segments with sharp borders: each pixel still has exactly one value.

    Every value that occurs is refined as a mask of its own, in ascending order. A pixel then goes
    to the value of the highest probability, if that is above one half (of equal ones, to the
    lowest value); else it keeps its value. So it is in CascadePSP's procedure for ADE20K, where the
    coarse labels have the confidence 0.5. No value is special: the "no segment" of a panoptic map
    and the "unlabelled" of a class map are regions too, that may grow and shrink.

    A value may lose all of its pixels, but none appears that was not there. What is kept meanwhile
    does not grow with the number of values.

    Args:
        labels: int [H, W], any numbers.
        skip: values that are not refined; their pixels are open to all others.
        in_box: whether a value is refined in `box_of` its pixels alone, outside of which it can't
            win.
        The others as of `refine`.

    Returns:
        [H, W] of the dtype of `labels`.

    Raises:
        SegjaxError: as of `refine`.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or not labels.size:
        raise SegjaxError(
            f"a label map is int [height, width], not {labels.dtype} {list(labels.shape)}."
        )
    check_sizes(image, labels, "the label map")
    refined = labels.copy()
    values = [value for value in np.unique(labels) if value not in skip]
    if len(values) == 1 and (labels == values[0]).all():
        return refined  # nothing to compete with
    best = np.full(labels.shape, 0.5, np.float32)
    boxes = [_box_of_value(labels, value, in_box) for value in values]
    areas = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in boxes]
    done, total = 0, sum(areas)
    for value, box, area in zip(values, boxes, areas):
        probability = refine(
            system,
            variables,
            np.ascontiguousarray(image[box]),
            labels[box] == value,
            max_memory=max_memory,
            progress=part_of(progress, done, area, total),
        )
        wins = probability > best[box]
        refined[box][wins] = value
        best[box][wins] = probability[wins]
        done += area
        if progress is not None:
            progress(done, total)
    return refined


def _box_of_value(labels: np.ndarray, value: int, in_box: bool) -> Box:
    whole = (slice(0, labels.shape[0]), slice(0, labels.shape[1]))
    return (box_of(labels == value) or whole) if in_box else whole
