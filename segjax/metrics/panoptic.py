"""Panoptic quality (Kirillov et al., CVPR 2019), counted exactly as panopticapi counts it.

The device counts the pixels that each true segment shares with each predicted one; matching is
done on the host, in whole numbers and float64.

    shared = panoptic.intersections(truth, predicted, S, P)             # on the device, per image
    counts += panoptic.from_image(np.asarray(shared), ...)              # on the host
    summary = panoptic.summary(counts, space.is_thing, space.names)     # at the end
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError
from segjax.structs import Array

TILE = 8192
"""Pixels whose segments are laid out as one-hot rows at a time, where there is no fast scatter."""


def intersections(truth: Array, predicted: Array, true: int, found: int) -> Array:
    """Pixels that each true segment shares with each predicted one.

    Args:
        truth: int [H, W], row of the true segments' table, -1 where there is none (void).
        predicted: int [H, W], 1 + row of the predicted segments' table, 0 where there is none.
        true: S, rows of the true table.
        found: P, rows of the predicted table.

    Returns:
        int32 [S + 1, P + 1]; row 0 is the void, row 1 + s true segment s, column 0 what nothing was
        predicted for, column 1 + p predicted segment p. Pixels of rows beyond a table count
        nowhere.
    """
    truth, predicted = (x.astype(jnp.int32).reshape(-1) for x in (truth, predicted))
    truth = truth + 1
    known = (truth >= 0) & (truth <= true) & (predicted >= 0) & (predicted <= found)
    bins = (true + 1) * (found + 1)
    pairs = jnp.where(known, truth * (found + 1) + predicted, bins)

    def scatter(pairs: Array) -> Array:
        # With a bin of their own for the strays no index needs a check.
        zeros = jnp.zeros(bins + 1, jnp.int32)
        counted = zeros.at[pairs].add(1, mode="promise_in_bounds")
        return counted[:-1].reshape(true + 1, found + 1)

    def multiply(pairs: Array) -> Array:  # a TPU has no fast scatter
        tile = min(TILE, len(pairs))  # counts of a tile are exact in float32
        pairs = jnp.pad(pairs, (0, -len(pairs) % tile), constant_values=bins)
        rows = jnp.arange(true + 1, dtype=jnp.int32)
        columns = jnp.arange(found + 1, dtype=jnp.int32)

        def one(total: Array, part: Array) -> tuple[Array, None]:
            left = (part[:, None] // (found + 1) == rows).astype(jnp.bfloat16)
            right = (part[:, None] % (found + 1) == columns).astype(jnp.bfloat16)
            counted = jnp.einsum("nt,np->tp", left, right, preferred_element_type=jnp.float32)
            return total + counted.astype(jnp.int32), None

        zeros = jnp.zeros((true + 1, found + 1), jnp.int32)
        return jax.lax.scan(one, zeros, pairs.reshape(-1, tile))[0]

    return jax.lax.platform_dependent(pairs, tpu=multiply, default=scatter)


# --------------------------------------------------------------------------------------------------
# Host


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """What panoptic quality is made of, per class; of several images it is the sum.

    Attributes:
        iou: float64 [K], sum of the IoU of all matches.
        matched: int64 [K], true positives.
        false: int64 [K], predicted segments that match nothing.
        missed: int64 [K], true segments that nothing matches.
    """

    iou: np.ndarray
    matched: np.ndarray
    false: np.ndarray
    missed: np.ndarray

    @staticmethod
    def zeros(classes: int) -> Counts:
        """Those of no image."""
        whole = [np.zeros(classes, np.int64) for _ in range(3)]
        return Counts(np.zeros(classes), *whole)

    def add(self, other: Counts) -> Counts:
        """Those of the images of both."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Counts(*(mine + its for mine, its in pairs))

    __add__ = add


