"""Both forms of deformable sampling are the pure PyTorch one, gradients included."""

import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.ops import deformable

LEVELS = ((2, 3), (4, 6), (3, 5))
PIXELS = sum(h * w for h, w in LEVELS)
FORMS = {
    "chosen": deformable.sample,
    "gathers": lambda value, shapes, *rest: deformable.by_gathers(shapes, value, *rest),
    "products": lambda value, shapes, *rest: deformable.by_products(shapes, value, *rest),
}


@functools.cache
def inputs(batch=2, queries=7, heads=2, channels=4, points=3):
    """value, locations (some beyond the edges), weights, and a slope of the result."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (batch, queries, heads, len(LEVELS), points)
    value = jax.random.normal(keys[0], (batch, PIXELS, heads, channels))
    locations = jax.random.uniform(keys[1], (*shape, 2), minval=-0.3, maxval=1.3)
    weights = jax.random.uniform(keys[2], shape)
    return value, locations, weights, jax.random.normal(keys[3], (*shape[:2], heads * channels))


def with_slopes(form, value, locations, weights, slope):
    """The result and the slopes of the three inputs."""

    def sample(value, locations, weights):
        return form(value, LEVELS, locations, weights).reshape(slope.shape)

    mixed, pull = jax.vjp(sample, value, locations, weights)
    return mixed, *pull(slope.astype(mixed.dtype))


compiled = jax.jit(with_slopes, static_argnums=0)


def torch_sample(torch, value, locations, weights):
    batch, queries, heads = locations.shape[:3]
    parts = value.split([h * w for h, w in LEVELS], dim=1)
    mixed = 0
    for level, (part, (h, w)) in enumerate(zip(parts, LEVELS, strict=True)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, -1, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        found = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
        shares = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        mixed = mixed + (found * shares).sum(dim=-1)  # [B*heads, D, N]
    return mixed.reshape(batch, -1, queries).transpose(1, 2)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_values_and_gradients_are_those_of_torch(form):
    torch = pytest.importorskip("torch")
    *given, slope = inputs()
    theirs = [torch.tensor(np.asarray(x)).requires_grad_() for x in given]
    mixed = torch_sample(torch, *theirs)
    expected = mixed, *torch.autograd.grad(mixed, theirs, torch.tensor(np.asarray(slope)))
    found = compiled(form, *given, slope)
    for ours, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, right.detach().numpy(), atol=2e-5)


@pytest.mark.parametrize("tile", [1, 3 * 2 * PIXELS])
def test_the_tiling_of_products_changes_nothing(monkeypatch, tile):
    """One query at a time, or three, the last ones padded."""
    given = inputs()
    whole = compiled(FORMS["gathers"], *given)
    monkeypatch.setattr(deformable, "TILE", tile)
    found = jax.jit(functools.partial(with_slopes, FORMS["products"]))(*given)
    chex.assert_trees_all_close(found, whole, atol=1e-5)


def test_both_forms_have_the_same_slope_at_pixel_centres():
    """Where the initial offsets put the points: the slope is that to the right and below."""
    value, _, weights, slope = inputs()
    index = jax.random.randint(jax.random.key(5), (2, 7, 2, 3, 3, 2), -1, 6)
    sizes = jnp.array([[[w, h]] for h, w in ((2, 4), (4, 8), (4, 4))])
    levels = ((4, 2), (8, 4), (4, 4))  # powers of two, so that no rounding moves a point
    pixels = sum(h * w for h, w in levels)
    value = jnp.resize(value, (2, pixels, 2, 4))
    locations = (index + 0.5) / sizes[..., ::-1]

    def slopes(form):
        def total(locations):
            return (form(value, levels, locations, weights).reshape(slope.shape) * slope).sum()

        return jax.jit(jax.grad(total))(locations)

    by_gathers, by_products = slopes(FORMS["gathers"]), slopes(FORMS["products"])
    assert jnp.abs(by_gathers).max() > 1
    chex.assert_trees_all_close(by_gathers, by_products, atol=1e-4)


def test_a_constant_map_gives_the_constant_inside_and_nothing_far_outside():
    _, locations, weights, _ = inputs()
    ones = jnp.ones((2, PIXELS, 2, 4))

    @jax.jit
    def sample_at(place):
        return deformable.sample(ones, LEVELS, jnp.full_like(locations, place), weights)

    total = weights.sum(axis=(3, 4))
    chex.assert_trees_all_close(sample_at(0.5), jnp.repeat(total, 4, axis=-1), rtol=1e-5)
    for beyond in (-1.0, 2.0, 1e9, jnp.inf):
        assert not sample_at(beyond).any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_half_precision_keeps_its_type_and_is_close(form):
    value, *rest = inputs()
    exact = compiled(FORMS["gathers"], value, *rest)
    rough = compiled(form, value.astype(jnp.bfloat16), *rest)
    assert rough[0].dtype == rough[1].dtype == jnp.bfloat16
    assert rough[2].dtype == rough[3].dtype == jnp.float32
    for ours, right in zip(rough, exact, strict=True):
        assert jnp.linalg.norm(ours - right) <= 0.01 * jnp.linalg.norm(right)


@pytest.mark.parametrize("backend, devices", [("cpu", 1), ("cpu", 8), ("gpu", 1)])
def test_images_and_heads_one_by_one_or_side_by_side_are_the_same(monkeypatch, backend, devices):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    given = inputs()
    found = jax.jit(functools.partial(with_slopes, FORMS["gathers"]))(*given)
    chex.assert_trees_all_close(found, compiled(FORMS["products"], *given), atol=1e-5)


def test_spread_images_stay_where_they_are():
    """The program of a batch over 8 devices, gradient included, moves nothing between them."""
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    given = jax.device_put(inputs(batch=8), spread)
    program = jax.jit(functools.partial(with_slopes, deformable.sample)).lower(*given).compile()
    moves = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not any(move in program.as_text() for move in moves)
    expected = compiled(FORMS["products"], *inputs(batch=8))
    chex.assert_trees_all_close(program(*given), expected, atol=1e-5)


def test_what_is_kept_for_the_gradient_is_small(monkeypatch):
    """The four pixels of every point would be 16 MB here, the dense weights 1.4 MB a head."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shapes = [x.shape for x in inputs(batch=1, queries=448, heads=8, channels=32, points=4)]
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(functools.partial(with_slopes, deformable.sample)).lower(*given).compile()
    assert program.memory_analysis().temp_size_in_bytes < 8e6


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_accelerators_on_any_machine(platform):
    given = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in inputs()]
    function = jax.jit(functools.partial(with_slopes, deformable.sample))
    program = jax.export.export(function, platforms=[platform])(*given)
    assert program.out_avals[0].shape == given[3].shape
    # The TPU's form reads no rows and adds to none.
    assert ("stablehlo.scatter" in program.mlir_module()) == (platform == "cuda")
