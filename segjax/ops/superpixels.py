"""Superpixels (SLIC, Achanta et al., TPAMI 2012), and what regions of pixels have in common.

SLIC is k-means in colour and place: centres start on a grid, and a pixel is compared with the
centres near it alone. Here these are the 3x3 grid centres around the cell that the pixel lies in,
whatever the centres have moved to since; so assigning is nine comparisons with shifted maps of
centres, and no [H, W, N] tensor exists.

Regions have the row-major number of their centre in the grid, N in all. Some may be empty, and some
may have got the number of an empty one, see `connected`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import painting, resize
from segjax.structs import IGNORE, Array, Size

product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# --------------------------------------------------------------------------------------------------
# Colour

# sRGB (IEC 61966-2-1) primaries to CIE XYZ, rows divided by the D65 white of the 2 degree observer.
_XYZ_OF_RGB = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_RELATIVE_XYZ_OF_RGB = _XYZ_OF_RGB / np.array([[0.95047], [1.0], [1.08883]])


def lab(image: Array) -> Array:
    """sRGB on 0..255 (any dtype, clipped to that range) -> CIELAB under D65.

    [..., 3] -> float32 [..., 3]: lightness 0..100, then a and b, some -128..128.
    """
    rgb = jnp.clip(image.astype(jnp.float32), 0.0, 255.0) / 255.0
    linear = jnp.where(rgb > 0.04045, _power((rgb + 0.055) / 1.055, 2.4), rgb / 12.92)
    rows = [sum(m * linear[..., c] for c, m in enumerate(row)) for row in _RELATIVE_XYZ_OF_RGB]
    # The cube root, continued by its tangent near 0.
    x, y, z = (
        jnp.where(t > (6 / 29) ** 3, _power(t, 1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29) for t in rows
    )
    return jnp.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def _power(x: Array, exponent: float) -> Array:
    """x**exponent for x of 0.001 and more: several times faster than `**` and `cbrt` on CPU."""
    return jnp.exp(exponent * jnp.log(jnp.maximum(x, 1e-3)))


# --------------------------------------------------------------------------------------------------
# Cells


class Cells(NamedTuple):
    """An image of (H, W) cut into the cells of a grid; sides differ by a pixel where they must.

    Cells have p x q slots, enough for the largest; the smaller ones leave slots unused.

    Attributes:
        rows: int [Gy + 1], first row of each cell, and H.
        columns: int [Gx + 1], likewise.
    """

    rows: np.ndarray
    columns: np.ndarray

    @staticmethod
    def of(size: Size, grid: Size) -> Cells:
        if any(n > side for n, side in zip(grid, size)):
            raise ValueError(f"a grid of {grid} cells is finer than the {size} pixels.")
        return Cells(*(np.arange(n + 1) * side // n for side, n in zip(size, grid)))

    @property
    def size(self) -> Size:
        return int(self.rows[-1]), int(self.columns[-1])

    @property
    def grid(self) -> Size:
        return len(self.rows) - 1, len(self.columns) - 1

    @property
    def slots(self) -> Size:
        """(p, q)."""
        return int(np.diff(self.rows).max()), int(np.diff(self.columns).max())

    @property
    def area(self) -> float:
        """Mean pixels of a cell."""
        return self.size[0] * self.size[1] / (self.grid[0] * self.grid[1])

    @property
    def step(self) -> float:
        """The longer side of a cell in pixels: what SLIC calls S."""
        return max(side / n for side, n in zip(self.size, self.grid))

    def split(self, x: Array) -> Array:
        """[B, H, W, ...] -> [B, Gy, Gx, p*q, ...]; unused slots repeat a pixel."""
        for axis, edges, slots in ((1, self.rows, self.slots[0]), (2, self.columns, self.slots[1])):
            if (np.diff(edges) < slots).any():
                last = edges[1:, None] - 1
                index = np.minimum(edges[:-1, None] + np.arange(slots), last)
                x = jnp.take(x, index.reshape(-1), axis=axis)
        (gy, gx), (p, q) = self.grid, self.slots
        x = x.reshape(x.shape[0], gy, p, gx, q, *x.shape[3:]).swapaxes(2, 3)
        return x.reshape(x.shape[0], gy, gx, p * q, *x.shape[5:])

    def join(self, x: Array) -> Array:
        """The inverse of `split`."""
        (gy, gx), (p, q) = self.grid, self.slots
        x = x.reshape(x.shape[0], gy, gx, p, q, *x.shape[4:]).swapaxes(2, 3)
        x = x.reshape(x.shape[0], gy * p, gx * q, *x.shape[5:])
        for axis, edges, slots in ((1, self.rows, self.slots[0]), (2, self.columns, self.slots[1])):
            if (np.diff(edges) < slots).any():
                index = np.arange(edges[-1])
                cell = np.searchsorted(edges, index, side="right") - 1
                x = jnp.take(x, cell * slots + index - edges[cell], axis=axis)
        return x

    def used(self) -> np.ndarray:
        """bool [Gy, Gx, p*q]: whether the slot holds a pixel of its own."""
        rows, columns = (
            np.arange(slots) < np.diff(edges)[:, None]
            for edges, slots in zip((self.rows, self.columns), self.slots)
        )
        return (rows[:, None, :, None] & columns[:, None, :]).reshape(*self.grid, -1)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [Gy, 1, p*q] and [1, Gx, p*q]: rows, columns from the middle of the own cell."""
        y, x = (
            np.arange(slots) - (np.diff(edges)[:, None] - 1) / 2
            for edges, slots in zip((self.rows, self.columns), self.slots)
        )
        p, q = self.slots
        return (
            y.repeat(q, axis=1)[:, None].astype(np.float32),
            np.tile(x, (1, p))[None].astype(np.float32),
        )

    def middles(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [Gy, 1] and [1, Gx]: the middle of each cell in pixels."""
        y, x = ((edges[:-1] + edges[1:] - 1) / 2 for edges in (self.rows, self.columns))
        return y[:, None].astype(np.float32), x[None].astype(np.float32)


# --------------------------------------------------------------------------------------------------
# SLIC


def slic(
    image: Array,
    grid: Size,
    *,
    compactness: float = 10.0,
    iterations: int = 10,
    smallest: float = 0.25,
) -> Array:
    """Superpixels around the centres of a grid, each a connected region.

    Centres start as the mean colour and place of their cell. (Achanta et al. take a pixel near its
    middle; scikit-image starts without colour, which costs it an iteration to get here.)

    Args:
        image: [B, H, W, 3] sRGB on 0..255, any dtype.
        grid: (Gy, Gx) centres, at most (H, W); N = Gy * Gx.
        compactness: weight m of place against colour: pixels differ by
            sqrt(|Lab|^2 + (m/S * |place|)^2) with S the longer side of a cell.
        iterations: how often pixels are assigned; centres move between. 0 gives squares.
        smallest: regions below this share of a cell's area go to their neighbours.

    Returns:
        int32 [B, H, W] in 0..N-1; all pixels of a number are 4-connected.
    """
    cells = Cells.of(image.shape[1:3], grid)
    colour = lab(image)
    regions = clustered(colour, cells, compactness, iterations)
    return connected(regions, colour, grid[0] * grid[1], smallest * cells.area)


def square_regions(size: Size, grid: Size) -> Array:
    """int32 [H, W]: the row-major number of the grid's cell that a pixel lies in."""
    cells = Cells.of(size, grid)
    row, column = (
        jnp.asarray(np.repeat(np.arange(len(edges) - 1), np.diff(edges)), jnp.int32)
        for edges in (cells.rows, cells.columns)
    )
    return row[:, None] * grid[1] + column


def clustered(colour: Array, cells: Cells, compactness: float, iterations: int) -> Array:
    """SLIC's k-means: int32 [B, H, W], the centre nearest to every pixel.

    Args:
        colour: [B, H, W, 3].
        cells: of the images.
        compactness: see `slic`.
        iterations: likewise.
    """
    weight = compactness / cells.step
    used = cells.used()
    batch, grid = colour.shape[0], cells.grid
    shape = (batch, *used.shape)
    split = cells.split(colour)
    # Places are relative to the middle of the own cell, so that what is squared is small.
    planes = [split[..., c] for c in range(3)]
    planes += [jnp.broadcast_to(weight * place, shape) for place in cells.places()]
    features = jnp.stack([*planes, jnp.ones(shape)], axis=-1)
    middles = jnp.stack(
        [jnp.broadcast_to(weight * m, grid) for m in (0.0, 0.0, 0.0, *cells.middles())], axis=-1
    )
    inside = painting.border_mask(*grid)

    def assign(centres: Array) -> Array:
        """[B, Gy, Gx, 5] -> int8 [B, Gy, Gx, p*q], which of the 3x3 is nearest."""
        near = painting.neighbourhoods(centres + middles) - middles[:, :, None]
        near = jnp.where(inside[..., None], near, jnp.inf)
        best, nearest = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int8)
        for n in range(9):
            distance = sum((plane - near[..., n, c, None]) ** 2 for c, plane in enumerate(planes))
            closer = distance < best
            best = jnp.where(closer, distance, best)
            nearest = jnp.where(closer, jnp.int8(n), nearest)
        return nearest

    def moved(centres: Array, nearest: Array) -> Array:
        """The means of the pixels that chose a centre; it stays where there are none."""
        sums = jax.lax.platform_dependent(
            jnp.where(used, nearest, jnp.int8(-1)),
            features,
            cpu=sums_by_scatter,
            default=sums_by_product,
        )
        # What a cell's pixels give to a neighbour is measured from that neighbour's middle.
        sums = sums.at[..., :5].add(sums[..., 5:] * middles[:, :, None])
        total = at_centres(sums)
        count = total[..., 5:]
        mean = total[..., :5] / jnp.maximum(count, 1.0) - middles
        return jnp.where(count > 0, mean, centres)

    def one_round(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest = assign(state[0])
        return moved(state[0], nearest), nearest

    own = jnp.where(used[..., None], features, 0.0).sum(axis=3)
    start = own[..., :5] / own[..., 5:]
    own_cell = jnp.full(shape, 4, jnp.int8)
    _, nearest = jax.lax.fori_loop(0, iterations, one_round, (start, own_cell))
    nearest = nearest.astype(jnp.int32)
    row = jnp.arange(grid[0])[:, None, None] + nearest // 3 - 1
    column = jnp.arange(grid[1])[:, None] + nearest % 3 - 1
    return cells.join(row * grid[1] + column)


def sums_by_product(nearest: Array, features: Array) -> Array:
    """Per cell and neighbour the sum of the features of the pixels that chose it.

    Args:
        nearest: int8 [B, Gy, Gx, P] in 0..8, or -1 for none.
        features: [B, Gy, Gx, P, F].

    Returns:
        float32 [B, Gy, Gx, 9, F].
    """
    chosen = nearest[..., None] == jnp.arange(9, dtype=jnp.int8)
    return product("bijpn,bijpf->bijnf", chosen.astype(jnp.float32), features)


def sums_by_scatter(nearest: Array, features: Array) -> Array:
    """`sums_by_product`, several times faster on CPU."""
    batch, rows, cols, _, channels = features.shape
    cell = jnp.arange(rows * cols, dtype=jnp.int32).reshape(rows, cols, 1)
    slot = jnp.where(nearest >= 0, 9 * cell + nearest, 9 * rows * cols)

    def of_image(slot: Array, features: Array) -> Array:
        return jnp.zeros((9 * rows * cols, channels)).at[slot].add(features, mode="drop")

    sums = jax.vmap(of_image)(slot.reshape(batch, -1), features.reshape(batch, -1, channels))
    return sums.reshape(batch, rows, cols, 9, channels)


def at_centres(sums: Array) -> Array:
    """What every centre gets from the 3x3 cells around it, the transpose of `neighbourhoods`.

    [B, Gy, Gx, 9, F] -> [B, Gy, Gx, F]; what goes off the grid is lost.
    """
    total = 0.0
    for n in range(9):
        i, j = n // 3, n % 3
        total += jnp.pad(sums[..., n, :], ((0, 0), (i, 2 - i), (j, 2 - j), (0, 0)))
    return total[:, 1:-1, 1:-1]


# --------------------------------------------------------------------------------------------------
# Connected regions


def components(regions: Array) -> Array:
    """The 4-connected components of equal numbers.

    Every pixel points to another of its component with a lower index; pointers are hooked to the
    lowest that is known nearby and doubled (FastSV, Zhang, Azad, Hu; SIAM PP 2020), so that the
    rounds grow with the logarithm of a component's extent.

    Args:
        regions: int [B, H, W].

    Returns:
        int32 [B, H, W], the row-major index of the first pixel of the component.
    """
    batch, rows, cols = regions.shape
    none = rows * cols
    same = [there == regions for there in adjacent(regions, -1)]

    def lowest_near(pointer: Array) -> Array:
        image = pointer.reshape(regions.shape)
        near = [
            jnp.where(linked, there, none) for linked, there in zip(same, adjacent(image, none))
        ]
        return functools.reduce(jnp.minimum, near, image).reshape(batch, -1)

    def hook(pointer: Array, lowest: Array) -> Array:
        return pointer.at[pointer].min(lowest, mode="promise_in_bounds")

    def jump(pointer: Array) -> Array:
        return pointer.at[pointer].get(mode="promise_in_bounds")

    def one_round(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        pointer, second, _ = state
        lowest = lowest_near(second)
        pointer = jnp.minimum(jax.vmap(hook)(pointer, lowest), lowest)
        jumped = jax.vmap(jump)(pointer)
        return pointer, jumped, (jumped != second).any()

    start = jnp.broadcast_to(jnp.arange(none, dtype=jnp.int32), (batch, none))
    pointer, _, _ = jax.lax.while_loop(lambda s: s[2], one_round, (start, start, jnp.array(True)))
    return pointer.reshape(regions.shape)


def adjacent(x: Array, fill: float) -> list[Array]:
    """The pixels above, below, left and right of every pixel of [B, H, W, ...]."""
    rows, cols = x.shape[1:3]
    pad = ((0, 0), (1, 1), (1, 1), *[(0, 0)] * (x.ndim - 3))
    padded = jnp.pad(x, pad, constant_values=fill)
    return [
        padded[:, 1 + i : 1 + i + rows, 1 + j : 1 + j + cols]
        for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))
    ]