def from_image(
    shared: np.ndarray,
    true_class: np.ndarray,
    true_is_crowd: np.ndarray,
    found_class: np.ndarray,
    classes: int,
    true_area: np.ndarray | None = None,
    threshold: float = 0.5,
    name: str = "",
) -> Counts:
    """The counts of one image.

    A predicted and a true segment of one class match if their IoU is above `threshold`; void pixels
    are taken out of the union. Crowds match nothing. A predicted segment more than half of which
    lies in the void or in the crowd of its class counts nowhere; of several crowds of a class only
    the last one listed is known.

    Args:
        shared: int [S + 1, P + 1] of `intersections`.
        true_class: int [S], -1 for rows that are no segment; their pixels are void.
        true_is_crowd: bool [S].
        found_class: int [P], -1 for rows that are no segment.
        classes: K.
        true_area: [S] pixels of the true segments as their file says, if not those of the map.
        threshold: of the IoU, to be passed.
        name: what to call the image in errors.

    Raises:
        SegjaxError: a predicted segment has no pixel, or pixels no segment.
    """
    shared = np.asarray(shared, np.int64)
    true_class, found_class = np.asarray(true_class), np.asarray(found_class)
    listed, found = true_class >= 0, found_class >= 0
    found_area = shared[:, 1:].sum(axis=0)
    _check(found_area > 0, found, name or "the prediction")
    void = shared[0, 1:] + shared[1:, 1:][~listed].sum(axis=0)
    both = shared[1:, 1:]
    true_area = shared[1:].sum(axis=1) if true_area is None else np.asarray(true_area, np.int64)

    crowd = listed & np.asarray(true_is_crowd, bool)
    plain = listed & ~crowd
    union = true_area[:, None] + (found_area - void) - both
    comparable = (plain[:, None] & found) & (true_class[:, None] == found_class)
    comparable &= (both > 0) & (union > 0)
    iou = np.divide(both, union, out=np.zeros(both.shape), where=comparable)
    match = iou > threshold

    within = void.copy()
    of_class = {int(true_class[row]): row for row in np.flatnonzero(crowd)}  # the last one stays
    for column in np.flatnonzero(found):
        if (row := of_class.get(int(found_class[column]))) is not None:
            within[column] += both[row, column]
    ignored = 2 * within > found_area
    pairs = np.nonzero(match)
    return Counts(
        np.bincount(true_class[pairs[0]], weights=iou[pairs], minlength=classes),
        np.bincount(true_class[pairs[0]], minlength=classes),
        np.bincount(found_class[found & ~ignored & ~match.any(axis=0)], minlength=classes),
        np.bincount(true_class[plain & ~match.any(axis=1)], minlength=classes),
    )


def _check(drawn: np.ndarray, listed: np.ndarray, name: str) -> None:
    if (drawn != listed).any():
        row = int(np.argmax(drawn != listed))
        what = "has pixels but no class" if drawn[row] else "has no pixel"
        raise SegjaxError(
            f"{name}: predicted segment {row + 1} {what}; the map and the table must be of one"
            " result."
        )


def quality(counts: Counts) -> np.ndarray:
    """PQ, SQ and RQ of each class, float64 [K, 3] in 0..1; 0 for a class that never occurs."""
    halves = counts.matched + 0.5 * counts.false + 0.5 * counts.missed
    return np.stack(
        [
            _ratio(counts.iou, halves),
            _ratio(counts.iou, counts.matched),
            _ratio(counts.matched, halves),
        ],
        axis=-1,
    )


def occurs(counts: Counts) -> np.ndarray:
    """Which classes have a segment that counts, true or predicted, bool [K]."""
    return counts.matched + counts.false + counts.missed > 0


def mean_quality(counts: Counts, chosen: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Mean PQ, SQ and RQ over the classes that occur, float64 [3] in 0..1 (NaN where there are
    none), and how many they are; of those `chosen`, bool [K], if given."""
    counted = occurs(counts) if chosen is None else occurs(counts) & np.asarray(chosen, bool)
    number = int(counted.sum())
    total = quality(counts)[counted].sum(axis=0)
    return (total / number if number else np.full(3, np.nan)), number


def summary(counts: Counts, is_thing: Sequence[bool], names: Sequence[str]) -> dict[str, Any]:
    """The figures of an evaluation.

    Args:
        counts: of all images.
        is_thing: K flags.
        names: K class names.

    Returns:
        `all`, `things` and `stuff`, each with PQ, SQ and RQ in percent (NaN where no class occurs)
        and n, how many classes occur; and `classes`: for each its name, PQ, SQ and RQ in percent
        (None where it never occurs), matched, false and missed segments.
    """
    things = np.asarray(is_thing, bool)
    per_class, present = 100 * quality(counts), occurs(counts)
    rows = []
    for k, name in enumerate(names):
        figures = per_class[k].tolist() if present[k] else [None] * 3
        segments = {kind: int(getattr(counts, kind)[k]) for kind in ("matched", "false", "missed")}
        rows.append({"name": name, **dict(zip(("PQ", "SQ", "RQ"), figures)), **segments})
    return {
        "all": _figures(counts, None),
        "things": _figures(counts, things),
        "stuff": _figures(counts, ~things),
        "classes": rows,
    }


def _figures(counts: Counts, chosen: np.ndarray | None) -> dict[str, float | int]:
    mean, number = mean_quality(counts, chosen)
    return {**dict(zip(("PQ", "SQ", "RQ"), (100 * mean).tolist())), "n": number}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part = np.asarray(part, np.float64)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
