"""The vision transformer: what its options may change and what they may not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.backbones import vit
from segjax.backbones.vit_hybrid import ResNetStem


def small_vit(**fields):
    shape = dict(width=32, depth=3, heads=2, patch=8, image_size=(32, 32))
    return vit.ViT(**(shape | fields))


@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


@pytest.fixture(scope="module")
def variables(image):
    return small_vit().init(jax.random.key(1), image)


def final_sum(model, variables, image):
    return jnp.sum(jnp.sin(model.apply(variables, image)["norm"]))


@pytest.mark.parametrize(
    "options", [dict(scan=True), dict(remat=True), dict(scan=True, remat=True)], ids=str
)
def test_scan_and_remat_change_no_value_and_no_gradient(options, image, variables):
    chex.assert_trees_all_close(
        small_vit(**options).apply(variables, image),
        small_vit().apply(variables, image),
        rtol=1e-5,
        atol=1e-6,
    )
    gradient = jax.grad(final_sum, argnums=1)
    chex.assert_trees_all_close(
        gradient(small_vit(**options), variables, image),
        gradient(small_vit(), variables, image),
        rtol=1e-4,
        atol=1e-5,
    )


def test_scan_keeps_the_parameter_layout(image, variables):
    scanned = small_vit(scan=True).init(jax.random.key(1), image)
    chex.assert_trees_all_equal(scanned, variables)


def test_every_level_is_a_map_without_extra_tokens(image):
    model = small_vit(distilled=True)
    variables = model.init(jax.random.key(1), image)
    levels = model.apply(variables, image)
    tokens = levels.pop("tokens")
    assert set(levels) == {"embedded", "block_0", "block_1", "block_2", "norm"}
    for level in levels.values():
        chex.assert_shape(level, (2, 4, 4, 32))
    assert variables["params"]["pos_embed"].shape == (1, 2 + 16, 32)
    chex.assert_trees_all_equal(tokens[:, 2:].reshape(2, 4, 4, 32), levels["norm"])


def test_without_final_norm_there_are_no_parameters_for_it(image, variables):
    model = small_vit(final_norm=False)
    bare = model.init(jax.random.key(1), image)
    assert set(variables["params"]) - set(bare["params"]) == {"norm"}
    levels = model.apply(bare, image)
    assert "norm" not in levels
    chex.assert_trees_all_equal(levels["tokens"][:, 1:].reshape(2, 4, 4, 32), levels["block_2"])


def test_a_dropped_class_token_is_in_the_parameters_but_in_no_block(image, variables):
    model = small_vit(drop_class_token=True)
    levels = model.apply(variables, image)
    assert levels["tokens"].shape == (2, 16, 32)
    other = jax.tree.map(jnp.copy, variables)
    other["params"]["cls_token"] += 1.0
    chex.assert_trees_all_equal(model.apply(other, image), levels)


def test_dropout_acts_only_where_it_is_given_an_rng(image):
    x = jax.random.normal(jax.random.key(2), (2, 9, 32))
    ones = jnp.ones((2, 2))
    block = vit.Block(heads=2, norm_epsilon=1e-6, dropout=0.5)
    plain = vit.Block(heads=2, norm_epsilon=1e-6)
    variables = plain.init(jax.random.key(1), x, ones)
    expected = plain.apply(variables, x, ones)
    chex.assert_trees_all_equal(block.apply(variables, x, ones), expected)
    drawn = [block.apply(variables, x, ones, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.allclose(drawn[0], drawn[1]) and not np.allclose(drawn[0], expected)


def test_an_image_is_padded_with_zeros_to_whole_patches(image, variables):
    ragged = image[:, :27, :30]
    padded = jnp.pad(ragged, ((0, 0), (0, 5), (0, 2), (0, 0)))
    chex.assert_trees_all_close(
        small_vit().apply(variables, ragged),
        small_vit().apply(variables, padded),
        rtol=1e-5,
        atol=1e-6,
    )


def test_position_embedding_is_resized_only_when_the_token_count_differs(variables):
    """As in the released code: 16 x 64 pixels make as many tokens as 32 x 32."""
    same_count = jnp.zeros((1, 16, 64, 3))
    embedded = small_vit().apply(variables, same_count)["embedded"]
    bias = variables["params"]["patch_embed"]["bias"]
    expected = variables["params"]["pos_embed"][0, 1:].reshape(2, 8, 32) + bias
    chex.assert_trees_all_close(embedded[0], expected, rtol=1e-6)


def test_resizing_a_position_embedding_to_its_own_grid_changes_nothing():
    position = jax.random.normal(jax.random.key(0), (1, 2 + 12, 8))
    for method in ("bicubic", "bilinear"):
        same = vit.resize_position(position, (3, 4), (3, 4), 2, method)
        chex.assert_trees_all_close(same, position, rtol=1e-6, atol=1e-6)


def test_a_branch_scaled_by_zero_is_skipped(image, variables):
    levels = small_vit().apply(variables, image, jnp.zeros((3, 2, 2)))
    chex.assert_trees_all_equal(levels["block_2"], levels["embedded"])


def test_drop_path_keeps_the_first_block_and_the_mean():
    scale = vit.drop_path_scale(jax.random.key(0), 0.5, depth=3, batch=4000)
    np.testing.assert_array_equal(scale[0], 1.0)
    np.testing.assert_allclose(np.unique(scale[1]), [0.0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(np.unique(scale[2]), [0.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(scale.mean(axis=(1, 2)), 1.0, atol=0.05)


def test_bfloat16_stays_close_to_float32(image, variables):
    exact = small_vit().apply(variables, image)["norm"]
    rough = small_vit(dtype=jnp.bfloat16).apply(variables, image)["norm"]
    assert rough.dtype == jnp.bfloat16
    error = jnp.linalg.norm(rough.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    assert error < 0.02


def test_hybrid_stem_rounds_sizes_up_and_sows_its_stages():
    stem = ResNetStem((1, 1, 1, 1))
    image = jax.ShapeDtypeStruct((1, 70, 33, 3), jnp.float32)
    out, sown = jax.eval_shape(
        lambda image: stem.init_with_output(
            jax.random.key(0), image, mutable=["params", "intermediates"]
        ),
        image,
    )
    assert out.shape == (1, 3, 2, 2048)
    assert sown["intermediates"]["stage_0"][0].shape == (1, 18, 9, 256)


def test_standardised_kernels_ignore_shift_and_scale():
    image = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    stem = ResNetStem((1, 1, 1, 1))
    variables = stem.init(jax.random.key(1), image)

    def moved(path, leaf):
        return 3.0 * leaf + 0.5 if path[-1].key == "kernel" else leaf

    out = stem.apply(variables, image)
    changed = stem.apply(
        jax.tree_util.tree_map_with_path(moved, {"params": variables["params"]}), image
    )
    chex.assert_trees_all_close(out, changed, rtol=1e-3, atol=1e-4)