def connected(regions: Array, colour: Array, num_regions: int, smallest: float) -> Array:
    """Makes every region 4-connected, and none smaller than `smallest` pixels.

    Of a region its largest component stays (the first one of equals), if it is large enough. Other
    large components take the numbers that are free then, as long as there are any. Whatever is
    left goes, component by component and from outside in, to the adjacent region whose mean colour
    is nearest to its own.

    Args:
        regions: int32 [B, H, W] in 0..num_regions-1.
        colour: float32 [B, H, W, 3] that tells regions apart.
        num_regions: N.
        smallest: in pixels. In an image without any component of that size, the largest stays.

    Returns:
        int32 [B, H, W] in 0..num_regions-1.
    """
    batch, rows, cols = regions.shape
    pixels = rows * cols
    root = components(regions).reshape(batch, pixels)

    def owners(root: Array, region: Array) -> Array:
        """The region of every pixel; -1 where that is not clear yet."""
        size = jnp.zeros(pixels, jnp.int32).at[root].add(1)[root]
        enough = size >= jnp.minimum(smallest, size.max())
        most = jnp.zeros(num_regions, jnp.int32).at[region].max(size)
        first = jnp.full(num_regions, pixels, jnp.int32)
        first = first.at[region].min(jnp.where(size == most[region], root, pixels))
        main = enough & (root == first[region])
        free = jnp.ones(num_regions, bool).at[jnp.where(main, region, num_regions)].set(False)
        (numbers,) = jnp.nonzero(free, size=num_regions, fill_value=-1)
        split_off = enough & ~main & (root == jnp.arange(pixels))
        turn = jnp.cumsum(split_off)[root] - 1
        new = numbers.astype(jnp.int32).at[turn].get(mode="fill", fill_value=-1)
        return jnp.where(main, region, jnp.where(enough & ~main, new, -1))

    owner = jax.vmap(owners)(root, regions.reshape(batch, pixels))
    flat = colour.reshape(batch, pixels, 3)
    tone = jax.vmap(functools.partial(mean_of, count=pixels))(flat, root)
    tone = jax.vmap(take)(tone, root).reshape(colour.shape)
    tones = jax.vmap(functools.partial(mean_of, count=num_regions))(flat, owner)

    def one_round(owner: Array) -> Array:
        image = owner.reshape(regions.shape)
        shown = jax.vmap(take)(tones, jnp.maximum(owner, 0)).reshape(colour.shape)
        nearest, best = jnp.full(regions.shape, jnp.inf), image
        for there, other in zip(adjacent(image, -1), adjacent(shown, 0.0)):
            distance = jnp.where(there >= 0, ((other - tone) ** 2).sum(axis=-1), jnp.inf)
            closer = distance < nearest
            nearest = jnp.where(closer, distance, nearest)
            best = jnp.where(closer, there, best)

        def joined(root: Array, owner: Array, nearest: Array, best: Array) -> Array:
            least = jnp.full(pixels, jnp.inf).at[root].min(nearest)[root]
            choice = jnp.where((nearest == least) & (nearest < jnp.inf), best, num_regions)
            choice = jnp.full(pixels, num_regions, jnp.int32).at[root].min(choice)[root]
            found = (owner < 0) & (choice < num_regions)
            return jnp.where(found, choice, owner)

        return jax.vmap(joined)(root, owner, *(x.reshape(batch, -1) for x in (nearest, best)))

    owner = jax.lax.while_loop(lambda owner: (owner < 0).any(), one_round, owner)
    return owner.reshape(regions.shape)


