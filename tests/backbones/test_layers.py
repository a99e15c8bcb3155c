"""Layers whose statistics or initial values must be torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.backbones.layers import BatchNorm, Conv, ConvNormRelu, DepthwiseConv, relu


def test_running_variance_is_updated_with_the_unbiased_batch_variance():
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 4, 5)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, mutated = norm.apply(variables, x, True, mutable=["batch_stats"])
    flat = x.reshape(-1, 5)
    np.testing.assert_allclose(mutated["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        mutated["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        y.reshape(-1, 5), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-4, atol=1e-5
    )


def test_initialising_leaves_the_running_statistics_alone():
    variables = BatchNorm().init(jax.random.key(0), jnp.full((4, 3), 7.0), True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0.0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1.0)


def test_evaluation_uses_the_running_statistics():
    norm = BatchNorm()
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([3.0]), "var": jnp.array([4.0 - 1e-5])},
    }
    np.testing.assert_allclose(norm.apply(variables, jnp.array([[5.0]]), False), [[3.0]], rtol=1e-6)


def test_relu_and_its_slope_are_torchs():
    """At zero the slope is zero, and what is not a number stays none."""
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.nan])
    y, tangent = jax.jvp(relu, (x,), (jnp.full(5, 7.0),))
    np.testing.assert_array_equal(y, [0, 0, 0, 3, jnp.nan])
    np.testing.assert_array_equal(tangent[:4], [0, 0, 0, 7])
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(x)[:4], [0, 0, 0, 1])


def test_work_grows_with_the_depth_of_a_residual_network_not_with_its_square():
    """XLA's CPU compiler repeats what it thinks is cheap in every use."""

    def work(blocks):
        def loss(x, kernels):
            for kernel in kernels:
                x = relu(x + jnp.tanh(x @ kernel))
            return x.sum()

        shapes = (64, 4), (blocks, 4, 4)
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        program = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
        return program.cost_analysis()["flops"]

    assert work(32) < 4.4 * work(8)


def test_depthwise_filters_start_at_he_fan_out_over_all_channels():
    variables = DepthwiseConv().init(jax.random.key(0), jnp.zeros((1, 4, 4, 512)))
    np.testing.assert_allclose(
        variables["params"]["kernel"].std(), np.sqrt(2 / (9 * 512)), rtol=0.05
    )


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("use_bias", [True, False])
def test_convolutions_are_torchs(kernel_size, use_bias):
    """Value and gradients, with zeros around the map; 1x1 is computed as a product."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of convolutions")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    conv = Conv(4, kernel_size, use_bias)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        conv.init(jax.random.key(0), x)["params"],
    )
    assert set(params) == {"kernel", "bias"} if use_bias else {"kernel"}
    ours, pull = jax.vjp(lambda params, x: conv.apply({"params": params}, x), params, x)

    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in {**params, "x": x}.items()}
    out = torch.nn.functional.conv2d(
        theirs["x"].permute(0, 3, 1, 2),
        theirs["kernel"].permute(3, 2, 0, 1),
        theirs.get("bias"),
        padding=kernel_size // 2,
    ).permute(0, 2, 3, 1)
    cotangent = rng.normal(size=ours.shape).astype(np.float32)
    out.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(ours, out.detach().numpy(), rtol=1e-4, atol=1e-4)
    slopes, slope = pull(jnp.asarray(cotangent))
    for name, gradient in {**slopes, "x": slope}.items():
        np.testing.assert_allclose(gradient, theirs[name].grad.numpy(), rtol=1e-4, atol=1e-4)


def test_convolutions_start_at_he_fan_out():
    variables = Conv(256, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))
    kernel = variables["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.02)
    np.testing.assert_array_equal(variables["params"]["bias"], 0.0)


def test_the_shared_block_is_convolution_then_batch_norm_then_relu():
    x = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    block = ConvNormRelu(8, 3)
    variables = block.init(jax.random.key(0), x, False)
    assert set(variables["params"]["conv"]) == {"kernel"}  # the norm has the bias
    y, mutated = block.apply(variables, x, True, mutable=["batch_stats"])
    plain = Conv(8, 3, False).apply({"params": variables["params"]["conv"]}, x)
    normalised = (plain - plain.mean((0, 1, 2))) / np.sqrt(plain.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, np.maximum(normalised, 0), rtol=1e-4, atol=1e-5)
    moved = mutated["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(moved, 0.1 * plain.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
