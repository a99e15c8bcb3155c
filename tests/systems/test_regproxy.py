"""RegProxy as the rest of segjax sees it: init, loss, predict."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import systems
from segjax.errors import SegjaxError
from segjax.ops import resize
from segjax.structs import IGNORE

SMALL = dict(
    system="regproxy",
    backbone=dict(width=32, depth=3, heads=2, patch=8),
    classes=5,
    image_size=(32, 32),
    early_block=0,
    drop_path=0.5,
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3)), jnp.uint8),
        "semantic": jnp.asarray(rng.integers(IGNORE, 5, (4, 32, 32)), jnp.int16),
    }


@pytest.fixture(scope="module")
def trained(batch):
    """A system and variables that are no longer symmetric."""
    system = systems.build(SMALL)
    variables = jax.jit(system.init)(jax.random.key(0), batch)
    return system, jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), variables
    )


def value_and_gradient(system, variables, batch, slices):
    def objective(params):
        return system.loss(variables | {"params": params}, batch, jax.random.key(7), slices)

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])


def test_slices_of_the_batch_give_the_whole_batch_exactly(trained, batch):
    """Loss, batch norm, drop path and gradient: accumulation equals the large batch."""
    system, variables = trained
    whole = value_and_gradient(system, variables, batch, 1)
    for slices in (2, 4):
        chex.assert_trees_all_close(
            value_and_gradient(system, variables, batch, slices), whole, rtol=2e-5, atol=1e-6
        )


def test_scanned_and_rematerialised_blocks_slice_exactly_too(trained, batch):
    system, variables = trained
    thrifty = systems.build(SMALL | dict(scan=True, remat=True))
    chex.assert_trees_all_close(
        value_and_gradient(thrifty, variables, batch, 2),
        value_and_gradient(system, variables, batch, 1),
        rtol=2e-5,
        atol=1e-6,
    )


def test_slices_that_do_not_divide_the_batch_are_refused(trained, batch):
    with pytest.raises(
        SegjaxError, match=r"config\.accumulate: 3 slices do not divide the batch of 4"
    ):
        value_and_gradient(*trained, batch, 3)


def test_labels_are_the_argmax_of_the_resized_scores(trained, batch):
    system, variables = trained
    semantic = jax.jit(system.predict)(variables, batch)
    chex.assert_shape(semantic.scores, (4, 16, 16, 5))
    full = resize.bilinear(semantic.scores, (32, 32))
    first, second = np.sort(full, axis=-1)[..., -1], np.sort(full, axis=-1)[..., -2]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(semantic.labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.99
    chex.assert_shape(semantic.regions, (4, 16, 16))


def test_loss_denominators_differ_by_the_share_of_labelled_pixels(trained, batch):
    system, variables = trained
    valid = systems.build(SMALL | dict(loss_over="valid"))
    over_all, _ = system.loss(variables, batch, jax.random.key(0))
    over_valid, _ = valid.loss(variables, batch, jax.random.key(0))
    share = (batch["semantic"] != IGNORE).mean()
    np.testing.assert_allclose(over_all, over_valid * share, rtol=1e-5)


def test_pixels_outside_the_image_size_count_as_mean_colour(trained, batch):
    system, variables = trained
    size = jnp.full((4, 2), 24, jnp.int32)
    garbage = batch["image"].at[:, 24:].set(201).at[:, :, 24:].set(77)
    clean = batch["image"].at[:, 24:].set(0).at[:, :, 24:].set(0)
    chex.assert_trees_all_equal(
        system.predict(variables, {"image": garbage, "image_size": size}).scores,
        system.predict(variables, {"image": clean, "image_size": size}).scores,
    )


def test_an_early_block_of_the_last_layer_takes_the_normalised_map(batch):
    system = systems.build(SMALL | dict(early_block=2))
    variables = system.init(jax.random.key(0), batch)
    outputs = system.module.apply(variables, batch["image"].astype(jnp.float32))
    chex.assert_trees_all_equal(outputs.early, outputs.last)


def test_gradients_reach_every_parameter(trained, batch):
    system, variables = trained
    _, gradient = value_and_gradient(system, variables, batch, 1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), jax.tree_util.keystr(path)


def test_half_precision_loss_is_close(trained, batch):
    system, variables = trained
    rough = systems.build(SMALL | dict(dtype="bfloat16"))
    exact, _ = system.loss(variables, batch, jax.random.key(0))
    value, _ = rough.loss(variables, batch, jax.random.key(0))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-2)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(system="regproxi"), "there is no system 'regproxi'"),
        (dict(regoin=(2, 2)), r"config\.model\.regoin is not a field .* config\.model\.region"),
        (dict(backbone="vit_x16"), "'vit_x16' is not a known backbone"),
        (dict(backbone=dict(width=32)), "exactly width, depth, heads and patch"),
        (dict(image_size=(30, 32)), "not a multiple of the patch"),
        (dict(early_block=3), r"early_block: 3 is not a block of 3"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_model_field_is_named(change, message):
    with pytest.raises(SegjaxError, match=message):
        systems.build(SMALL | change)


def test_a_missing_model_field_is_named():
    with pytest.raises(SegjaxError, match=r"config\.model\.classes is missing"):
        systems.build(dict(system="regproxy"))
