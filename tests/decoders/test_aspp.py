"""DeepLabV3+'s decoder: what its views see, and what it gives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.backbones.layers import ConvNormRelu
from segjax.decoders.aspp import SeparableASPP, SeparableASPPHead, SeparableConv

HEAD = dict(classes=3, features=6, early_features=2, dilations=(1, 2))


def part(variables, name):
    return {collection: tree[name] for collection, tree in variables.items()}


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    early, deep = rng.normal(size=(2, 9, 13, 4)), rng.normal(size=(2, 5, 7, 8))
    return jnp.asarray(early, jnp.float32), jnp.asarray(deep, jnp.float32)


@pytest.fixture(scope="module")
def pyramid(maps):
    """A pyramid, its variables, and its views of a map."""
    module = SeparableASPP(3, dilations=(1, 2))
    variables = module.init(jax.random.key(0), maps[1], False)
    return module, variables, module.apply(variables, maps[1], False)


def test_the_views_are_the_mean_the_map_and_each_dilation(maps, pyramid):
    _, variables, views = pyramid
    x = maps[1]
    chex.assert_shape(views, (2, 5, 7, 4 * 3))
    mean = x.mean((1, 2), keepdims=True)
    pooled = ConvNormRelu(3).apply(part(variables, "image_pool"), mean, False)
    wanted = [
        jnp.broadcast_to(pooled, (2, 5, 7, 3)),
        ConvNormRelu(3).apply(part(variables, "view_0"), x, False),
        SeparableConv(3, 1).apply(part(variables, "view_1"), x, False),
        SeparableConv(3, 2).apply(part(variables, "view_2"), x, False),
    ]
    chex.assert_trees_all_close(views, jnp.concatenate(wanted, -1), rtol=1e-5, atol=1e-6)


def test_a_dilation_beyond_the_map_sees_the_position_alone(maps):
    x = maps[1]
    module = SeparableConv(3, dilation=7)
    variables = module.init(jax.random.key(0), x, False)
    kernel = variables["params"]["depthwise"]["kernel"]
    centre = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    alone = {
        **variables,
        "params": variables["params"] | {"depthwise": {"kernel": centre}},
    }
    chex.assert_trees_all_close(*(module.apply(v, x, False) for v in (variables, alone)), atol=1e-6)


def test_both_halves_of_a_separable_convolution_end_in_a_relu():
    """With a negative first half nothing is left for the second one."""
    x = jnp.ones((1, 4, 4, 2))
    module = SeparableConv(2)
    variables = module.init(jax.random.key(0), x, False)
    params = dict(variables["params"])
    params["depthwise"] = {"kernel": jnp.full((3, 3, 1, 2), -1.0)}
    params["pointwise"] = {"kernel": jnp.full((1, 1, 2, 2), -1.0)}
    np.testing.assert_array_equal(module.apply({**variables, "params": params}, x, False), 0)


def test_scores_have_the_size_of_the_early_map(maps):
    head = SeparableASPPHead(**HEAD)
    variables = head.init(jax.random.key(0), *maps, False)
    chex.assert_shape(head.apply(variables, *maps, False), (2, 9, 13, 3))
    assert variables["params"]["fusion_0"]["depthwise"]["kernel"].shape == (3, 3, 1, 6 + 2)


def test_scores_are_float32_in_half_precision(maps):
    head = SeparableASPPHead(**HEAD, dtype=jnp.bfloat16)
    half = [x.astype(jnp.bfloat16) for x in maps]
    scores, _ = head.init_with_output(jax.random.key(0), *half, False)
    assert scores.dtype == jnp.float32


def test_training_reaches_every_parameter(maps):
    head = SeparableASPPHead(**HEAD)
    variables = head.init(jax.random.key(0), *maps, False)

    @jax.jit
    def slopes(params):
        def total(params):
            scores, _ = head.apply(
                {**variables, "params": params},
                *maps,
                True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return jnp.sum(jnp.sin(scores))

        return jax.grad(total)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes(variables["params"])):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), jax.tree_util.keystr(path)
