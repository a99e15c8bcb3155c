"""How an image becomes windows of a few fixed shapes, and how their scores become its labels again.

All of it is known from the image's size alone, so every process plans the same and nothing is
decoded for planning. The rules are those of mmsegmentation's `slide_inference` and of RegProxy's
change to it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segjax.data import transforms
from segjax.errors import SegjaxError
from segjax.ops import assembly
from segjax.structs import Size

WHOLE_MULTIPLE = 32
"""Whole images larger than the crop are filled up to this, so that few shapes are compiled."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to infer; the fields of `config.eval` of the same names.

    Attributes:
        mode: "slide", in windows of `crop`, or "whole", in one window.
        scale: (long side, short side) that an image is fitted into, keeping its aspect.
        crop: (height, width) of the windows.
        stride: (rows, columns) from one window to the next.
        ratios: `scale` times each of these; probabilities are averaged.
        flip: averages with the mirrored image too.
        batch: windows per forward pass, over all devices.
        pad_windows: a window that the image doesn't fill is filled up with mean colour (RegProxy);
            a whole image is filled up to the crop, or beyond it to a multiple of 32. False leaves
            windows small (mmsegmentation), and each shape is compiled.
        enlarge: an image whose short side is below the (square) window is first enlarged until it
            fills it (Segmenter).
    """

    mode: str = "slide"
    scale: tuple[int, int] = (2048, 512)
    crop: Size = (512, 512)
    stride: Size = (512, 512)
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 8
    pad_windows: bool = True
    enlarge: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("slide", "whole"):
            raise SegjaxError(f"config.eval.mode is '{self.mode}'; take 'slide' or 'whole'.")
        for name in ("scale", "crop", "stride"):
            value = getattr(self, name)
            if len(value) != 2 or min(value) < 1:
                raise SegjaxError(f"config.eval.{name} is {value}; give two positive numbers.")
        if self.mode == "slide" and any(s > c for s, c in zip(self.stride, self.crop)):
            raise SegjaxError(
                f"config.eval.stride {self.stride} leaves gaps between windows of {self.crop}; take"
                " a stride no larger than config.eval.crop."
            )
        if self.enlarge and (self.mode != "slide" or self.crop[0] != self.crop[1]):
            raise SegjaxError(
                f"config.eval.enlarge fills square sliding windows, but mode is '{self.mode}' and"
                f" crop is {self.crop}; set enlarge=False or take a square crop."
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise SegjaxError(
                f"config.eval.ratios is {self.ratios}; give one or more positive numbers."
            )
        if self.batch < 1:
            raise SegjaxError(f"config.eval.batch is {self.batch}; take 1 or more.")

    @classmethod
    def of(cls, settings: Settings | Mapping[str, Any]) -> Settings:
        """From `config.eval`; fields that don't concern inference are left out."""
        if isinstance(settings, cls):
            return settings
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: settings[name] for name in names if name in settings}
        return cls(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()})


class Span(NamedTuple):
    """One axis of a copy.

    Attributes:
        original: pixels of the image as it came.
        scaled: pixels of the image fitted into `scale`.
        inner: pixels of the image that is cut; more than `scaled` only if it was enlarged.
        window: pixels of a window.
        starts: first pixel of each window.
    """

    original: int
    scaled: int
    inner: int
    window: int
    starts: tuple[int, ...]


class Copy(NamedTuple):
    """One test-time copy of an image: a scale, mirrored or not."""

    rows: Span
    columns: Span
    mirrored: bool

    @property
    def scaled(self) -> Size:
        """(height, width) of the image fitted into `scale`."""
        return self.rows.scaled, self.columns.scaled

    @property
    def size(self) -> Size:
        """(height, width) of the image that is cut."""
        return self.rows.inner, self.columns.inner

    @property
    def window(self) -> Size:
        """(height, width) of every window."""
        return self.rows.window, self.columns.window

    @property
    def grid(self) -> tuple[int, int]:
        """Windows (down, across)."""
        return len(self.rows.starts), len(self.columns.starts)

    @property
    def windows(self) -> int:
        """Windows in all."""
        return self.grid[0] * self.grid[1]


