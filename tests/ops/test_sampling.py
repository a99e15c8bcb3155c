"""Points are read as torch.nn.functional.grid_sample reads them, and chosen as PointRend does."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from segjax.ops import sampling

SIZE = (5, 7)

sample_points = jax.jit(sampling.sample_points)
sample_own_points = jax.jit(sampling.sample_own_points)
sample_membership = jax.jit(sampling.sample_membership, static_argnums=2)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def places(seed, *shape):
    """Points of which some lie beyond the edges."""
    return jax.random.uniform(jax.random.key(seed), (*shape, 2), minval=-0.3, maxval=1.3)


def grid_sample(maps, points):
    """[N, C, h, w] and [N, P, 2] -> [N, C, P], by torch."""
    torch = pytest.importorskip("torch")
    maps, points = (torch.tensor(np.asarray(x, np.float32)) for x in (maps, points))
    return torch.nn.functional.grid_sample(
        maps, 2 * points[:, :, None] - 1, padding_mode="zeros", align_corners=False
    )[..., 0].numpy()


@jax.jit
def plain(maps, points):
    """By the definition: the hat function of every pixel at every point."""
    h, w = maps.shape[1:3]
    x, y = points[..., :1] * w - 0.5, points[..., 1:] * h - 0.5
    along = jnp.maximum(1 - jnp.abs(x - jnp.arange(w)), 0)
    across = jnp.maximum(1 - jnp.abs(y - jnp.arange(h)), 0)
    return jnp.einsum("bpi,bpj,bijq->bpq", across, along, maps, precision="highest")


def test_shared_points_are_those_of_grid_sample():
    maps, points = normal(0, 2, *SIZE, 3), places(1, 2, 50)
    expected = grid_sample(maps.transpose(0, 3, 1, 2), points).swapaxes(1, 2)
    chex.assert_trees_all_close(sample_points(maps, points), expected, atol=1e-5)


def test_own_points_are_those_of_grid_sample():
    maps, points = normal(0, 3, *SIZE), places(1, 3, 50)
    expected = grid_sample(maps[:, None], points)[:, 0]
    chex.assert_trees_all_close(sample_own_points(maps, points), expected, atol=1e-5)


def test_pixel_centres_read_the_pixels_and_far_points_zero():
    maps = normal(0, 1, *SIZE, 2)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].reshape(2, -1) + 0.5
    centres = jnp.stack([x / SIZE[1], y / SIZE[0]], axis=-1)[None]
    read = sample_points(maps, centres)
    chex.assert_trees_all_close(read, maps.reshape(1, -1, 2), atol=1e-5)
    far = jnp.array([[[-1.0, 0.5], [0.5, 2.0], [1e9, -1e9], [jnp.inf, 0.5]]])
    chex.assert_trees_all_equal(sample_points(maps, far), jnp.zeros((1, 4, 2)))


@pytest.mark.parametrize("few", [0, 64])
def test_the_gradient_is_that_of_the_definition(monkeypatch, few):
    monkeypatch.setattr(sampling, "FEW", few)
    maps, points = normal(0, 2, *SIZE, 3), places(1, 2, 20)

    def slope(form):
        return jax.jit(jax.grad(lambda maps: jnp.sin(form(maps, points)).sum()))(maps)

    chex.assert_trees_all_close(slope(sampling.sample_points), slope(plain), atol=1e-5)
    own = slope(lambda maps, points: sampling.sample_own_points(maps[..., 0], points))
    each = slope(lambda maps, points: plain(maps[..., :1], points))
    chex.assert_trees_all_close(own, each, atol=1e-5)


@pytest.mark.parametrize("slopes", [sampling._slopes, sampling._slopes_on_cpu])
def test_both_ways_back_are_the_slopes_of_the_mix(slopes):
    table, weights, slope = normal(0, 6, 3), normal(1, 5, 4), normal(2, 5, 3)
    rows = jax.random.randint(jax.random.key(3), (5, 4), 0, 6)

    def mix(table, weights):
        return jnp.einsum("nk,nkd->nd", weights, table[rows])

    _, pull = jax.vjp(mix, table, weights)
    chex.assert_trees_all_close(slopes(table, rows, weights, slope), pull(slope), atol=1e-5)


def test_the_weights_of_a_mix_are_differentiable_in_the_points():
    maps, points = normal(0, *SIZE, 2), places(1, 6, 3)

    def total(maps, points):
        return jnp.sin(sampling.mix_rows(maps.reshape(-1, 2), *sampling.corners(points, *SIZE)))

    check_grads(total, (maps, points), order=1, modes=["rev"], atol=0.02, rtol=0.02)


def test_half_precision_is_summed_in_float32():
    maps, points = normal(0, 1, *SIZE, 3).astype(jnp.bfloat16), places(1, 1, 20)
    read = sample_points(maps, points)
    assert read.dtype == jnp.float32
    slope = jax.jit(jax.grad(lambda maps: sampling.sample_points(maps, points).sum()))
    assert slope(maps).dtype == jnp.bfloat16
    chex.assert_trees_all_close(read, plain(maps.astype(jnp.float32), points), atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_images_one_by_one_or_side_by_side_are_the_same(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    maps, points = normal(0, 3, *SIZE, 2), places(1, 3, 10)
    read = jax.jit(sampling.sample_points)(maps, points)
    chex.assert_trees_all_close(read, plain(maps, points), atol=1e-5)


def test_spread_images_stay_where_they_are():
    """The program of a batch over 8 devices, gradient included, moves nothing between them."""
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    maps, points = normal(0, 8, *SIZE, 2), places(1, 8, 10)

    def both(maps, points):
        read, pull = jax.vjp(lambda maps: sampling.sample_points(maps, points), maps)
        return read, pull(read)[0]

    args = jax.device_put((maps, points), spread)
    program = jax.jit(both).lower(*args).compile()
    moves = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not any(move in program.as_text() for move in moves)
    chex.assert_trees_all_close(program(*args)[0], plain(maps, points), atol=1e-5)


@pytest.mark.parametrize("layers", [None, 2])
def test_membership_is_the_sample_of_each_binary_mask(layers):
    shape = (2, *SIZE) if layers is None else (2, layers, *SIZE)
    segments = jax.random.randint(jax.random.key(0), shape, -1, 4).astype(jnp.int16)
    stacked = segments if layers else segments[:, None]
    masks = (stacked[..., None] == jnp.arange(6)).any(axis=1).astype(jnp.float32)
    points = places(1, 2, 40)
    found = sample_membership(segments, points, 6)
    chex.assert_trees_all_close(found, plain(masks, points), atol=1e-5)
    assert not found[..., 4:].any()  # no pixel holds these


@pytest.mark.parametrize("layers", [None, 2])
def test_own_membership_is_that_column_of_the_membership(layers):
    shape = (2, *SIZE) if layers is None else (2, layers, *SIZE)
    segments = jax.random.randint(jax.random.key(0), shape, -1, 4)
    index = jnp.array([[3, 0, 0], [-1, 2, 5]])
    points = places(1, 2, 3, 20)
    found = jax.jit(sampling.sample_own_membership)(segments, index, points)
    for i in range(3):
        shared = sample_membership(segments, points[:, i], 6)
        for b in range(2):
            expected = shared[b, :, index[b, i]] if index[b, i] >= 0 else jnp.zeros(20)
            chex.assert_trees_all_close(found[b, i], expected, atol=1e-6)


def test_the_uncertain_points_have_the_smallest_logits():
    logits, points = normal(0, 3, 30), places(1, 3, 30)
    chosen = jax.jit(functools.partial(sampling.uncertain, keep=7))(logits, points)
    for n in range(3):
        order = np.argsort(np.abs(logits[n]))[:7]
        np.testing.assert_array_equal(chosen[n], points[n, order])


def test_choosing_gives_the_logits_no_gradient():
    slope = jax.grad(lambda logits: sampling.uncertain(logits, places(1, 2, 9), 3).sum())
    assert not slope(normal(0, 2, 9)).any()
