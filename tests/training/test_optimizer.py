"""AdamW, Adam and SGD against torch and their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import config as configs
from segjax.errors import SegjaxError
from segjax.training import optimizer as optimizers

CONSTANT = dict(name="constant", warmup_steps=0, warmup_ratio=1.0)


def settings(**changes):
    return {**configs.defaults().optimizer.to_dict(), "learning_rate": 0.1, **changes}


def params():
    leaf = jnp.array([1.0, -2.0, 3.0])
    return {
        "backbone": {
            "pos_embed": leaf,
            "block_0": {"norm1": {"scale": leaf}, "mlp": {"bias": leaf}},
            "block_1": {"mlp": {"bias": leaf}},
            "norm": {"scale": leaf},
        },
        "head": {"norm": {"scale": leaf}},
    }


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_adams_are_torchs(name):
    """AdamW's decay is beside the gradient, Adam's in it."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    gradients = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(values))
    reference = getattr(torch.optim, name)([theirs], lr=0.1, weight_decay=0.2)
    adam = optimizers.make(settings(name=name.lower(), weight_decay=0.2), CONSTANT, 10)
    ours = {"w": jnp.array(values)}
    state = adam.init(ours)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        reference.step()
        updates, state = adam.update({"w": jnp.array(gradient)}, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
    # optax takes 1 - 0.999^t in float32, which is 1.3e-5 off at t = 1; each update is 0.1 long.
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), atol=1.3e-5 * 0.1 * 5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    gradients = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(values))
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.2)
    sgd = optimizers.make(settings(name="sgd", weight_decay=0.2, nesterov=nesterov), CONSTANT, 10)
    ours = {"w": jnp.array(values)}
    state = sgd.init(ours)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        reference.step()
        updates, state = sgd.update({"w": jnp.array(gradient)}, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_rates_multiply_the_update_of_the_first_match():
    gradients = jax.tree.map(jnp.ones_like, params())
    rates = (("^head/", 10.0), ("norm", 3.0))
    sgd = optimizers.make(settings(name="sgd", weight_decay=0.0, rates=rates), CONSTANT, 10)
    updates = sgd.update(gradients, sgd.init(params()), params())[0]
    np.testing.assert_allclose(updates["head"]["norm"]["scale"], -1.0, rtol=1e-6)
    np.testing.assert_allclose(updates["backbone"]["norm"]["scale"], -0.3, rtol=1e-6)
    np.testing.assert_allclose(updates["backbone"]["pos_embed"], -0.1, rtol=1e-6)
    with pytest.raises(SegjaxError, match=r"optimizer\.rates: '\(head' is not a regular"):
        optimizers.rate_multipliers(params(), 1.0, (("(head", 2.0),))


def test_no_decay_names_parameters_by_path():
    mask = optimizers.decay_mask(params(), (r"pos_embed$", r"backbone/(block_\d+/)?norm\d?/"))
    decayed = dict(zip(optimizers.paths(mask), jax.tree.leaves(mask)))
    assert {path for path, yes in decayed.items() if yes} == {
        "backbone/block_0/mlp/bias",
        "backbone/block_1/mlp/bias",
        "head/norm/scale",
    }


def test_parameters_without_decay_stay_where_gradients_are_zero():
    adamw = optimizers.make(settings(no_decay=("norm",), weight_decay=0.5), CONSTANT, 10)
    zero = jax.tree.map(jnp.zeros_like, params())
    updates, _ = adamw.update(zero, adamw.init(params()), params())
    assert not updates["head"]["norm"]["scale"].any()
    np.testing.assert_allclose(updates["backbone"]["pos_embed"], [-0.05, 0.1, -0.15], rtol=1e-6)


def test_layer_decay_falls_with_depth():
    multipliers = optimizers.rate_multipliers(params(), 0.5)
    assert multipliers["backbone"]["pos_embed"] == 0.125
    assert multipliers["backbone"]["block_0"]["mlp"]["bias"] == 0.25
    assert multipliers["backbone"]["block_1"]["mlp"]["bias"] == 0.5
    assert multipliers["backbone"]["norm"]["scale"] == multipliers["head"]["norm"]["scale"] == 1


def test_layer_decay_scales_the_update():
    gradients = jax.tree.map(jnp.ones_like, params())
    updates = []
    for layer_decay in (1.0, 0.5):
        adamw = optimizers.make(settings(layer_decay=layer_decay), CONSTANT, 10)
        updates.append(adamw.update(gradients, adamw.init(params()), params())[0])
    scaled = jax.tree.map(jnp.multiply, updates[0], optimizers.rate_multipliers(params(), 0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates[1], scaled)


def test_the_floor_of_a_schedule_is_the_same_for_every_parameter():
    """mmcv's poly: (base of the group - floor) * (1 - t / n)^power + floor."""
    poly = dict(name="poly", power=0.9, min_rate=1e-3, warmup_steps=0, warmup_ratio=0.0)
    sgd = optimizers.make(
        settings(
            name="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0, rates=(("^a", 0.1),)
        ),
        poly,
        10,
    )
    ones = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = sgd.init(ones)
    for t in range(10):
        updates, state = sgd.update(ones, state, ones)
        for name, base in (("a", 0.01), ("b", 0.1)):
            wanted = (base - 1e-3) * (1 - t / 10) ** 0.9 + 1e-3
            np.testing.assert_allclose(updates[name], -wanted, rtol=1e-5)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    adamw = optimizers.make(settings(clip_norm=1.0, beta1=0.0), CONSTANT, 10)
    gradients = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    _, state = adamw.update(gradients, adamw.init(gradients), gradients)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (1,)]
    np.testing.assert_allclose(sorted(float(m[0]) for m in moments)[-2:], [0.6, 0.8], rtol=1e-6)


def test_a_broken_regex_is_named():
    with pytest.raises(SegjaxError, match=r"no_decay: '\(norm' is not a regular expression"):
        optimizers.decay_mask(params(), ("(norm",))
