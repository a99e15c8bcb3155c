"""Coarse masks as the published code makes them. Its own output is compared in tests/parity."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from segjax.data import perturb
from segjax.errors import SegjaxError


def blob(seed=0, shape=(96, 112), sigma=9.0):
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.where(cv2.GaussianBlur(noise, (0, 0), sigma) > 0, np.uint8(255), np.uint8(0))


def draws(seed=0):
    return perturb.GeneratorDraws(np.random.default_rng(seed))


def iou(one, other):
    one, other = one > 0, other > 0
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def polygons(seed, count=4, size=(40, 50)):
    """Random closed lines, which cross themselves and each other."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, size[::-1], (int(rng.integers(1, 9)), 2)).astype(np.int32)
        for _ in range(count)
    ]


def plainly_filled(size, polygons):
    """Row by row: between the first and the second crossing, the third and the fourth, ..."""
    image = np.zeros(size, np.uint8)
    for y in range(size[0]):
        crossings = []
        for polygon in polygons:
            for (x0, y0), (x1, y1) in zip(np.roll(polygon, 1, axis=0).tolist(), polygon.tolist()):
                if y0 > y1:
                    (x0, y0), (x1, y1) = (x1, y1), (x0, y0)
                if y0 <= y < y1:
                    slope = int((x1 - x0) * 65536 / (y1 - y0))
                    crossings.append((x0 * 65536 + (y - y0) * slope) / 65536)
        crossings = [int(np.floor(x + 0.5)) for x in sorted(crossings)]
        for left, right in zip(crossings[::2], crossings[1::2]):
            image[y, left : right + 1] = 255
    for polygon in polygons:
        for start, end in zip(np.roll(polygon, 1, axis=0).tolist(), polygon.tolist()):
            cv2.line(image, start, end, 255)
    return image


@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_filled_even_odd_with_their_outlines(seed):
    size, shapes = (40, 50), polygons(seed)
    np.testing.assert_array_equal(perturb.filled(size, shapes), plainly_filled(size, shapes))


@pytest.mark.skipif(
    int(cv2.__version__.split(".")[0]) >= 5,
    reason="OpenCV 5 fills polygons a little differently; the published code ran with OpenCV 4",
)
def test_polygons_are_filled_as_opencv_4_fills_them():
    for seed in range(50):
        size, shapes = (40, 50), polygons(seed)
        theirs = np.zeros(size, np.uint8)
        theirs = cv2.drawContours(theirs, [shape[:, None] for shape in shapes], -1, 255, -1)
        np.testing.assert_array_equal(perturb.filled(size, shapes), theirs)


def test_a_square_is_filled_to_its_edges():
    filled = perturb.filled((8, 9), [np.array([[2, 1], [6, 1], [6, 5], [2, 5]], np.int32)])
    expected = np.zeros((8, 9), np.uint8)
    expected[1:6, 2:7] = 255
    np.testing.assert_array_equal(filled, expected)


