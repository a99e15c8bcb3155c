"""What DeepLabV3+ and OCRNet do alike as the rest of segjax sees them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import systems
from segjax.errors import SegjaxError
from segjax.ops import resize
from segjax.structs import IGNORE

SMALL = {
    "deeplab_v3plus": dict(
        system="deeplab_v3plus",
        backbone=dict(width=4, depths=(1, 1, 1, 1), deep_stem=True, pool_shortcut=True),
        classes=5,
        features=6,
        early_features=3,
        dilations=(1, 2),
        auxiliary_features=4,
    ),
    "ocrnet": dict(
        system="ocrnet",
        backbone=dict(width=3, stem=4, modules=(1, 1), blocks=1),
        classes=5,
        features=6,
        key_features=4,
    ),
}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (2, 41, 56, 3)), jnp.uint8),
        "semantic": jnp.asarray(rng.integers(IGNORE, 5, (2, 41, 56)), jnp.int16),
    }


@pytest.fixture(scope="module", params=SMALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def made(name, batch):
    """A system and variables that are no longer symmetric."""
    system = systems.build(SMALL[name])
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    return system, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def trained(made, batch):
    system, variables = made

    @jax.jit
    def value_and_gradient(params, rng):
        def objective(params):
            return system.loss({**variables, "params": params}, batch, rng)

        return jax.value_and_grad(objective, has_aux=True)(params)

    return value_and_gradient


def test_the_loss_is_that_of_both_heads_and_reaches_every_parameter(made, trained):
    (value, (scalars, mutated)), gradient = trained(made[1]["params"], jax.random.key(7))
    assert set(scalars) == {"accuracy", "loss_main", "loss_aux_0"}
    both = scalars["loss_main"] + 0.4 * scalars["loss_aux_0"]
    np.testing.assert_allclose(value, both, rtol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), jax.tree_util.keystr(path)
    moved = jax.tree.map(
        lambda a, b: jnp.any(a != b), mutated, {"batch_stats": made[1]["batch_stats"]}
    )
    assert all(jax.tree.leaves(moved))


def test_only_dropout_draws(name, made, trained):
    params = made[1]["params"]
    losses = [trained(params, jax.random.key(n))[0][0] for n in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == (name == "deeplab_v3plus")


def test_labels_are_the_argmax_of_the_resized_scores_also_at_odd_sizes(made, batch):
    system, variables = made
    semantic = jax.jit(system.predict)(variables, batch)
    chex.assert_shape(semantic.scores, (2, 11, 14, 5))
    full = np.asarray(resize.bilinear(semantic.scores, (41, 56)))
    first, second = np.sort(full, axis=-1)[..., -1], np.sort(full, axis=-1)[..., -2]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(semantic.labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.9


def test_evaluation_changes_no_variable_and_training_the_statistics_alone(made, batch):
    system, variables = made
    still, changed = jax.eval_shape(lambda v, b: system.outputs(v, b, None), variables, batch)
    assert changed == {}
    said, changed = jax.eval_shape(
        lambda v, b: system.outputs(v, b, jax.random.key(0)), variables, batch
    )
    chex.assert_trees_all_equal_shapes(changed, {"batch_stats": variables["batch_stats"]})
    for one in (still, said):
        assert one.scores.shape == (2, 11, 14, 5) and one.scores.dtype == jnp.float32
        assert one.features.shape[:1] == (2,)
    assert all(x.dtype == jnp.float32 for x in said.auxiliary) and len(said.auxiliary) == 1


def test_slices_of_the_batch_are_refused(made, batch):
    system, variables = made
    with pytest.raises(SegjaxError, match=r"config\.accumulate is 2.*whole batch at once"):
        system.loss(variables, batch, jax.random.key(0), 2)


def test_half_precision_loss_is_close(name, batch):
    """At the initial weights, where scores are small."""
    rough = systems.build(SMALL[name] | dict(dtype="bfloat16"))
    exact = systems.build(SMALL[name])
    variables = jax.jit(exact.init)(jax.random.key(0), batch)
    wanted, value = (
        jax.jit(one.loss)(variables, batch, jax.random.key(0))[0] for one in (exact, rough)
    )
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-2)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet51", "'resnet51' is not a known backbone of this system; take one of .*(w48|v1d)"),
        (dict(widht=4), "its fields do not describe a (ResNet|HRNet).*widht"),
        (dict(), "its fields do not describe a (ResNet|HRNet).*width"),
    ],
    ids=["name", "field", "missing"],
)
def test_a_wrong_backbone_is_named(name, backbone, message):
    with pytest.raises(SegjaxError, match=message):
        systems.build(SMALL[name] | dict(backbone=backbone))