def starts(size: int, crop: int, stride: int) -> tuple[int, ...]:
    """First pixel of each window along an axis; the last window slides back to end at the border.

    >>> starts(1024, 768, 512)
    (0, 256)
    """
    count = max(size - crop + stride - 1, 0) // stride + 1
    return tuple(max(min(k * stride + crop, size) - crop, 0) for k in range(count))


def plan(size: Size, settings: Settings) -> list[Copy]:
    """The copies of an image of (height, width) `size`: each ratio plain, then mirrored."""
    copies = []
    for ratio in settings.ratios:
        scaled = transforms.rescaled_size(tuple(map(int, size)), settings.scale, ratio)
        rows, columns = _spans(tuple(map(int, size)), scaled, settings)
        copies.append(Copy(rows, columns, False))
        if settings.flip:
            copies.append(Copy(rows, columns, True))
    return copies


def plan_ready(
    original: Size, sizes: Sequence[Size], mirrored: Sequence[bool], settings: Settings
) -> list[Copy]:
    """The copies of an image whose rescaled, perhaps mirrored versions are at hand already.

    Args:
        original: (height, width) of the result.
        sizes: (height, width) of each version.
        mirrored: whether each is mirrored.
        settings: `scale`, `ratios` and `flip` don't matter.
    """
    return [
        Copy(*_spans(original, size, settings), bool(flag)) for size, flag in zip(sizes, mirrored)
    ]


def _spans(original: Size, scaled: Size, settings: Settings) -> tuple[Span, Span]:
    inner = enlarged_size(scaled, settings.crop[0]) if settings.enlarge else scaled
    rows, columns = (
        Span(original[i], scaled[i], inner[i], *_laid(inner[i], i, settings)) for i in (0, 1)
    )
    return rows, columns


def enlarged_size(size: Size, least: int) -> Size:
    """(height, width) with the short side brought up to `least`, the long one cut to whole pixels
    (Segmenter)."""
    height, width = size
    if min(size) >= least:
        return size
    if height < width:
        return least, int(width / height * least)
    return int(height / width * least), least


