"""Losses of sharpened masks against their definitions and torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax.losses import refinement

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(2, 9, 14))).astype(np.float32)
TRUTH = ndimage.uniform_filter(RNG.random((2, 9, 14)) > 0.5, (1, 3, 3), np.float32)
SAMPLES = jnp.asarray(LOGITS), jnp.asarray(TRUTH)


def sobel_by_scipy(x):
    """Mean and filters as correlations with zeros around, in float64."""

    def filtered(x, kernel):
        return np.stack([ndimage.correlate(one, kernel, mode="constant") for one in x])

    mean = filtered(np.asarray(x, np.float64), np.full((3, 3), 1 / 9))
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    return np.sqrt(filtered(mean, kernel) ** 2 + filtered(mean, kernel.T) ** 2 + 1e-4)


def test_smooth_sobel_is_a_mean_and_two_filters_with_zeros_around():
    np.testing.assert_allclose(refinement.smooth_sobel(TRUTH), sobel_by_scipy(TRUTH), rtol=1e-5)


def test_a_constant_map_is_steep_at_the_border_alone():
    steep = refinement.smooth_sobel(jnp.ones((1, 9, 9)))[0]
    np.testing.assert_allclose(steep[2:-2, 2:-2], 0.01, rtol=1e-4)
    assert (steep[0] > 0.3).all() and (steep[:, -1] > 0.3).all()


def test_terms_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="torch is the oracle of losses")
    functional = torch.nn.functional
    logits, truth = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TRUTH)
    probability = logits.sigmoid()
    theirs = (
        functional.binary_cross_entropy_with_logits(logits, (truth > 0.5).float()),
        functional.l1_loss(probability, truth),
        functional.mse_loss(probability, truth),
    )
    for i, term in enumerate(theirs):
        value, slope = jax.value_and_grad(lambda x, i=i: refinement.terms(x, SAMPLES[1])[i])(
            SAMPLES[0]
        )
        np.testing.assert_allclose(value, term.item(), rtol=1e-5)
        (expected,) = torch.autograd.grad(term, logits, retain_graph=True)
        np.testing.assert_allclose(slope, expected.numpy(), rtol=1e-4, atol=1e-8)


def test_the_gradient_term_is_the_mean_difference_of_steepness():
    probability = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    expected = np.abs(sobel_by_scipy(TRUTH) - sobel_by_scipy(probability)).mean()
    np.testing.assert_allclose(refinement.gradient_term(*SAMPLES), expected, rtol=1e-5)


def test_the_gradient_term_has_the_slope_of_its_differences():
    """Along a random direction, in the middle of two steps."""
    direction = jnp.asarray(RNG.normal(size=LOGITS.shape), jnp.float32)
    slope = jax.grad(refinement.gradient_term)(*SAMPLES)
    ahead, behind = (
        refinement.gradient_term(SAMPLES[0] + step * direction, SAMPLES[1])
        for step in (1e-2, -1e-2)
    )
    np.testing.assert_allclose((slope * direction).sum(), (ahead - behind) / 2e-2, rtol=2e-2)


@pytest.mark.parametrize("far", [200.0, -200.0])
def test_nothing_overflows_however_sure_a_pixel_is(far):
    logits = jnp.full((1, 4, 4), far)
    truth = jnp.zeros((1, 4, 4))

    def total(x):
        return sum(refinement.terms(x, truth)) + refinement.gradient_term(x, truth)

    value, slope = jax.value_and_grad(total)(logits)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_counts_are_pixels_of_the_whole_batch():
    """One of three pixels of the truth was found, with one beside it; the coarse mask holds what
    is above 0.5 of -1..1."""
    truth = jnp.zeros((2, 2, 2)).at[0].set([[1.0, 0.6], [0.5, 0.0]]).at[1, 0, 0].set(0.9)
    logits = jnp.full((2, 2, 2), -1.0).at[0, 0, 0].set(1.0).at[1, 1, 1].set(2.0)
    coarse = jnp.full((2, 2, 2), -1.0).at[0, 0].set(jnp.array([1.0, 0.4]))
    assert refinement.counts(logits, truth, coarse) == {
        "intersection": 1.0,
        "union": 4.0,
        "coarse_intersection": 1.0,
        "coarse_union": 3.0,
    }
