"""Swin against transformers' backbone inside MaskFormer, which keeps the authors' padding and
shift."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import importers
from segjax.backbones import swin
from segjax.backbones.layers import LayerNorm
from segjax.backbones.swin import VARIANTS, Swin
from segjax.backbones.vit import drop_path_scale

DEPTHS, HEADS = (1, 2, 2, 1), (1, 2, 2, 4)


def tiny(**fields):
    return Swin(**(dict(width=8, depths=DEPTHS, heads=HEADS, window=4) | fields))


@functools.cache
def random_variables(model):
    """Every leaf random: biases too, or padding would not be seen."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def variables():
    return random_variables(tiny())


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, image, scale=None):
    return model.apply(variables, image, scale)


def image_of(height, width, batch=2):
    return np.random.default_rng(1).normal(size=(batch, height, width, 3)).astype(np.float32)


def official_name(name):
    """A tensor of `MaskFormerSwinBackbone` under the name of the authors' detection code."""
    for theirs, official in (
        ("model.embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("model.embeddings.norm", "patch_embed.norm"),
        ("model.encoder.", ""),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.self.relative", "attn.relative"),
        ("attention.self.", "attn."),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("hidden_states_norms.", "norm"),
    ):
        name = name.replace(theirs, official)
    return name


@pytest.fixture(scope="module")
def oracle(variables):
    """transformers' backbone with our weights."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is the oracle; pip install .[test]"
    )
    config = transformers.MaskFormerSwinConfig(
        image_size=32,
        embed_dim=8,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    theirs = transformers.MaskFormerSwinBackbone(config).eval()
    published = importers.to_published("swin", {"params": {"backbone": variables["params"]}})
    state = {}
    for name, tensor in theirs.state_dict().items():
        official = official_name(name)
        parts = [part for part in ("query", "key", "value") if f"attn.{part}." in official]
        if name.endswith("relative_position_index") or name.startswith("model.layernorm"):
            state[name] = tensor  # made from the sizes; not used
        elif parts:
            fused = published[official.replace(parts[0], "qkv")]
            number = ("query", "key", "value").index(parts[0])
            state[name] = torch.tensor(np.split(fused, 3)[number])
        else:
            state[name] = torch.tensor(np.array(published[official]))
    theirs.load_state_dict(state)

    def run(image):
        with torch.no_grad():
            maps = theirs(torch.tensor(image).permute(0, 3, 1, 2)).feature_maps
        return [x.permute(0, 2, 3, 1).numpy() for x in maps]

    return run


@pytest.mark.parametrize("size", [(64, 32), (70, 45), (9, 37)], ids=str)
def test_every_level_is_that_of_transformers(oracle, variables, size):
    """Maps of whole windows, of parts of windows, and smaller than one window."""
    levels = run(tiny(), variables, image_of(*size))
    expected = oracle(image_of(*size))
    for name, wanted in zip(("res2", "res3", "res4", "res5"), expected, strict=True):
        np.testing.assert_allclose(levels[name], wanted, rtol=1e-4, atol=1e-4)


def test_sizes_are_rounded_up(variables):
    levels = run(tiny(), variables, image_of(70, 45))
    shapes = [level.shape[1:] for level in levels.values()]
    assert shapes == [(18, 12, 8), (9, 6, 16), (5, 3, 32), (3, 2, 64)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("swin_t", 27_520_698),
        ("swin_s", 48_838_602),
        ("swin_b", 86_880_376),
        ("swin_l", 195_201_204),
    ],
)
def test_the_official_numbers_of_parameters(name, count):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(Swin(**VARIANTS[name]).init, jax.random.key(0), image)
    assert set(variables) == {"params"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


def test_relative_positions_are_those_of_query_minus_key():
    window = 3
    table = swin.relative_positions(window)
    for query in range(window * window):
        for key in range(window * window):
            dy, dx = query // window - key // window, query % window - key % window
            assert table[query, key] == (dy + 2) * 5 + (dx + 2)
    assert len(np.unique(table)) == 25


def test_only_tokens_that_were_neighbours_share_a_region():
    """In a shifted window: those whose distance in it is their distance on the map."""
    size, window, shift = (6, 9), 3, 1
    rows, cols = (np.roll(np.arange(n), -shift) for n in size)
    place = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1)[None]
    place = np.array(swin.to_windows(place, window)[0])  # [windows, 9, 2], where they came from
    inside = np.stack(np.divmod(np.arange(9), 3), axis=-1)
    regions = swin.shift_regions(size, window, shift)
    same_step = place[:, :, None] - place[:, None] == (inside[:, None] - inside[None])[None]
    np.testing.assert_array_equal(
        regions[:, :, None] == regions[:, None, :], same_step.all(axis=-1)
    )


def test_windows_come_apart_and_together_again():
    x = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
    windows = swin.to_windows(x, 2)
    np.testing.assert_array_equal(windows[1, 3], x[1, 2:4, 2:4].reshape(4, 3))  # row 1, column 1
    np.testing.assert_array_equal(swin.from_windows(windows, (6, 4), 2), x)


def test_a_branch_scaled_by_zero_is_skipped(variables):
    """Without branches only patch embedding, merging and norms are left."""
    none = run(tiny(), variables, image_of(16, 16), jnp.zeros((6, 2, 2)))
    bare = run(tiny(depths=(0, 0, 0, 0)), variables, image_of(16, 16))
    chex.assert_trees_all_close(none, bare, rtol=1e-5, atol=1e-5)


def test_drop_path_is_per_image_and_block(variables):
    """A scale of 1 changes nothing; what one image loses leaves the other as it is."""
    image = image_of(16, 16)
    whole = run(tiny(), variables, image)
    scale = jnp.ones((6, 2, 2)).at[5, 1, 0].set(0.0)  # the last block's MLP on the first image
    levels = run(tiny(), variables, image, scale)
    for name in ("res2", "res3", "res4"):
        chex.assert_trees_all_close(levels[name], whole[name], rtol=1e-5)
    np.testing.assert_allclose(levels["res5"][1], whole["res5"][1], rtol=1e-5)
    assert np.abs(levels["res5"][0] - whole["res5"][0]).max() > 0.1


def test_the_rate_of_drop_path_grows_over_all_blocks():
    scale = drop_path_scale(jax.random.key(0), 0.3, sum(VARIANTS["swin_t"]["depths"]), 4000)
    assert scale.shape == (12, 2, 4000)
    kept = (scale > 0).mean(axis=(1, 2))
    np.testing.assert_allclose(kept, 1 - np.linspace(0, 0.3, 12), atol=0.02)


SHORT = dict(depths=(2,), heads=(2,))


@functools.partial(jax.jit, static_argnums=1)
def total_and_slopes(variables, model, image):
    def total(params):
        levels = model.apply({"params": params}, image)
        return sum(jnp.sum(jnp.sin(level)) for level in levels.values())

    return jax.value_and_grad(total)(variables["params"])


def test_remat_changes_no_value_and_no_gradient():
    variables, image = random_variables(tiny(**SHORT)), image_of(20, 12, batch=1)
    plain, again = (
        total_and_slopes(variables, tiny(remat=remat, **SHORT), image) for remat in (False, True)
    )
    chex.assert_trees_all_close(again, plain, rtol=1e-4, atol=1e-4)


def test_every_parameter_has_the_gradient_of_finite_differences():
    """Along a random direction that moves all of them, the shifted blocks' tables too."""
    model = tiny(depths=(1, 2), heads=(1, 2))
    variables, image = random_variables(model), image_of(20, 12, batch=1)
    _, slopes = total_and_slopes(variables, model, image)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
    rng = np.random.default_rng(2)
    step = jax.tree.map(lambda x: rng.normal(0, 1e-4, x.shape).astype(np.float32), variables)
    ahead = jax.tree.map(np.add, variables, step)
    behind = jax.tree.map(np.subtract, variables, step)
    (high, _), (low, _) = (total_and_slopes(moved, model, image) for moved in (ahead, behind))
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(step))
    np.testing.assert_allclose((high - low) / 2, sum(jnp.vdot(a, b) for a, b in pairs), rtol=0.02)


