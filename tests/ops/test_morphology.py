"""Kernels, erosion, dilation and borders are OpenCV's."""

from __future__ import annotations

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import morphology


def opencv_kernel(width, height):
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, height))


def random_mask(seed, shape):
    """Blobs of a few pixels."""
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 1.5) > 0.05


def random_labels(seed, shape, count):
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    ranks = np.argsort(np.argsort(smooth, axis=None)).reshape(shape)
    return (ranks * count // smooth.size).astype(np.uint8)


def gradient(mask, kernel):
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, kernel) > 0


def test_ellipses_of_all_small_sizes_are_opencvs():
    for width in range(1, 25):
        for height in range(1, 25):
            ours = morphology.ellipse(width, height)
            np.testing.assert_array_equal(ours, opencv_kernel(width, height), f"{width}, {height}")


@pytest.mark.parametrize("radius", [1, 2, 3, 22, 32, 126])
def test_disks_are_opencvs(radius):
    np.testing.assert_array_equal(
        morphology.disk(radius), opencv_kernel(2 * radius + 1, 2 * radius + 1)
    )


@pytest.mark.parametrize(
    "kernel",
    [
        opencv_kernel(3, 3),
        opencv_kernel(9, 4),  # even sides: not symmetric
        opencv_kernel(4, 9),
        opencv_kernel(1, 6),
        np.ones((8, 8), np.uint8),
        np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]], np.uint8),  # several runs a row
    ],
    ids=["disc", "flat", "upright", "line", "square", "holes"],
)
def test_dilation_and_erosion_are_opencvs(kernel):
    """With its border, which neither adds nor takes, and its anchor."""
    masks = np.stack([random_mask(seed, (23, 31)) for seed in range(2)])
    dilated, eroded = morphology.dilate(masks, kernel), morphology.erode(masks, kernel)
    for mask, ours, other in zip(masks, dilated, eroded):
        grey = mask.astype(np.uint8)
        np.testing.assert_array_equal(ours, cv2.dilate(grey, kernel) > 0)
        np.testing.assert_array_equal(other, cv2.erode(grey, kernel) > 0)


def test_a_kernel_larger_than_the_mask():
    mask = np.zeros((3, 4), bool)
    mask[2, 3] = True
    assert morphology.dilate(mask, morphology.disk(6)).all()
    assert not morphology.dilate(np.zeros_like(mask), morphology.disk(6)).any()
    assert morphology.erode(np.ones_like(mask), morphology.disk(6)).all()


def test_an_empty_kernel_sets_nothing():
    assert not morphology.dilate(np.ones((3, 4), bool), np.zeros((3, 3), np.uint8)).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_steps_to_change_are_those_counted_one_by_one(axis):
    labels = random_labels(1, (17, 29), 3)
    ours = np.asarray(morphology.steps_to_change(jnp.asarray(labels), axis, 6))
    for at in np.ndindex(*labels.shape):
        line = labels[:, at[1]] if axis == 0 else labels[at[0]]
        other = np.flatnonzero(line != labels[at])
        assert ours[at] == min(np.abs(other - at[axis]).min(initial=6), 6)


def near(labels, radius, margin):
    continued = np.pad(labels, margin, mode="edge")
    lift = morphology.lifts(radius, margin)
    steps = morphology.border_steps(jnp.asarray(continued), margin)
    return np.asarray(morphology.near_border(steps, radius, lift))


@pytest.mark.parametrize(("radius", "margin"), [(1, 1), (1, 8), (4, 8), (7, 8), (8, 8)])
def test_near_a_border_dilation_and_erosion_differ(radius, margin):
    mask = random_mask(2, (30, 41))
    expected = gradient(mask, morphology.disk(radius))
    np.testing.assert_array_equal(near(mask, radius, margin), expected)


def test_near_borders_of_several_labels_any_of_them_has_a_gradient():
    """Also one that touches only a label that isn't looked at, such as void."""
    labels = random_labels(3, (30, 41), 4)
    bands = [gradient(labels == label, morphology.disk(5)) for label in (1, 2, 3)]
    np.testing.assert_array_equal(near(labels, 5, 8), np.any(bands, axis=0))


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (2, 3)])
def test_borders_of_slim_pictures(shape):
    mask = np.random.default_rng(4).random(shape) > 0.5
    np.testing.assert_array_equal(near(mask, 2, 4), gradient(mask, morphology.disk(2)))