def mean_of(x: Array, number: Array, count: int) -> Array:
    """The mean of x [P, C] over the places of each number [P] below `count`; -1 counts nowhere."""
    rows = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    place = jnp.where(number < 0, count, number)
    sums = jnp.zeros((count, rows.shape[1])).at[place].add(rows, mode="drop")
    return sums[:, :-1] / jnp.maximum(sums[:, -1:], 1.0)


def take(x: Array, index: Array) -> Array:
    return x.at[index].get(mode="promise_in_bounds")


# --------------------------------------------------------------------------------------------------
# What regions have in common


def region_distribution(
    regions: Array, labels: Array, num_regions: int, classes: int
) -> tuple[Array, Array]:
    """The target of a region: the shares of its pixels per class (RegProxy, Eq. 1).

    Args:
        regions: int [B, H, W] in 0..num_regions-1.
        labels: int [B, H, W] class ids, IGNORE where there is none; such pixels don't count.
        num_regions: N.
        classes: K.

    Returns:
        float32 [B, N, K], rows sum to 1, or are 0 without any labelled pixel; and int32 [B, N],
        labelled pixels.
    """
    chex.assert_equal_shape((regions, labels))
    batch = regions.shape[0]

    def of_image(region: Array, label: Array) -> Array:
        place = jnp.where(label != IGNORE, region * classes + label, num_regions * classes)
        return jnp.zeros(num_regions * classes, jnp.int32).at[place].add(1, mode="drop")

    pixels = (x.reshape(batch, -1).astype(jnp.int32) for x in (regions, labels))
    counts = jax.vmap(of_image)(*pixels).reshape(batch, num_regions, classes)
    total = counts.sum(axis=-1)
    return counts / jnp.maximum(total, 1)[..., None], total


