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
    ((6, 1), (3, 100)),  # 100 outputs of one source: the product form on the way back
    ((3, 4), (48, 64)),
]


def image(size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def torch_interpolate(x, **options):
    torch = pytest.importorskip("torch", reason="torch is the oracle of resizes")
    y = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), **options)
    return y.permute(0, 2, 3, 1).numpy()


def assert_close(ours, theirs, tolerance=1e-6):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def assert_value_and_gradient(resized, x, **options):
    """The gradient of a linear map follows from what it does to each unit image. (torch's own
    float32 gradient is no oracle: its long sums are off by more than 1e-6.)"""
    ours, pull = jax.vjp(resized, jnp.asarray(x))
    assert_close(ours, torch_interpolate(x, **options))
    height, width = x.shape[1:3]
    units = np.eye(height * width, dtype=np.float32).reshape(-1, height, width, 1)
    jacobian = torch_interpolate(units, **options)[..., 0].reshape(height, width, *ours.shape[1:3])
    cotangent = np.random.default_rng(1).normal(size=ours.shape).astype(np.float32)
    expected = np.einsum("hwHW,bHWc->bhwc", jacobian.astype(np.float64), cotangent)
    assert_close(pull(jnp.asarray(cotangent))[0], expected)


@pytest.mark.parametrize("old, new", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_is_torchs(old, new, align_corners):
    assert_value_and_gradient(
        lambda x: resize.bilinear(x, new, align_corners=align_corners),
        image(old),
        size=new,
        mode="bilinear",
        align_corners=align_corners,
    )


@pytest.mark.parametrize("old, new", SIZES, ids=str)
def test_bicubic_is_torchs(old, new):
    assert_value_and_gradient(
        lambda x: resize.bicubic(x, new), image(old), size=new, mode="bicubic"
    )


@pytest.mark.parametrize("factor", [4, 2, 0.5, 1.7, 1.1])
def test_resize_by_factor_is_torchs_on_odd_sizes(factor):
    assert_value_and_gradient(
        lambda x: resize.bilinear_by_factor(x, factor),
        image((5, 9)),
        scale_factor=factor,
        mode="bilinear",
    )


@pytest.mark.parametrize("old, new", [*SIZES, ((2, 3), (82, 94)), ((9, 8), (188, 3))], ids=str)
def test_nearest_is_torchs(old, new):
    """82 from 2 is where float32 coordinates and whole numbers differ."""
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


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(3, 11), (11, 3), (8, 1)], ids=str)
def test_transposed_taps_are_the_transposed_matrix(method, sizes):
    taps = resize.taps(*sizes, method)
    np.testing.assert_allclose(
        resize.matrix(*resize.transposed(*taps, sizes[1]), sizes[0]),
        resize.matrix(*taps, sizes[1]).T,
        rtol=1e-6,
    )


def test_both_forms_of_a_mix_agree(monkeypatch):
    """Gathers, and the product with the dense matrix that a TPU takes."""
    x = jnp.asarray(image((4, 7)).reshape(8, 7, 3))
    taps = resize.taps(12, 7, "bicubic")
    gathers = resize.mix(x, *taps)
    monkeypatch.setattr(resize, "MOST_GATHERS", 0)
    np.testing.assert_allclose(resize.mix(x, *taps), gathers, rtol=1e-5, atol=1e-6)


def test_any_leading_dimensions_and_vmap():
    x = image((4, 5))
    expected = resize.bilinear(x, (9, 6))
    np.testing.assert_array_equal(resize.bilinear(x[0], (9, 6)), expected[0])
    np.testing.assert_array_equal(resize.bilinear(x[None], (9, 6)), expected[None])
    np.testing.assert_allclose(jax.vmap(lambda x: resize.bilinear(x, (9, 6)))(x), expected)


def test_half_precision_is_resized_in_float32():
    x = jnp.asarray(image((4, 5)), jnp.bfloat16)
    expected = resize.bilinear(x.astype(jnp.float32), (9, 6)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(resize.bilinear(x, (9, 6)), expected)


def test_padding_goes_to_the_bottom_and_the_right():
    padded = resize.pad_to_multiple(jnp.ones((1, 5, 8, 1)), 4)
    assert padded.shape == (1, 8, 8, 1)
    assert padded[:, :5].min() == 1 and padded[:, 5:].max() == 0
