"""Superpixels: plain references, what makes them regions, and scikit-image on real photographs."""

import functools
import pathlib

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads
from PIL import Image
from scipy import ndimage

from segjax.ops import resize, superpixels
from segjax.structs import IGNORE

SAMPLE = pathlib.Path(__file__).parents[3] / "shared" / "realdata" / "coco_panoptic_sample"

# (H, W) and grid: whole cells, ragged ones, one cell, a row, a cell per pixel, one pixel.
SHAPES = [
    ((24, 32), (3, 4)),
    ((37, 50), (5, 6)),
    ((20, 31), (1, 1)),
    ((7, 40), (1, 7)),
    ((6, 5), (6, 5)),
    ((1, 1), (1, 1)),
]

slic = jax.jit(superpixels.slic, static_argnums=1, static_argnames="iterations")
components = jax.jit(superpixels.components)


def photo(size, batch=1, seed=0):
    """uint8 [B, H, W, 3]: soft blobs and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (batch, 1 + size[0] // 6, 1 + size[1] // 6, 3))
    smooth = np.stack([cv2.resize(x, size[::-1], interpolation=cv2.INTER_CUBIC) for x in coarse])
    noisy = smooth.reshape(batch, *size, 3) + rng.normal(0, 6, (batch, *size, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def parts_of(regions):
    """The 4-connected components of [H, W], numbered from 0, as scipy finds them."""
    numbers = np.zeros(regions.shape, int)
    count = 0
    for value in np.unique(regions):
        found, more = ndimage.label(regions == value)
        numbers[found > 0] = found[found > 0] + count - 1
        count += more
    return numbers


def assert_connected(regions):
    assert len(np.unique(parts_of(regions))) == len(np.unique(regions))


# --------------------------------------------------------------------------------------------------
# Colour


def test_lab_is_scikit_images():
    color = pytest.importorskip("skimage.color", reason="scikit-image is the oracle of CIELAB")
    levels = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    dark = np.arange(256)[None, :, None].repeat(3, axis=2)
    rgb = np.concatenate([grid, dark], axis=1).astype(np.uint8)
    ours = jax.jit(superpixels.lab)(rgb)
    np.testing.assert_allclose(ours, color.rgb2lab(rgb / 255.0), atol=3e-3)


def test_lab_is_opencvs():
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    theirs = cv2.cvtColor(np.float32(rgb / 255), cv2.COLOR_RGB2Lab)
    np.testing.assert_allclose(superpixels.lab(rgb), theirs, atol=0.5)


def test_colours_out_of_range_are_clipped():
    image = jnp.array([[-20.0, 300.0, 128.0]])
    inside = jnp.array([[0.0, 255.0, 128.0]])
    chex.assert_trees_all_equal(superpixels.lab(image), superpixels.lab(inside))


# --------------------------------------------------------------------------------------------------
# Clustering


def plain_clustering(colour, grid, compactness, iterations):
    """Pixel by pixel, as SLIC says it, with the 3x3 centres around a pixel's own cell."""
    height, width, _ = colour.shape
    rows, columns = (np.arange(n + 1) * side // n for n, side in zip(grid, (height, width)))
    cell_row = np.searchsorted(rows, np.arange(height), side="right") - 1
    cell_column = np.searchsorted(columns, np.arange(width), side="right") - 1
    step = max(height / grid[0], width / grid[1])
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    points = np.concatenate([colour, compactness / step * place], axis=-1)
    owner = cell_row[:, None] * grid[1] + cell_column
    centres = np.stack([points[owner == n].mean(axis=0) for n in range(grid[0] * grid[1])])
    for _ in range(iterations):
        for y, x in np.ndindex(height, width):
            near = [
                i * grid[1] + j
                for i in range(cell_row[y] - 1, cell_row[y] + 2)
                for j in range(cell_column[x] - 1, cell_column[x] + 2)
                if 0 <= i < grid[0] and 0 <= j < grid[1]
            ]
            distances = ((centres[near] - points[y, x]) ** 2).sum(axis=1)
            owner[y, x] = near[distances.argmin()]
        for n in range(len(centres)):
            if (owner == n).any():
                centres[n] = points[owner == n].mean(axis=0)
    return owner


@pytest.mark.parametrize("size, grid", SHAPES[1:5], ids=str)
def test_clustering_is_k_means_over_the_near_centres(size, grid):
    """But for the few pixels that rounding decides."""
    colour = np.asarray(superpixels.lab(photo(size)))
    cells = superpixels.Cells.of(size, grid)
    cluster = jax.jit(lambda x, m, times: superpixels.clustered(x, cells, m, times))
    for compactness, iterations in ((10.0, 4), (60.0, 1), (10.0, 0)):
        ours = np.asarray(cluster(colour, compactness, iterations))[0]
        wanted = plain_clustering(np.float64(colour[0]), grid, compactness, iterations)
        assert (ours == wanted).mean() >= 0.998


def test_both_forms_of_the_sums_agree():
    rng = np.random.default_rng(0)
    nearest = rng.integers(-1, 9, (2, 3, 4, 20)).astype(np.int8)
    features = rng.normal(size=(2, 3, 4, 20, 6)).astype(np.float32)
    wanted = np.zeros((2, 3, 4, 9, 6))
    for *cell, p in np.ndindex(nearest.shape):
        if nearest[*cell, p] >= 0:
            wanted[*cell, nearest[*cell, p]] += features[*cell, p]
    for form in (superpixels.sums_by_product, superpixels.sums_by_scatter):
        sums = jax.jit(form)(nearest, features)
        np.testing.assert_allclose(sums, wanted, atol=1e-5)


@pytest.mark.parametrize("size, grid", [*SHAPES, ((3, 2), (2, 1)), ((11, 7), (4, 3))], ids=str)
def test_every_pixel_has_one_slot_at_the_place_it_says(size, grid):
    cells = superpixels.Cells.of(size, grid)
    x = np.arange(size[0] * size[1]).reshape(1, *size)
    split = np.asarray(cells.split(x))
    chex.assert_trees_all_equal(cells.join(split), x)
    used = cells.used()
    assert sorted(split[0][used]) == list(range(x.size))
    pixels = np.divmod(split[0], size[1])
    for pixel, place, middle in zip(pixels, cells.places(), cells.middles()):
        shown = np.broadcast_to(place + middle[..., None], used.shape)
        np.testing.assert_allclose(shown[used], pixel[used], atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Superpixels


@pytest.mark.parametrize("size, grid", SHAPES, ids=str)
def test_every_superpixel_is_connected_and_large_enough(size, grid):
    count = grid[0] * grid[1]
    for image in (photo(size), np.full((1, *size, 3), 77, np.uint8)):
        regions = np.asarray(slic(image, grid))
        chex.assert_shape(regions, (1, *size))
        assert regions.dtype == np.int32 and regions.min() >= 0 and regions.max() < count
        assert_connected(regions[0])
        sizes = np.bincount(regions.reshape(-1))
        assert sizes[sizes > 0].min() >= min(0.25 * size[0] * size[1] / count, sizes.max())


@pytest.mark.parametrize("size, grid", SHAPES, ids=str)
def test_an_image_of_one_colour_is_cut_into_cells(size, grid):
    regions = slic(np.full((1, *size, 3), 200, np.uint8), grid)
    sides = np.divide(size, grid)
    if sides.max() == sides.min() or min(grid) == 1:  # else nearest centres are not the cell's
        np.testing.assert_array_equal(regions[0], superpixels.square_regions(size, grid))


def test_images_of_a_batch_do_not_meet():
    images = photo((37, 50), batch=3)
    images[1] = 9  # needs fewer rounds than its neighbours
    alone = [slic(images[i : i + 1], (5, 6))[0] for i in range(3)]
    np.testing.assert_array_equal(slic(images, (5, 6)), alone)


def test_floats_are_cut_like_bytes():
    image = photo((37, 50))
    chex.assert_trees_all_equal(slic(image, (5, 6)), slic(np.float32(image), (5, 6)))


def test_superpixels_follow_a_colour_edge_that_squares_cross():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 13:] = (200, 30, 60)
    left, right = (np.unique(x) for x in np.split(slic(image, (4, 4))[0], [13], axis=1))
    assert not set(left) & set(right)
    squares = np.split(superpixels.square_regions((32, 32), (4, 4)), [13], axis=1)
    assert set(np.unique(squares[0])) & set(np.unique(squares[1]))


def test_more_compact_superpixels_have_shorter_borders():
    loose, tight = (slic(photo((37, 50)), (5, 6), compactness=m)[0] for m in (2.0, 80.0))
    lengths = [border(np.asarray(regions)).sum() for regions in (loose, tight)]
    assert lengths[0] > 1.2 * lengths[1]


def test_a_grid_finer_than_the_image_is_refused():
    with pytest.raises(ValueError, match="grid"):
        superpixels.slic(jnp.zeros((1, 4, 8, 3)), (5, 8))


@pytest.mark.parametrize(
    "size, grid, wanted",
    [
        ((4, 4), (2, 2), [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2),
        ((1, 5), (1, 2), [[0, 0, 1, 1, 1]]),
    ],
    ids=str,
)
def test_squares_are_numbered_row_by_row(size, grid, wanted):
    np.testing.assert_array_equal(superpixels.square_regions(size, grid), wanted)


# --------------------------------------------------------------------------------------------------
# Connected regions


def first_pixels(parts):
    """The row-major index of the first pixel of each pixel's part."""
    _, first, number = np.unique(parts, return_index=True, return_inverse=True)
    return first[number].reshape(parts.shape)


@given(hnp.arrays(np.int32, (7, 9), elements=st.integers(0, 2)))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_components_are_scipys(regions):
    np.testing.assert_array_equal(components(regions[None])[0], first_pixels(parts_of(regions)))


def test_components_of_a_long_snake():
    """A path of one pixel's width through the whole image, and what it leaves."""
    snake = np.zeros((31, 40), np.int32)
    snake[::2] = 1
    snake[1::4, -1] = snake[3::4, 0] = 1
    both = np.stack([snake, snake[:, ::-1]])
    wanted = np.stack([first_pixels(parts_of(x)) for x in both])
    np.testing.assert_array_equal(components(both), wanted)
    assert len(np.unique(wanted[0][snake > 0])) == 1


def plain_connected(regions, colour, num_regions, smallest):
    """One component after another, as the docstring says it."""
    parts = parts_of(regions)
    parts = np.unique(first_pixels(parts), return_inverse=True)[1].reshape(parts.shape)
    where = [parts == p for p in range(parts.max() + 1)]
    sizes = np.array([w.sum() for w in where])
    number = np.array([regions[w][0] for w in where])
    enough = sizes >= min(smallest, sizes.max())
    owner = np.full(regions.shape, -1)
    for n in range(num_regions):
        mine = [p for p in np.flatnonzero(number == n) if enough[p]]
        if mine:
            owner[where[max(mine, key=lambda p: sizes[p])]] = n
    free = [n for n in range(num_regions) if not (owner == n).any()]
    for p in np.flatnonzero(enough):
        if owner[where[p]][0] < 0 and free:
            owner[where[p]] = free.pop(0)
    tones = {n: colour[owner == n].mean(axis=0) for n in np.unique(owner) if n >= 0}
    while (owner < 0).any():
        before = owner.copy()
        for w in where:
            if before[w][0] < 0:
                near = np.unique(before[ndimage.binary_dilation(w) & ~w])
                near = [n for n in near if n >= 0]
                tone = colour[w].mean(axis=0)
                if near:
                    owner[w] = min(near, key=lambda n: ((tones[n] - tone) ** 2).sum())
    return owner


@functools.partial(jax.jit, static_argnums=(2, 3))
def connected(regions, colour, num_regions, smallest):
    return superpixels.connected(regions, colour, num_regions, smallest)


@given(
    hnp.arrays(np.int32, (7, 9), elements=st.integers(0, 4)),
    st.integers(0, 1000),
    st.sampled_from([1.0, 4.0, 1000.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_connecting_is_the_plain_way(regions, seed, smallest):
    colour = np.random.default_rng(seed).normal(size=(7, 9, 3)).astype(np.float32)
    ours = np.asarray(connected(regions[None], colour[None], 6, smallest))[0]
    np.testing.assert_array_equal(ours, plain_connected(regions, colour, 6, smallest))
    assert_connected(ours)


def test_what_is_connected_already_stays():
    squares = superpixels.square_regions((12, 20), (3, 4))[None]
    colour = jnp.asarray(photo((12, 20)), jnp.float32)
    chex.assert_trees_all_equal(connected(squares, colour, 12, 5.0), squares)


# --------------------------------------------------------------------------------------------------
# What regions have in common


@functools.partial(jax.jit, static_argnums=(2, 3))
def distribution(regions, labels, num_regions, classes):
    return superpixels.region_distribution(regions, labels, num_regions, classes)


@given(
    hnp.arrays(np.int32, (2, 5, 6), elements=st.integers(0, 3)),
    hnp.arrays(np.int16, (2, 5, 6), elements=st.integers(IGNORE, 2)),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_distributions_are_shares_of_the_labelled_pixels(regions, labels):
    """Eq. 1, without the ignored pixels; region 4 has none at all."""
    shares, labelled = distribution(regions, labels, 5, 3)
    for image, region in np.ndindex(2, 5):
        mine = labels[image][regions[image] == region]
        mine = mine[mine != IGNORE]
        assert labelled[image, region] == len(mine)
        wanted = [(mine == k).sum() / max(len(mine), 1) for k in range(3)]
        np.testing.assert_allclose(shares[image, region], wanted, rtol=1e-6)


def test_entropy_is_in_nats_and_0_for_one_class():
    distributions = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3] * 3, [0.0, 0.0, 0.0]])
    entropy = superpixels.region_entropy(distributions)
    np.testing.assert_allclose(entropy, [0.0, np.log(2), np.log(3), 0.0], atol=1e-6)


@pytest.mark.parametrize("size", [(12, 20), (13, 19), (3, 4), (2, 3)], ids=str)
def test_region_means_are_those_of_resized_features(size):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    regions = rng.integers(0, 5, (2, *size))
    full = np.asarray(resize.bilinear(features, size))
    wanted = np.zeros((2, 6, 5))
    for image, region in np.ndindex(2, 6):
        mine = full[image][regions[image] == region]
        wanted[image, region] = mine.mean(axis=0) if len(mine) else 0.0
    ours = jax.jit(superpixels.region_mean, static_argnums=2)(features, regions, 6)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_region_means_keep_the_dtype_and_are_made_in_float32():
    features = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    mean = superpixels.region_mean(features, jnp.zeros((1, 64, 64), jnp.int32), 1)
    chex.assert_trees_all_equal(mean, jnp.ones((1, 1, 1), jnp.bfloat16))


def test_gradients_of_region_means():
    rng = np.random.default_rng(0)
    regions = jnp.asarray(rng.integers(0, 3, (1, 7, 9)))
    features = jnp.asarray(rng.normal(size=(1, 2, 3, 2)), jnp.float32)
    mean = functools.partial(superpixels.region_mean, regions=regions, num_regions=4)
    check_grads(mean, (features,), order=1, modes=("fwd", "rev"), rtol=1e-2, atol=1e-2)


def test_a_pixel_is_painted_with_its_regions_value():
    rng = np.random.default_rng(0)
    regions = rng.integers(0, 4, (2, 5, 6))
    values = rng.normal(size=(2, 4, 3)).astype(np.float32)
    painted = superpixels.paint_regions(jnp.asarray(values), jnp.asarray(regions))
    wanted = np.stack([value[region] for value, region in zip(values, regions)])
    np.testing.assert_array_equal(painted, wanted)
    numbers = superpixels.paint_regions(jnp.asarray(values[..., 0]), jnp.asarray(regions))
    np.testing.assert_array_equal(numbers, wanted[..., 0])


# --------------------------------------------------------------------------------------------------
# Real photographs


def border(regions):
    found = np.zeros(regions.shape, bool)
    found[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    found[:-1] |= regions[:-1] != regions[1:]
    return found


def boundary_recall(regions, truth, within=2):
    """The share of true borders with a border of regions at most `within` pixels away."""
    near = ndimage.binary_dilation(border(regions), np.ones((2 * within + 1,) * 2))
    return near[border(truth)].mean()


def undersegmentation(regions, truth):
    """How much regions leak over true segments (Neubert, Protzel; 2012), as a share of pixels."""
    parts = [np.unique(x, return_inverse=True)[1].reshape(-1) for x in (regions, truth)]
    both = np.zeros([part.max() + 1 for part in parts])
    np.add.at(both, tuple(parts), 1)
    outside = both.sum(axis=1, keepdims=True) - both
    return np.minimum(both, outside)[both > 0].sum() / both.sum()


def theirs(segmentation, image, at_least, compactness):
    """scikit-image's superpixels, with as many asked for as it takes to get `at_least`."""
    asked = at_least
    while True:
        regions = segmentation.slic(
            image, asked, compactness, max_num_iter=10, start_label=0, enforce_connectivity=True
        )
        if regions.max() + 1 >= at_least:
            return regions
        asked = int(asked * at_least / (regions.max() + 1)) + 1


@pytest.mark.skipif(
    not SAMPLE.is_dir(), reason="the real photographs lie outside of this repository"
)
@pytest.mark.parametrize("name", ["000000142238", "000000439180"])
@pytest.mark.parametrize("side, compactness", [(16, 10.0), (20, 20.0)], ids=str)
def test_superpixels_are_as_good_as_scikit_images(name, side, compactness):
    """On COCO photographs with their panoptic segments; scikit-image gets as many regions or more.

    Measured at sides 10, 16, 20 and 40: our undersegmentation error is lower everywhere, by 3 to
    23 %; recall is 0.07 higher to 0.02 lower (there scikit-image has a sixth more regions). Merging
    twice as large regions, as scikit-image does, or four times the compactness fails.
    """
    segmentation = pytest.importorskip(
        "skimage.segmentation", reason="scikit-image is the oracle of superpixels"
    )
    image = np.asarray(Image.open(SAMPLE / "input_images" / f"{name}.jpg").convert("RGB"))
    segments = Image.open(SAMPLE / "panoptic_examples" / f"{name}.png").convert("RGB")
    truth = np.asarray(segments).astype(int) @ (1, 256, 65536)
    grid = tuple(-(-n // side) for n in image.shape[:2])
    ours = np.asarray(slic(image[None], grid, compactness=compactness))[0]
    other = theirs(segmentation, image, len(np.unique(ours)), compactness)
    assert_connected(ours)
    assert len(np.unique(ours)) > 0.7 * grid[0] * grid[1]
    assert boundary_recall(ours, truth) > boundary_recall(other, truth) - 0.01
    assert undersegmentation(ours, truth) < undersegmentation(other, truth)
