"""One turn of CRM over an image of any size: windows of it are encoded one after another and then
asked, so memory has a bound and the answers don't depend on it.

A window is cut off so far beyond the pixels that it answers that these see nothing of the cut. At
the image's own ends everything beyond is kept at 0, which is what convolutions pad with (and what
the pooling does, as all it sees is positive). So a window may be larger than what is left of the
image, its sides come from a short list (`canvas`), and a compiled program serves images and turns
of many sizes: which cells exist, and where pixels lie, are its arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.backbones.layers import BatchNorm
from segjax.backbones.resnet import ResNet
from segjax.errors import SegjaxError
from segjax.ops import aligned, implicit, resize
from segjax.ops.implicit import Network
from segjax.structs import Array, Size, Variables

STRIDE = 8
"""Of the encoder."""

STEPS = 16
"""Sides of windows from a power of two to the next."""

Taps = tuple[Array, Array]
"""See `resize.Taps`; here arguments of a program."""

# --------------------------------------------------------------------------------------------------
# Planning, axis by axis


class Span(NamedTuple):
    """A window along one axis, each part as (first, end).

    Attributes:
        answers: pixels of the image.
        fine: cells of the features that they ask.
        seen: pixels of the scaled image that those depend on; the first is a multiple of STRIDE, so
            that the maps of all strides are cut between cells.
    """

    answers: tuple[int, int]
    fine: tuple[int, int]
    seen: tuple[int, int]


class Axis(NamedTuple):
    """An axis of a turn.

    Attributes:
        length: pixels of the image.
        scaled: pixels of the scaled image.
    """

    length: int
    scaled: int

    @property
    def cells(self) -> tuple[int, int, int]:
        """Of the maps at strides 2, 4 and 8: every halving is rounded up."""
        return -(-self.scaled // 2), -(-self.scaled // 4), -(-self.scaled // 8)

    def span(self, first: int, end: int, reach: Sequence[int]) -> Span:
        """What the answers from `first` to `end` need; `reach`: see `reaches`."""
        queries = _queries(self.length, self.cells[0]).cells
        fine = int(queries[0, first]), int(queries[1, end - 1]) + 1
        # The last convolution sees one cell more on either side.
        ends = [max(fine[0] - 1, 0), min(fine[1], self.cells[0] - 1)]
        begins, stops = [], []
        for level, beyond in enumerate(reach):
            indices, weights = self.enlargement(level)
            used = indices[ends][weights[ends] > 0] * 2 ** (level + 1)
            begins.append(int(used.min()) - beyond)
            stops.append(int(used.max()) + beyond + 1)
        begin = max(min(begins), 0) // STRIDE * STRIDE
        return Span((first, end), fine, (begin, min(max(stops), self.scaled)))

    def enlargement(self, level: int) -> resize.Taps:
        """The cells of level 0, 1 or 2 (stride 2, 4 or 8) that make those of level 0."""
        return _corner_taps(self.cells[0], self.cells[level])

    def reduction(self) -> resize.Taps:
        """The image's pixels that make those of the scaled one."""
        return _corner_taps(self.scaled, self.length)


@functools.lru_cache(maxsize=64)
def _queries(length: int, cells: int) -> implicit.Axis:
    return implicit.grid_axis(length, cells)


@functools.lru_cache(maxsize=64)
def _corner_taps(out_size: int, in_size: int) -> resize.Taps:
    return resize.taps(out_size, in_size, align_corners=True)


def reaches(encoder: ResNet) -> tuple[int, ...]:
    """How many pixels on either side of its first one a cell sees, at strides 2, 4 and 8."""
    reach = 5 if encoder.deep_stem else 3
    found, stride = [reach], 4
    reach += 2  # the pooling
    for stage, depth in enumerate(encoder.depths):
        for block in range(depth):
            reach += stride * (encoder.dilations[stage] if block else 1)
            stride *= 1 if block else encoder.strides[stage]
        if stage in (0, len(encoder.depths) - 1):
            found.append(reach)
    return tuple(found)


UNBOUNDED = 2**24
"""Pixels of a window where nobody asks for less; more would be no faster."""

PROGRAMS = 2**26
"""Bytes that a program needs whatever its window."""

MOST_COLUMNS = 32
"""Windows beside each other."""