def region_entropy(distribution: Array) -> Array:
    """Entropy in nats of distributions over the last axis: [..., K] -> [...]."""
    return jax.scipy.special.entr(distribution).sum(axis=-1)


def region_mean(features: Array, regions: Array, num_regions: int) -> Array:
    """The mean over a region's pixels of features resized bilinearly to the regions' size.

    The resized features never exist: the mean is a product with the [N, h*w] matrix of how much of
    each feature goes into each region.

    Args:
        features: [B, h, w, C]; half-pixel centres map them onto the regions' grid.
        regions: int [B, H, W] in 0..num_regions-1.
        num_regions: N.

    Returns:
        [B, N, C] of features' dtype, computed in float32; 0 for an empty region.
    """
    chex.assert_equal_shape_prefix((features, regions), 1)
    batch, rows, cols, channels = features.shape
    tokens = rows * cols
    (y, y_share), (x, x_share) = map(resize.taps, regions.shape[1:], (rows, cols))
    # [H, W, 4]: the tokens around every pixel, and their shares.
    near = (y[:, None, :, None] * cols + x[:, None, :]).reshape(*regions.shape[1:], 4)
    share = (y_share[:, None, :, None] * x_share[:, None, :]).reshape(near.shape)

    def mixture(region: Array) -> Array:
        place = region[..., None] * tokens + near
        sums = jnp.zeros(num_regions * tokens).at[place].add(share, mode="promise_in_bounds")
        sums = sums.reshape(num_regions, tokens)
        return sums / jnp.maximum(sums.sum(axis=1, keepdims=True), 1e-6)

    flat = features.reshape(batch, tokens, channels).astype(jnp.float32)
    return product("bnt,btc->bnc", jax.vmap(mixture)(regions), flat).astype(features.dtype)


def paint_regions(values: Array, regions: Array) -> Array:
    """Every pixel gets what its region has: [B, N, ...] and int [B, H, W] -> [B, H, W, ...]."""
    return jax.vmap(take)(values, regions)
