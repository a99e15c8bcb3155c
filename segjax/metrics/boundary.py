"""IoU and mean boundary accuracy (mBA) of refined masks, as CascadePSP and CRM count them.

mBA asks how many of the pixels near the true boundary are right. Five bands around it are looked
at, of radius 1 to nearly R = (height + width) / 300; the shares of right pixels are averaged over
the five, then over the images. A band are the pixels whose disc (OpenCV's) holds foreground and
background of the truth; pixels beyond the image are neither.

IoU is pooled: intersections and unions are summed over the images before they are divided.

Masks are grey, and a pixel is foreground where its value is above 128. So a probability p, written
as the byte trunc(255 p), must reach 129/255 = 0.506. See Cheng et al., CascadePSP, CVPR 2020.

    scores = boundary.Scores()
    scores.update(truth, coarse, refined)      # per image
    scores.result()                            # {"iou": ..., "mba": ..., "coarse_iou": ...}
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError
from segjax.ops import morphology
from segjax.structs import Array, Size

THRESHOLD = 128
"""A pixel is foreground where its grey value is above this."""

BANDS = 5

TILE = (128, 256)
"""Pixels that are looked at together; tiles far from any boundary are left out."""

TOGETHER = 8
"""Tiles a call."""

MARGINS = (4, 8, 16, 32, 64, 126)
"""Greatest radii there are programs for."""

SMALL = 1024
"""Coarse masks whose grey values sum to less are left as they are by the rule of small objects."""

SMALL_OBJECTS = ("measured", "kept", "published")
"""What happens to those: they are scored as any other; the coarse mask stands in for the refined
one, as the published script means to do; or it does so for square images only, which is what the
script does, as it takes the height for the width."""


def grey(probability: np.ndarray) -> np.ndarray:
    """The bytes trunc(255 p) of probabilities float32 [...] in 0..1; what the scores are of."""
    return (np.asarray(probability, np.float32) * np.float32(255)).astype(np.uint8)


def foreground(mask: np.ndarray) -> np.ndarray:
    """bool [H, W] of a grey mask uint8 [H, W], or of a boolean one."""
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    if mask.dtype != np.uint8:
        raise SegjaxError(
            f"a mask of {mask.dtype} is scored; give uint8 (0..255) or boolean ones, and"
            " probabilities through metrics.boundary.grey."
        )
    return mask > THRESHOLD


def radii(size: Size) -> tuple[int, ...]:
    """Radii of the five bands of an image of (height, width); all 1 where it is small."""
    greatest = (size[1] + size[0]) / 300
    return tuple(1 + int((greatest - 1) / BANDS * step) for step in range(BANDS))


@functools.partial(jax.jit, static_argnums=1)
def band(truth: Array, radius: int) -> Array:
    """The pixels near the boundary.

    Args:
        truth: bool or int [H, W].
        radius: of the disc, below 127.

    Returns:
        bool [H, W].
    """
    steps = morphology.border_steps(jnp.pad(truth, radius, mode="edge"), radius)
    return morphology.near_border(steps, radius, morphology.lifts(radius, radius))


def counts(
    truth: np.ndarray, predictions: np.ndarray, void: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the five bands, and how many of them are right.

    Only tiles with a boundary go to the device, so the work grows with its length; the same
    program serves images of all sizes.

    Args:
        truth: bool or int [H, W].
        predictions: of the same dtype, [N, H, W].
        void: a label that is not counted.

    Returns:
        int64 [5], and int64 [N, 5].

    Raises:
        SegjaxError: predictions of another size, or a picture of more than 38000 pixels over both
            sides, whose bands would be too wide.
    """
    truth, predictions = np.asarray(truth), np.asarray(predictions, truth.dtype)
    _check_size(truth.shape, predictions.shape[1:])
    sizes = radii(truth.shape)
    margin = next((margin for margin in MARGINS if margin >= max(sizes)), 0)
    if not margin:
        raise SegjaxError(
            f"a picture of {truth.shape[1]} x {truth.shape[0]} pixels has boundary bands of radius"
            f" {max(sizes)}, and {MARGINS[-1]} is the widest; score it in parts."
        )
    table = np.stack([morphology.lifts(radius, margin) for radius in sizes])
    waiting, found = [], []
    for tile in _tiles(truth, predictions, margin):
        waiting.append(tile)
        if len(waiting) == TOGETHER:
            found.append(_count(waiting, margin, sizes, table, void))
            waiting = []
    if waiting:
        empty = (np.zeros_like(waiting[0][0]), (0, 0))
        waiting += [empty] * (TOGETHER - len(waiting))
        found.append(_count(waiting, margin, sizes, table, void))
    total = np.zeros((1 + len(predictions), BANDS), np.int64)
    for part in found:
        total += np.asarray(part)
    return total[0], total[1:]


