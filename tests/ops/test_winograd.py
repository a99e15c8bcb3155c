"""3x3 convolutions in Winograd's form against XLA's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import winograd

RNG = np.random.default_rng(0)


@pytest.fixture
def worth_it(monkeypatch):
    """However small the map."""
    monkeypatch.setattr(winograd, "WORTH", 0)


def samples(size, inputs=128, outputs=160, batch=2):
    x = RNG.standard_normal((batch, *size, inputs), np.float32)
    kernel = RNG.standard_normal((3, 3, inputs, outputs), np.float32) / np.sqrt(9 * inputs)
    return jnp.asarray(x), jnp.asarray(kernel, jnp.float32)


def program_of(x, kernel):
    def traced_anew(x, kernel):
        return winograd.conv3x3(x, kernel)

    return jax.jit(traced_anew).lower(x, kernel).as_text()


CASES = [
    ((6, 8), 1),
    ((7, 5), 1),
    ((1, 1), 1),
    ((2, 9), 1),
    ((13, 1), 1),
    ((9, 11), 2),
    ((3, 6), 4),
]
"""(height, width) and dilation."""


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize("size, dilation", CASES)
@pytest.mark.parametrize("values", [winograd.VALUES, 12 * 160])
def test_the_convolution_is_xlas(size, dilation, values, monkeypatch):
    """Whatever the parity of the sides; in one strip and in several."""
    monkeypatch.setattr(winograd, "VALUES", values)
    x, kernel = samples(size)
    ours = jax.jit(lambda x, k: winograd.conv3x3(x, k, dilation))(x, kernel)
    theirs = winograd.direct(x, kernel, dilation)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=6e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.usefixtures("worth_it")
def test_it_is_done_with_products_where_channels_are_many():
    assert "convolution" not in program_of(*samples((6, 8)))
    assert "convolution" in program_of(*samples((6, 8), inputs=64))
    assert "convolution" in program_of(*samples((6, 8), outputs=32))
    x, kernel = samples((6, 8))
    assert "convolution" in program_of(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize("size, dilation", [((7, 6), 1), ((5, 8), 2)])
@pytest.mark.parametrize("values", [winograd.VALUES, 12 * 160])
def test_its_gradients_are_xlas(size, dilation, values, monkeypatch):
    monkeypatch.setattr(winograd, "VALUES", values)
    x, kernel = samples(size)
    weight = jnp.asarray(RNG.standard_normal((2, *size, 160), np.float32))

    def slopes(convolve):
        def cost(x, kernel):
            return (convolve(x, kernel, dilation) * weight).sum()

        program = jax.jit(jax.grad(cost, (0, 1))).lower(x, kernel)
        assert ("convolution" in program.as_text()) == (convolve is winograd.direct)
        return program.compile()(x, kernel)

    for ours, theirs in zip(slopes(winograd.conv3x3), slopes(winograd.direct)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_have_convolutions_of_their_own(platform):
    slope = jax.jit(jax.grad(lambda x, k: winograd.conv3x3(x, k).sum(), (0, 1)))
    program = jax.export.export(slope, platforms=[platform])(*samples((6, 8))).mlir_module()
    assert "stablehlo.convolution" in program and "dot_general" not in program


def test_a_small_map_is_left_to_xla():
    """Its program is compiled sooner."""
    assert "convolution" in program_of(*samples((6, 8)))
    assert "convolution" not in program_of(*samples((192, 160)))


def test_temporaries_do_not_grow_with_the_image():
    """What is transformed would have four times its bytes."""
    x, kernel = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in samples((4, 4), 128, 128, 1))
    x = jax.ShapeDtypeStruct((1, 256, 256, 128), jnp.float32)
    memory = jax.jit(winograd.conv3x3).lower(x, kernel).compile().memory_analysis()
    image = 256 * 256 * 128 * 4
    assert memory.temp_size_in_bytes < 3.5 * image