def test_bfloat16_stays_close_to_float32():
    variables, image = random_variables(tiny(**SHORT)), image_of(20, 28)
    exact = run(tiny(**SHORT), variables, image)["res2"]
    rough = run(tiny(dtype=jnp.bfloat16, **SHORT), variables, image)["res2"]
    assert rough.dtype == jnp.bfloat16
    error = jnp.linalg.norm(rough.astype(jnp.float32) - exact)
    assert error / jnp.linalg.norm(exact) < 0.03


def test_what_goes_on_is_not_normalised(variables):
    """The norm of a level changes that level alone."""
    image = image_of(16, 16, batch=1)
    other = {"params": dict(variables["params"])}
    other["params"]["norm1"] = jax.tree.map(lambda x: x + 1.0, other["params"]["norm1"])
    before, after = (run(tiny(), v, image) for v in (variables, other))
    for name in ("res2", "res4", "res5"):
        chex.assert_trees_all_equal(before[name], after[name])
    assert np.abs(before["res3"] - after["res3"]).max() > 0.1


def test_merging_takes_the_row_first():
    x = np.arange(4.0, dtype=np.float32).reshape(1, 2, 2, 1)
    merging = swin.PatchMerging()
    variables = merging.init(jax.random.key(0), x)
    variables["params"]["reduction"]["kernel"] = jnp.eye(4)[:, :2]
    norm = {"params": variables["params"]["norm"]}
    wanted = LayerNorm(1e-5).apply(norm, jnp.array([[[[0.0, 2.0, 1.0, 3.0]]]]))[..., :2]
    np.testing.assert_allclose(merging.apply(variables, x), wanted, rtol=1e-6)