_Tile = tuple[np.ndarray, Size]
"""Truth and predictions [1 + N, h, w] around a tile, and its (height, width) inside the image."""


def _tiles(truth: np.ndarray, predictions: np.ndarray, margin: int) -> Iterator[_Tile]:
    """The tiles that have a boundary within `margin`, with so many pixels around them."""
    height, width = truth.shape
    for top in range(0, height, TILE[0]):
        for left in range(0, width, TILE[1]):
            rows = slice(max(top - margin, 0), top + TILE[0] + margin)
            columns = slice(max(left - margin, 0), left + TILE[1] + margin)
            part = truth[rows, columns]
            if (part == part[0, 0]).all():
                continue
            before = margin - (top - rows.start), margin - (left - columns.start)
            room = [
                (first, side + 2 * margin - first - length)
                for first, side, length in zip(before, TILE, part.shape)
            ]
            stack = [np.pad(part, room, mode="edge")]
            stack += [np.pad(mask[rows, columns], room) for mask in predictions]
            inside = (min(TILE[0], height - top), min(TILE[1], width - left))
            yield np.stack(stack), inside


def _count(
    tiles: list[_Tile], margin: int, sizes: tuple[int, ...], table: np.ndarray, void: int | None
) -> Array:
    stack, inside = (np.stack(part) for part in zip(*tiles))
    return _counts(stack, inside, np.array(sizes, np.int32), table, margin, void)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _counts(
    stack: Array, inside: Array, sizes: Array, table: Array, margin: int, void: int | None
) -> Array:
    """int32 [1 + N, 5]: pixels of the bands, and right ones, in tiles [T, 1 + N, h, w]."""

    def of_tile(stack: Array, inside: Array) -> Array:
        middle = tuple(slice(margin, margin + side) for side in TILE)
        masks = stack[:, middle[0], middle[1]]
        rows, columns = (jnp.arange(side) < n for side, n in zip(TILE, inside))
        counted = rows[:, None] & columns
        if void is not None:
            counted &= masks[0] != void
        steps = morphology.border_steps(stack[0], margin)

        def of_band(disc: tuple[Array, Array]) -> Array:
            near = morphology.near_border(steps, *disc) & counted
            right = near & (masks == masks[0])  # the truth equals itself: the first are all
            return right.sum((1, 2), dtype=jnp.int32)

        return jax.lax.map(of_band, (sizes, table)).T

    return jax.lax.map(lambda tile: of_tile(*tile), (stack, inside)).sum(0)


def accuracy(truth: np.ndarray, predictions: np.ndarray, void: int | None = None) -> np.ndarray:
    """Mean boundary accuracy of predictions of one image.

    Args:
        truth: bool or int [H, W].
        predictions: of the same dtype, [N, H, W].
        void: a label that is not counted (0 where scene parsing is scored).

    Returns:
        float64 [N] in 0..1; NaN where there is no boundary.
    """
    pixels, right = counts(truth, predictions, void)
    with np.errstate(invalid="ignore"):
        return (right / pixels).mean(axis=1)


# Over a set of images -----------------------------------------------------------------------------


class Scores:
    """Sums up IoU and mBA of coarse and refined masks, image by image; exact in integers."""

    def __init__(self, small_objects: str = "measured") -> None:
        """`small_objects` is one of `SMALL_OBJECTS`; it never occurs in BIG."""
        if small_objects not in SMALL_OBJECTS:
            raise SegjaxError(
                f"small_objects: there is no '{small_objects}'; take one of"
                f" {', '.join(SMALL_OBJECTS)}."
            )
        self._small_objects = small_objects
        self._pixels = np.zeros((2, 2), np.int64)  # in both masks and in either; coarse and refined
        self._accuracies: list[np.ndarray] = []

    def update(
        self, truth: np.ndarray, coarse: np.ndarray, refined: np.ndarray
    ) -> dict[str, float]:
        """Adds an image.

        Args:
            truth: uint8 [H, W], 0..255, or bool.
            coarse: likewise, the mask that was given to the system.
            refined: likewise, the system's; see `grey`.

        Returns:
            `iou`, `mba`, `coarse_iou`, `coarse_mba` of this image in percent, NaN where there is
            nothing to divide by.
        """
        if self._is_kept(np.asarray(coarse)):
            refined = coarse
        true, *masks = (foreground(mask) for mask in (truth, coarse, refined))
        for mask in masks:
            _check_size(true.shape, mask.shape)
        predictions = np.stack(masks)
        both = np.count_nonzero(predictions & true, axis=(1, 2))
        either = np.count_nonzero(predictions | true, axis=(1, 2))
        self._pixels += both, either
        self._accuracies.append(accuracy(true, predictions))
        return _named(both, either, self._accuracies[-1])

    def _is_kept(self, coarse: np.ndarray) -> bool:
        if self._small_objects == "measured":
            return False
        total = coarse.sum(dtype=np.int64) * (255 if coarse.dtype == bool else 1)
        square = coarse.shape[0] == coarse.shape[1]
        return total < SMALL and (square or self._small_objects == "kept")

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """What the figures are made of, for `add`.

        Returns:
            int64 [2, 2], the pixels in both masks and in either, of the coarse and the refined
            ones; float64 [N, 2], the boundary accuracy of every image.
        """
        return self._pixels.copy(), np.array(self._accuracies, np.float64).reshape(-1, 2)

    def add(self, pixels: np.ndarray, accuracies: np.ndarray) -> None:
        """Adds images that were scored elsewhere, as `sums` has them."""
        self._pixels += pixels
        self._accuracies.extend(accuracies)

    def result(self) -> dict[str, float]:
        """The figures of all images so far.

        Returns:
            `iou` and `mba` of the refined masks, `coarse_iou` and `coarse_mba` of the given ones,
            in percent to 2 decimals; `images`; and `without_boundary`, how many of them are all
            foreground or all background, so that they have no mBA. Those are left out of the mean
            (of the published script they make it NaN).
        """
        accuracies = np.array(self._accuracies).reshape(-1, 2)
        known = ~np.isnan(accuracies).any(axis=1)
        mean = accuracies[known].mean(axis=0) if known.any() else np.full(2, np.nan)
        figures = _named(*self._pixels, mean)
        return {
            **{name: float(np.round(value, 2)) for name, value in figures.items()},
            "images": len(accuracies),
            "without_boundary": int((~known).sum()),
        }