def test_the_same_draws_make_the_same_mask_and_others_another():
    first, again, other = (perturb.perturb(blob(), 0.9, draws(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.dtype == np.uint8 and set(np.unique(first)) == {0, 255}


def test_any_grey_is_foreground():
    mask = blob()
    faint = np.where(mask > 0, np.uint8(1), np.uint8(0))
    made = [perturb.perturb(each, 0.9, draws(3)) for each in (mask, faint)]
    np.testing.assert_array_equal(*made)


def test_the_mask_given_is_left_as_it_is():
    mask = blob()
    before = mask.copy()
    perturb.perturb(mask, 0.8, draws())
    np.testing.assert_array_equal(mask, before)


def test_distortion_ends_in_the_round_that_falls_below_the_target():
    """And not before: the polygon itself has an IoU of 1 with itself."""
    polygon = perturb.coarse_polygon(blob(), draws())
    found = [
        iou(perturb.distort(polygon, target, draws(seed)), polygon)
        for seed in range(5)
        for target in (0.95, 0.8)
    ]
    for mild, strong in zip(found[::2], found[1::2]):
        assert strong < 0.8 <= mild < 0.95  # one round takes less than 0.15 here


def test_a_target_of_0_goes_through_all_rounds(monkeypatch):
    monkeypatch.setattr(perturb, "ROUNDS", 3)
    counted = Counted(np.random.default_rng(0))
    perturb.distort(blob(), 0.0, counted)
    assert counted.kernels == 3 * perturb.OPERATIONS


class Counted(perturb.GeneratorDraws):
    """Counts the kernels that are drawn, by shape."""

    def __init__(self, rng):
        super().__init__(rng)
        self.kernels, self.shapes = 0, set()

    def between(self, low, high):
        drawn = super().between(low, high)
        self.kernels += (low, high) == perturb.SIZES
        if (low, high) in perturb.SHAPE_CHOICES.values():
            self.shapes.add(drawn)
        return drawn


@pytest.mark.parametrize(
    ("shape_choice", "shapes"), [("fixed", {1, 2, 3, 4}), ("published_bug", {0, 1, 2, 3})]
)
def test_shapes_of_the_kernels(shape_choice, shapes):
    counted = Counted(np.random.default_rng(0))
    perturb.distort(blob(), 0.3, counted, shape_choice)
    assert counted.shapes == shapes


def test_an_unknown_shape_choice_is_an_error():
    with pytest.raises(SegjaxError, match=r"'bug'.*fixed, published_bug"):
        perturb.perturb(blob(), 0.9, draws(), "bug")


def test_thin_spikes_vanish_and_big_shapes_stay():
    """A line of one pixel at a disc: its points lie opposite each other, so they are cut first."""
    mask = np.zeros((120, 160), np.uint8)
    cv2.circle(mask, (60, 60), 40, 255, -1)
    disc = mask.copy()
    mask[60, 100:112] = 255
    for seed in range(10):
        polygon = perturb.coarse_polygon(mask, draws(seed))
        assert polygon[60, 108:].sum() == 0
        assert iou(polygon, disc) > 0.75


@pytest.mark.parametrize(
    "mask",
    [np.zeros((30, 40), np.uint8), np.full((30, 40), 255, np.uint8)],
    ids=["empty", "full"],
)
def test_masks_without_a_boundary_are_perturbed_too(mask):
    polygon = perturb.coarse_polygon(mask, draws())
    assert (polygon > 0).mean() == pytest.approx((mask > 0).mean(), abs=0.35)
    assert perturb.perturb(mask, 0.9, draws()).shape == mask.shape


def test_specks_have_no_polygon_and_are_kept():
    mask = np.zeros((30, 40), np.uint8)
    mask[4:6, 4:7] = mask[20, 30] = 255
    np.testing.assert_array_equal(perturb.coarse_polygon(mask, draws()), mask)


def test_very_slim_masks_are_not_distorted():
    mask = np.full((2, 40), 255, np.uint8)
    mask[:, 10:] = 0
    np.testing.assert_array_equal(perturb.distort(mask, 0.1, draws()), mask)


def test_published_draws_are_those_of_the_global_generators():
    """`random` and `numpy.random` after their seeds, in any mixture of calls."""
    import random

    state, legacy = random.getstate(), np.random.get_state()
    try:
        random.seed(7)
        np.random.seed(7)
        theirs = [
            random.choice(list(range(30))),
            random.sample(range(100), 9),
            [np.random.normal(0, 0.0) for _ in range(5)],
            np.random.randint(3, 10),
            np.random.rand(),
            np.random.randint(2),
        ]
    finally:
        random.setstate(state)
        np.random.set_state(legacy)
    ours = perturb.PublishedDraws(7)
    assert ours.choose(30) == theirs[0]
    assert ours.sample(100, 9) == theirs[1]
    ours.vertices(5)
    assert [ours.between(3, 10), ours.share(), ours.between(0, 2)] == theirs[3:]


def test_draws_of_a_generator_are_uniform():
    source = draws(0)
    counts = np.bincount([source.between(2, 7) for _ in range(5000)], minlength=7)
    assert counts[:2].sum() == 0 and np.all(np.abs(counts[2:] - 1000) < 150)
    chosen = [source.choose(3) for _ in range(3000)]
    assert set(chosen) == {0, 1, 2}
    sample = source.sample(20, 20)
    assert sorted(sample) == list(range(20))
