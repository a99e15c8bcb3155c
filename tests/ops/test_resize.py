"""Resizes against torch, the authority."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import resize

SIZES = [
    ((5, 7), (5, 7)),
    ((5, 7), (16, 9)),
    ((16, 24), (7, 5)),
    ((1, 6), (4, 6)),
    ((3, 4), (48, 64)),
]


def image(size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def torch_interpolate(x, **options):
    torch = pytest.importorskip("torch", reason="torch is the oracle of resizes")
    y = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), **options)
    return y.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("old, new", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_is_torchs(old, new, align_corners):
    x = image(old)
    expected = torch_interpolate(x, size=new, mode="bilinear", align_corners=align_corners)
    ours = resize.bilinear(x, new, align_corners=align_corners)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("old, new", SIZES, ids=str)
def test_bicubic_is_torchs(old, new):
    x = image(old)
    expected = torch_interpolate(x, size=new, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize.bicubic(x, new), expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("factor", [0.5, 2, 4])
def test_a_factor_rounds_the_size_down_but_not_the_step(factor):
    x = image((7, 9))
    expected = torch_interpolate(
        x, scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    np.testing.assert_allclose(resize.bilinear_by_factor(x, factor), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("old, new", SIZES, ids=str)
def test_nearest_is_torchs(old, new):
    x = image(old)
    np.testing.assert_array_equal(
        resize.nearest(x, new), torch_interpolate(x, size=new, mode="nearest")
    )


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(3, 11), (11, 3), (5, 5), (8, 1)], ids=str)
def test_taps_are_a_partition_of_unity_inside_the_source(method, sizes):
    indices, weights = resize.taps(*sizes, method)
    assert indices.min() >= 0 and indices.max() < sizes[1]
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)


def test_gradients_are_the_transpose():
    x, y = image((4, 5)), np.random.default_rng(1).normal(size=(2, 9, 6, 3)).astype(np.float32)
    _, pull = jax.vjp(lambda x: resize.bicubic(x, (9, 6)), x)
    np.testing.assert_allclose(
        (resize.bicubic(x, (9, 6)) * y).sum(), (x * pull(jnp.asarray(y))[0]).sum(), rtol=1e-5
    )


def test_half_precision_is_resized_in_float32():
    x = jnp.asarray(image((4, 5)), jnp.bfloat16)
    expected = resize.bilinear(x.astype(jnp.float32), (9, 6)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(resize.bilinear(x, (9, 6)), expected)


def test_padding_goes_to_the_bottom_and_the_right():
    padded = resize.pad_to_multiple(jnp.ones((1, 5, 8, 1)), 4)
    assert padded.shape == (1, 8, 8, 1)
    assert padded[:, :5].min() == 1 and padded[:, 5:].max() == 0