class LabelScores:
    """Sums up mIoU and mBA of coarse and refined label maps, image by image, as CascadePSP's
    eval_post_ade.py does: what lies where the truth is void counts nowhere, and a class that occurs
    in no map has an IoU of 0."""

    def __init__(self, classes: int) -> None:
        """`classes`: the maps' values go from 1 to this; 0 is void."""
        self._classes = classes
        self._pixels = np.zeros((2, 2, classes), np.int64)  # in both and in either map
        self._accuracies: list[np.ndarray] = []

    def update(self, truth: np.ndarray, coarse: np.ndarray, refined: np.ndarray) -> None:
        """Adds an image.

        Args:
            truth, coarse, refined: int [H, W], 0..classes.

        Raises:
            SegjaxError: maps of several sizes, or values out of range.
        """
        maps = [np.asarray(labels) for labels in (truth, coarse, refined)]
        for labels in maps:
            _check_size(truth.shape, labels.shape)
            if labels.min() < 0 or labels.max() > self._classes:
                raise SegjaxError(
                    f"a label map holds {labels.min()} to {labels.max()}; it must hold 0 (void) to"
                    f" {self._classes}."
                )
        true, *masks = (np.where(maps[0] == 0, 0, labels).astype(np.int32) for labels in maps)

        def areas(labels: np.ndarray) -> np.ndarray:
            return np.bincount(labels.ravel(), minlength=self._classes + 1)[1:]

        for i, mask in enumerate(masks):
            both = areas(np.where(mask == true, true, 0))
            self._pixels[:, i] += both, areas(mask) + areas(true) - both
        self._accuracies.append(accuracy(true, np.stack(masks), void=0))

    def result(self) -> dict[str, float]:
        """`miou`, `mba`, `coarse_miou` and `coarse_mba` in per cent to 2 decimals, and `images`;
        images without any boundary have no part in mBA."""
        both, either = self._pixels
        coarse, refined = (both / (either + 1e-6)).mean(axis=1)
        accuracies = np.array(self._accuracies).reshape(-1, 2)
        known = ~np.isnan(accuracies).any(axis=1)
        mba = accuracies[known].mean(axis=0) if known.any() else np.full(2, np.nan)
        figures = {"miou": refined, "mba": mba[1], "coarse_miou": coarse, "coarse_mba": mba[0]}
        rounded = {name: float(np.round(100 * value, 2)) for name, value in figures.items()}
        return rounded | {"images": len(accuracies)}


def _named(both: np.ndarray, either: np.ndarray, mba: np.ndarray) -> dict[str, float]:
    """In percent; the rows are coarse, refined."""
    iou = np.divide(both, either, out=np.full(2, np.nan), where=either > 0)
    return {
        "iou": float(100 * iou[1]),
        "mba": float(100 * mba[1]),
        "coarse_iou": float(100 * iou[0]),
        "coarse_mba": float(100 * mba[0]),
    }


def _check_size(truth: Size, mask: Size) -> None:
    if truth != mask:
        raise SegjaxError(
            f"the true mask is {truth[1]} x {truth[0]} pixels, but a mask that is compared with it"
            f" is {mask[1]} x {mask[0]}; bring it to the size of the truth."
        )
