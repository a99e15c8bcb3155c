"""UPerNet on a ViT as the rest of segjax sees it."""

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
    system="upernet",
    backbone=dict(width=32, depth=4, heads=2, patch=8),
    classes=5,
    image_size=(48, 48),
    levels=(0, 1, 2, 3),
    neck_features=8,
    features=8,
    auxiliary_features=8,
    drop_path=0.5,
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (4, 48, 48, 3)), jnp.uint8),
        "semantic": jnp.asarray(rng.integers(IGNORE, 5, (4, 48, 48)), jnp.int16),
    }


@pytest.fixture(scope="module")
def trained(batch):
    """A system and variables that are no longer symmetric."""
    system = systems.build(SMALL)
    variables = jax.jit(system.init)(jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    return system, jax.tree.map(
        lambda x: np.float32(x + 0.1 * np.abs(rng.normal(size=x.shape))), variables
    )


@pytest.fixture(scope="module")
def whole(trained, batch):
    return value_and_gradient(*trained, batch, 1)


def value_and_gradient(system, variables, batch, slices):
    def objective(params):
        return system.loss(variables | {"params": params}, batch, jax.random.key(7), slices)

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])


def test_slices_of_the_batch_give_the_whole_batch_exactly(trained, batch, whole):
    """Also dropout: the heads see the whole batch, so it is drawn once."""
    sliced = value_and_gradient(*trained, batch, 2)
    chex.assert_trees_all_close(sliced, whole, rtol=1e-4, atol=2e-6)


def test_the_loss_is_that_of_both_heads_and_reaches_every_parameter(whole):
    (value, (scalars, _)), gradient = whole
    assert set(scalars) == {"accuracy", "loss_main", "loss_aux_0"}
    both = scalars["loss_main"] + 0.4 * scalars["loss_aux_0"]
    np.testing.assert_allclose(value, both, rtol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), jax.tree_util.keystr(path)


def test_the_loss_depends_on_its_random_key_alone(trained, batch):
    _, variables = trained
    still = systems.build(SMALL | dict(drop_path=0.0))
    loss = jax.jit(still.loss)
    losses = [loss(variables, batch, jax.random.key(n))[0] for n in (0, 0, 1)]
    assert losses[0] == losses[1] and losses[0] != losses[2]  # channels are dropped
    quiet = systems.build(SMALL | dict(drop_path=0.0, dropout=0.0))
    loss = jax.jit(quiet.loss)
    first, second = (loss(variables, batch, jax.random.key(n))[0] for n in (0, 1))
    assert first == second


def test_labels_are_the_argmax_of_the_resized_scores(trained, batch):
    system, variables = trained
    semantic = jax.jit(system.predict)(variables, batch)
    chex.assert_shape(semantic.scores, (4, 24, 24, 5))
    full = resize.bilinear(semantic.scores, (48, 48))
    first, second = np.sort(full, axis=-1)[..., -1], np.sort(full, axis=-1)[..., -2]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(semantic.labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.98


def test_the_last_level_is_normalised_and_the_others_are_not(trained):
    """What sets mmsegmentation's `ln_mln` apart from its `mln`."""
    system, variables = trained

    def by_hand(module, image):
        levels = module.backbone(image)
        maps = [levels[name] for name in ("block_0", "block_1", "block_2", "norm")]
        return module.head(module.neck(maps), False)

    @jax.jit
    def both(image):
        wanted = system.module.apply(variables, image, method=by_hand)
        return system.module.apply(variables, image).scores, wanted

    scores, wanted = both(jnp.ones((1, 48, 48, 3)))
    chex.assert_trees_all_close(scores, wanted, rtol=1e-5, atol=1e-5)


def test_evaluation_runs_no_auxiliary_head(trained, batch):
    system, variables = trained
    without = {
        collection: {k: v for k, v in tree.items() if k != "auxiliary"}
        for collection, tree in variables.items()
    }
    chex.assert_trees_all_equal(*(jax.jit(system.predict)(v, batch) for v in (without, variables)))


def test_images_of_odd_grids_are_labelled(trained):
    """7 x 5 tokens: the pyramid's coarsest map has 3 x 2."""
    system, variables = trained
    image = jax.random.normal(jax.random.key(0), (1, 55, 37, 3))
    semantic = jax.jit(system.predict)(variables, {"image": image})
    chex.assert_shape(semantic.scores, (1, 28, 20, 5))
    chex.assert_shape(semantic.labels, (1, 55, 37))


def test_half_precision_loss_is_close(batch):
    """At the initial weights, where scores are small."""
    system, rough = systems.build(SMALL), systems.build(SMALL | dict(dtype="bfloat16"))
    variables = jax.jit(system.init)(jax.random.key(0), batch)
    exact, value = (
        jax.jit(one.loss)(variables, batch, jax.random.key(0))[0] for one in (system, rough)
    )
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-2)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(levels=(0, 1, 2)), r"config\.model\.levels: .* are 3 blocks.*4 sizes"),
        (dict(levels=(0, 1, 2, 9)), "of the 4 blocks"),
        (dict(neck_feature=4), r"did you mean config\.model\.neck_features"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_model_field_is_named(change, message):
    with pytest.raises(SegjaxError, match=message):
        systems.build(SMALL | change)