def canvas(side: int) -> int:
    """The smallest side of a window that holds `side` pixels."""
    step = max(STRIDE, 2 ** (side.bit_length() - 1) // STEPS)
    return -(-side // step) * step


def cut(axis: Axis, answers: tuple[int, int], longest: int, reach: Sequence[int]) -> list[Span]:
    """The answers in the fewest windows, equal but the last, that are `longest` at most; none where
    that is too short for a single pixel's answer."""
    first, end = answers
    if side_of([axis.span(first, first + 1, reach)]) > longest:
        return []
    for count in range(1, end - first + 1):
        step = -(-(end - first) // count)
        found = [axis.span(q, min(q + step, end), reach) for q in range(first, end, step)]
        if side_of(found) <= longest:
            return found
    return []


def side_of(found: Sequence[Span]) -> int:
    """Of the windows of an axis."""
    return canvas(max(span.seen[1] - span.seen[0] for span in found))


def used(any_of: np.ndarray) -> tuple[int, int]:
    """The first and the end of what is true in bool [n]."""
    found = np.flatnonzero(any_of)
    return int(found[0]), int(found[-1]) + 1


class Plan(NamedTuple):
    """How a turn is cut into windows.

    Attributes:
        windows: rows and columns of each.
        sides: pixels of the scaled image that all windows have.
        fine: rows of features that all make.
        asked: (n, R) and (W,), how many points of each axis all answer, n times R together.
    """

    windows: list[tuple[Span, Span]]
    sides: Size
    fine: int
    asked: tuple[tuple[int, int], tuple[int]]


def plan(
    axes: Sequence[Axis], box: Sequence[tuple[int, int]], pixels: int, reach: Sequence[int]
) -> Plan:
    """The windows of `pixels` at most that answer the pixels in a box and see the fewest twice.

    Raises:
        SegjaxError: no window is so small.
    """
    best: tuple[int, list[Span], list[Span]] | None = None
    for count in range(1, MOST_COLUMNS + 1):
        step = -(-(box[1][1] - box[1][0]) // count)
        firsts = range(box[1][0], box[1][1], step)
        across = [axes[1].span(q, min(q + step, box[1][1]), reach) for q in firsts]
        down = cut(axes[0], box[0], pixels // side_of(across), reach)
        if not down:
            continue
        seen = len(down) * len(across) * side_of(down) * side_of(across)
        if best is None or seen < best[0]:
            best = seen, down, across
        if len(down) == 1:
            break  # narrower windows only add seams
    if best is None:
        raise SegjaxError(
            "there is too little memory for the smallest part of this image; raise --max-memory."
        )
    _, down, across = best
    rows, columns = (
        canvas(max(span.answers[1] - span.answers[0] for span in spans)) for spans in (down, across)
    )
    together = min(max(implicit.QUERIES // columns, 1), rows)
    return Plan(
        [(one, other) for one in down for other in across],
        (side_of(down), side_of(across)),
        canvas(max(span.fine[1] - span.fine[0] for span in down)),
        ((-(-rows // together), together), (columns,)),
    )


def affordable(module: nn.Module, size: Size, max_memory: int | None) -> int:
    """Pixels that a window may have.

    Of every pixel of the image, its colours and masks are on the device. Of every pixel of a
    window, what the encoder holds at a time: maps of its widest layers three or four at once; and
    the share of the implicit function.

    Args:
        module: a `crm.CRM`.
        size: (H, W) of the padded image.
        max_memory: bytes, or None.
    """
    if max_memory is None:
        return UNBOUNDED
    width = module.backbone.width
    # [stride, channels, how many at once]
    maps = ((2, width, 3), (4, 4 * width, 3), (8, 16 * width, 4), (2, module.hidden, 2))
    each = 4 * (4 + sum(count * channels / stride**2 for stride, channels, count in maps))
    rest = max_memory - PROGRAMS - 20 * math.prod(canvas(side) for side in size)
    return max(int(rest / each), 0)


# --------------------------------------------------------------------------------------------------
# What the programs are told about one axis of one window


class Rows(NamedTuple):
    """Attributes:
    pixels: taps [h, H], the window's rows from the image's.
    cells: int32 [3], how many of the cells at strides 2, 4 and 8 are the image's.
    first: int32, the cell at stride 2 that the features asked begin with.
    coarse: the cells at strides 4 and 8 that make those at stride 2.
    """

    pixels: Taps
    cells: Array
    first: Array
    coarse: tuple[aligned.Rows, aligned.Rows]


class Columns(NamedTuple):
    """Attributes:
    pixels: taps [w, W], the window's columns from the image's.
    cells: as of rows.
    coarse: taps [w / 2 + 2, w / 4] and [w / 2 + 2, w / 8]; one column before and one after.
    """

    pixels: Taps
    cells: Array
    coarse: tuple[Taps, Taps]


def rows_of(axis: Axis, span: Span, side: int, fine: int) -> Rows:
    """Of a window of `side` rows, for the features asked and more up to `fine` of them."""
    begin, count = span.seen[0], -(-fine // aligned.ROWS) * aligned.ROWS
    wanted = span.fine[0] - 1 + np.arange(count + 2)
    coarse = tuple(
        aligned.rows_of(
            *_coarse(axis, level, wanted, begin, side), 2**level, side // 2 ** (level + 1)
        )
        for level in (1, 2)
    )
    first = np.int32(span.fine[0] - begin // 2)
    return Rows(_pixels(axis, begin, side), _cells(axis, begin, side), first, coarse)


def columns_of(axis: Axis, span: Span, side: int) -> Columns:
    """Of a window of `side` columns, for all cells."""
    begin = span.seen[0]
    wanted = begin // 2 - 1 + np.arange(side // 2 + 2)
    coarse = tuple(_coarse(axis, level, wanted, begin, side) for level in (1, 2))
    return Columns(_pixels(axis, begin, side), _cells(axis, begin, side), coarse)


def _pixels(axis: Axis, begin: int, side: int) -> Taps:
    return _some_of(axis.reduction(), begin + np.arange(side), 0, axis.length)


def _cells(axis: Axis, begin: int, side: int) -> np.ndarray:
    strides = (2, 4, 8)
    inside = [min(n - begin // s, side // s) for n, s in zip(axis.cells, strides, strict=True)]
    return np.array(inside, np.int32)


def _coarse(axis: Axis, level: int, wanted: np.ndarray, begin: int, side: int) -> Taps:
    stride = 2 ** (level + 1)
    return _some_of(axis.enlargement(level), wanted, begin // stride, side // stride)


def _some_of(taps: resize.Taps, wanted: np.ndarray, first: int, length: int) -> Taps:
    """The taps of some outputs, all 0 where there is none, over `length` inputs from `first` on."""
    indices, weights = taps
    known = wanted.clip(0, len(indices) - 1)
    weights = np.where((wanted == known)[:, None], weights[known], np.float32(0))
    return (indices[known] - first).clip(0, length - 1), weights


# --------------------------------------------------------------------------------------------------
# The programs


@jax.jit
def seen(
    image: Array, mask: Array, scaling: tuple[Array, Array], rows: Rows, columns: Columns
) -> Array:
    """What the encoder sees of a window.

    Args:
        image: uint8 [H, W, 3].
        mask: float32 [H, W], -1..1.
        scaling: mean and standard deviation of the channels.

    Returns:
        float32 [1, h, w, 4], exactly 0 beyond the image.
    """
    mean, std = scaling

    def part(x: Array) -> Array:
        indices, weights = rows.pixels
        weights = weights.reshape(-1, 2, *(1,) * (x.ndim - 1))
        return sum(x[indices[:, t]].astype(jnp.float32) * weights[:, t] for t in range(2))

    # The rows' weights sum to 1, or to 0 beyond the image.
    inside = rows.pixels[1].sum(axis=1)[:, None, None]
    colours = (part(image) - mean * inside) * (1.0 / std)
    x = jnp.concatenate([colours, part(mask)[..., None]], axis=-1)
    return resize.mix(x, *columns.pixels)[None]


@functools.partial(jax.jit, static_argnums=0)
def projected(
    module: nn.Module, variables: Variables, x: Array, rows: Rows, columns: Columns
) -> Array:
    """What the first layer of the implicit function makes of the features of a window.

    Args:
        module: a `crm.CRM`.
        x: see `seen`.

    Returns:
        float32 [1, fine, w / 2, D].
    """
    sizes = [tuple(side // 2**i for side in x.shape[1:3]) for i in (1, 2, 3)]
    inside = {
        size: (jnp.arange(size[0]) < rows.cells[i])[:, None, None]
        & (jnp.arange(size[1]) < columns.cells[i])[:, None]
        for i, size in enumerate(sizes)
    }

    def cleared(call: Callable, args: Any, kwargs: Any, context: Any) -> Array:
        """0 beyond the image after every batch norm, so wherever a convolution looks."""
        y = call(*args, **kwargs)
        if isinstance(context.module, BatchNorm):
            y = jnp.where(inside[y.shape[1:3]], y, 0)
        return y

    with nn.intercept_methods(cleared):
        levels = module.apply(variables, x, method="projected_levels")
    network, kernel, bias = module.apply(variables, method="folded")
    fine, *coarse = (level[0] for level in levels)
    found = aligned.convolution(
        fine,
        coarse,
        kernel.astype(module.dtype),
        rows.first,
        rows.coarse,
        columns.coarse,
        lambda y: implicit.project(jax.nn.relu(y + bias), network),
    )
    return found[None]


@functools.partial(jax.jit, static_argnums=4)
def answers(
    projected: Array, network: Network, rows: implicit.Axis, columns: implicit.Axis, ensemble: bool
) -> Array:
    """The probability wherever a row and a column cross.

    Args:
        projected: [1, h, w, D].
        rows: [n, R] points, R together.
        columns: [W] points.

    Returns:
        float32 [n * R, W].
    """

    def some_rows(rows: implicit.Axis) -> Array:
        logits = implicit.grid_logits(projected, network, rows, columns, ensemble)[0]
        return jax.nn.sigmoid(logits)

    # The axis of the two cells stays inside.
    blocks = implicit.Axis(*(jnp.moveaxis(x, -2, 0) for x in rows))
    found = jax.lax.map(some_rows, blocks)
    return found.reshape(-1, found.shape[-1])


QUERIES_AT_A_TIME = 2**18
"""Of `answers_at`: calls have this many points, the last one is filled up."""


def answers_at(
    projected: Array,
    network: Network,
    rows: implicit.Axis,
    columns: implicit.Axis,
    y: np.ndarray,
    x: np.ndarray,
) -> np.ndarray:
    """The probability at some of the points where a row and a column cross.

    Args:
        projected, network, rows, columns: as of `answers`.
        y, x: int [Q], which of the rows and columns.

    Returns:
        float32 [Q].
    """
    flat = implicit.Axis(*(np.asarray(part).reshape(*part.shape[:-2], -1) for part in rows))
    found = []
    for first in range(0, len(y), QUERIES_AT_A_TIME):
        here = slice(first, first + QUERIES_AT_A_TIME)
        beyond = (0, QUERIES_AT_A_TIME - len(y[here]))
        points = (
            implicit.Axis(*(np.asarray(part)[..., np.pad(index[here], beyond)] for part in axis))
            for axis, index in ((flat, y), (columns, x))
        )
        found.append(np.asarray(_answers_at(projected, network, *points))[: len(y[here])])
    return np.concatenate(found)


@jax.jit
def _answers_at(projected: Array, network: Network, y: implicit.Axis, x: implicit.Axis) -> Array:
    def some(points: tuple[implicit.Axis, implicit.Axis]) -> Array:
        y, x = (implicit.Axis(*(part[..., None, :] for part in axis)) for axis in points)
        return jax.nn.sigmoid(implicit.point_answers(projected, network, y, x).logits[0])

    def blocks(axis: implicit.Axis) -> implicit.Axis:
        cut = (part.reshape(*part.shape[:-1], -1, implicit.QUERIES) for part in axis)
        return implicit.Axis(*(jnp.moveaxis(part, -2, 0) for part in cut))

    return jax.lax.map(some, (blocks(y), blocks(x))).reshape(-1)


def points_of(axis: Axis, span: Span, first: int, shape: tuple[int, ...]) -> implicit.Axis:
    """The answers of a span as points over cells from `first` on: as many as `shape` has, the last
    one repeated."""
    points = _queries(axis.length, axis.cells[0])
    wanted = np.minimum(span.answers[0] + np.arange(math.prod(shape)), span.answers[1] - 1)
    cells, *others = (x[..., wanted].reshape(*x.shape[:-1], *shape) for x in points)
    return implicit.Axis(cells - first, *others)