def _laid(inner: int, axis: int, settings: Settings) -> tuple[int, tuple[int, ...]]:
    """Window and starts along an axis."""
    crop, stride = settings.crop[axis], settings.stride[axis]
    if settings.mode == "slide":
        return (crop if settings.pad_windows else min(crop, inner)), starts(inner, crop, stride)
    if settings.pad_windows:
        return (crop if inner <= crop else -(-inner // WHOLE_MULTIPLE) * WHOLE_MULTIPLE), (0,)
    return inner, (0,)


def rescale(image: np.ndarray, copy: Copy) -> np.ndarray:
    """The image of a copy: `image` [H, W, 3] fitted into the scale, mirrored if the copy is."""
    if image.shape[:2] != copy.scaled:
        image = transforms.resize_image(image, copy.scaled)
    return image[:, ::-1] if copy.mirrored else image


def cut(image: np.ndarray, copy: Copy) -> tuple[np.ndarray, np.ndarray]:
    """Enlarges the image of a copy if its plan says so, and cuts it into windows.

    Officially an image is enlarged after normalisation; a uint8 one is rounded to whole grey levels
    again here, a float one is not.

    Args:
        image: [h, w, 3], what `rescale` returns.
        copy: the plan.

    Returns:
        [n, *copy.window, 3] of the same dtype, row-major, 0 beyond the image; and int32 [n, 2],
        (height, width) of the real pixels in each.
    """
    if image.shape[:2] != copy.size:
        image = transforms.resize_image(image, copy.size)
    windows = np.zeros((copy.windows, *copy.window, 3), image.dtype)
    extents = np.zeros((copy.windows, 2), np.int32)
    for k in range(copy.windows):
        row, column = divmod(k, copy.grid[1])
        top, left = copy.rows.starts[row], copy.columns.starts[column]
        part = image[top : top + copy.window[0], left : left + copy.window[1]]
        windows[k, : part.shape[0], : part.shape[1]] = part
        extents[k] = part.shape[:2]
    return windows, extents


def blocks(
    copy: Copy, cells: Size, size: Size, covers: Size
) -> tuple[assembly.Blocks, assembly.Blocks]:
    """The row and column blocks that assemble a copy's scores.

    Args:
        copy: the plan.
        cells: (height, width) of the scores of a window.
        size: (height, width) of the output, which may be larger than the image.
        covers: (height, width) in pixels that the scores of a window stand for.
    """
    return (
        _blocks(copy.rows, cells[0], False, assembly.ROW_TILE, size[0], covers[0]),
        _blocks(copy.columns, cells[1], copy.mirrored, assembly.COLUMN_TILE, size[1], covers[1]),
    )


@functools.lru_cache(maxsize=256)
def _blocks(
    span: Span, cells: int, mirrored: bool, tile: int, length: int, covers: int
) -> assembly.Blocks:
    taps = assembly.taps(
        span.original, span.inner, span.starts, span.window, cells, mirrored, covers
    )
    return assembly.blocks(*taps, tile, length)


def join_regions(regions: np.ndarray, copy: Copy) -> np.ndarray:
    """One region map of the whole image, from those of its windows.

    Args:
        regions: int [n, h, w], region numbers (below h*w) within each window, row-major windows.
        copy: the plan, not of a mirrored copy.

    Returns:
        int32 [H, W] at the original size; region r of window k has the number k*h*w + r. Where
        windows overlap, the one whose centre is nearest counts.
    """
    _, h, w = regions.shape
    row_window, row_cell = _nearest_cell(copy.rows, h)
    column_window, column_cell = _nearest_cell(copy.columns, w)
    window = row_window[:, None] * copy.grid[1] + column_window
    return (regions[window, row_cell[:, None], column_cell] + window * (h * w)).astype(np.int32)


def token_centres(copy: Copy, tokens: Size) -> np.ndarray:
    """Where the tokens of a plan's windows lie in the original image.

    Args:
        copy: the plan, not of a mirrored copy.
        tokens: (rows, columns) of tokens in a window.

    Returns:
        float32 [N, 2], (y, x) in original pixels. Of tokens at one place in overlapping windows,
        those of the window that `join_regions` shows there.
    """
    y, x = (_centres(span, count) for span, count in zip((copy.rows, copy.columns), tokens))
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def _centres(span: Span, tokens: int) -> np.ndarray:
    inner = np.asarray(span.starts)[:, None] + (np.arange(tokens) + 0.5) * span.window / tokens
    place = inner * span.original / span.inner
    shown, _ = _nearest_cell(span, 1)
    pixel = np.minimum(place.astype(int), span.original - 1)
    return place[(inner < span.inner) & (shown[pixel] == np.arange(len(span.starts))[:, None])]


def _nearest_cell(span: Span, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each original pixel of an axis its window and the cell of that window it lies in."""
    pixels = (np.arange(span.original) * span.inner) // span.original
    distance = np.abs(pixels[:, None] + 0.5 - (np.asarray(span.starts) + span.window / 2))
    window = distance.argmin(axis=1)
    return window, (pixels - np.asarray(span.starts)[window]) * cells // span.window


def output_size(size: Size) -> Size:
    """A size that holds `size`, one of few: multiples of 64, four to the octave above 256."""
    return tuple(_rung(int(side)) for side in size)


def _rung(side: int) -> int:
    step = max(64, 2 ** (max(side - 1, 1).bit_length() - 3))
    return -(-side // step) * step
