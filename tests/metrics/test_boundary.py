"""IoU and mBA of refined masks are those of the published definition."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.metrics import boundary


def smooth(seed, shape, sigma=4.0):
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), sigma)


def blob(seed, shape):
    return smooth(seed, shape) > 0


def moved(mask, rows, columns):
    return np.roll(mask, (rows, columns), (0, 1))


def discs(shape):
    """The five kernels of an image."""
    greatest = sum(shape) / 300
    for step in range(5):
        radius = 1 + int((greatest - 1) / 5 * step)
        yield cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def plain_accuracy(truth, prediction):
    """As the definition reads."""
    shares = []
    for disc in discs(truth.shape):
        band = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, disc) > 0
        shares.append((truth == prediction)[band].mean())
    return np.mean(shares)


def plain_accuracy_of_classes(truth, prediction, void):
    shares = []
    for disc in discs(truth.shape):
        band = np.zeros(truth.shape, bool)
        for label in set(np.unique(truth)) - {void}:
            mask = (truth == label).astype(np.uint8)
            band |= cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, disc) > 0
        band &= truth != void
        shares.append((truth == prediction)[band].mean())
    return np.mean(shares)


@pytest.mark.parametrize(
    ("size", "radii"),
    [
        ((2328, 3492), (1, 4, 8, 12, 15)),
        ((3300, 5000), (1, 6, 11, 17, 22)),
        ((300, 300), (1, 1, 1, 1, 1)),
        ((50, 60), (1, 1, 1, 1, 1)),  # below 1 the steps are cut towards 0
        ((600, 600), (1, 1, 2, 2, 3)),
    ],
)
def test_radii(size, radii):
    assert boundary.radii(size) == radii


@pytest.mark.parametrize("shape", [(40, 52), (131, 260), (700, 900), (900, 31)], ids=str)
def test_accuracy_is_the_definitions(shape):
    """Across the seams of tiles too."""
    truth = blob(0, shape)
    predictions = np.stack([moved(truth, 1, 2), blob(1, shape), truth])
    ours = boundary.accuracy(truth, predictions)
    expected = [plain_accuracy(truth, prediction) for prediction in predictions]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert ours[2] == 1


def test_accuracy_of_classes_leaves_void_out():
    shape = (140, 300)
    ranks = np.argsort(np.argsort(smooth(2, shape), axis=None)).reshape(shape)
    truth = (ranks * 5 // ranks.size).astype(np.uint8)
    prediction = np.where(truth == 0, 0, moved(truth, 2, 1)).astype(np.uint8)
    ours = boundary.accuracy(truth, prediction[None], void=0)
    expected = plain_accuracy_of_classes(truth, prediction, void=0)
    np.testing.assert_allclose(ours, [expected], rtol=1e-12)
    wrong_in_void = np.where(truth == 0, 3, prediction)
    np.testing.assert_array_equal(boundary.accuracy(truth, wrong_in_void[None], void=0), ours)


def test_band_is_what_the_accuracy_looks_at():
    truth = blob(3, (600, 640))
    pixels, _ = boundary.counts(truth, truth[None])
    assert pixels.tolist() == [
        int(boundary.band(truth, radius).sum()) for radius in boundary.radii(truth.shape)
    ]


@pytest.mark.parametrize("value", [False, True])
def test_without_a_boundary_there_is_no_accuracy(value):
    truth = np.full((20, 30), value)
    assert np.isnan(boundary.accuracy(truth, ~truth[None])).all()


def test_a_mask_of_another_size_is_an_error_that_names_both():
    with pytest.raises(SegjaxError, match=r"true mask is 30 x 20 pixels, but .* is 20 x 30"):
        boundary.accuracy(np.zeros((20, 30), bool), np.zeros((1, 30, 20), bool))
    scores = boundary.Scores()
    with pytest.raises(SegjaxError, match="30 x 20"):
        scores.update(*(np.zeros(shape, np.uint8) for shape in ((20, 30), (30, 20), (20, 30))))


def test_grey_is_cut_and_foreground_lies_above_128():
    probability = np.array([0.0, 0.5, 128.9 / 255, 129 / 255 + 1e-6, 1.0], np.float32)
    grey = boundary.grey(probability)
    assert grey.tolist() == [0, 127, 128, 129, 255]
    assert boundary.foreground(grey[None]).tolist() == [[False, False, False, True, True]]


def test_masks_of_other_kinds_are_an_error():
    with pytest.raises(SegjaxError, match="float32"):
        boundary.foreground(np.zeros((2, 2), np.float32))


def grey_of(mask):
    return np.where(mask, np.uint8(255), np.uint8(0))


def test_iou_is_pooled_and_accuracy_averaged():
    scores = boundary.Scores()
    both, either, accuracies = [], [], []
    for seed, shape in enumerate([(40, 52), (70, 33), (128, 256)]):
        truth, coarse = blob(seed, shape), blob(seed + 10, shape)
        refined = moved(truth, 1, 0)
        found = scores.update(grey_of(truth), grey_of(coarse), grey_of(refined))
        both.append([(truth & mask).sum() for mask in (coarse, refined)])
        either.append([(truth | mask).sum() for mask in (coarse, refined)])
        accuracies.append([plain_accuracy(truth, mask) for mask in (coarse, refined)])
        np.testing.assert_allclose(found["coarse_iou"], 100 * both[-1][0] / either[-1][0])
        np.testing.assert_allclose(found["mba"], 100 * accuracies[-1][1])
    old, new = np.sum(both, axis=0) / np.sum(either, axis=0)
    old_mba, new_mba = np.mean(accuracies, axis=0)
    assert scores.result() == {
        "iou": round(100 * new, 2),
        "mba": round(100 * new_mba, 2),
        "coarse_iou": round(100 * old, 2),
        "coarse_mba": round(100 * old_mba, 2),
        "images": 3,
        "without_boundary": 0,
    }


def test_an_image_without_boundary_counts_for_iou_alone():
    scores = boundary.Scores()
    truth = blob(0, (40, 52))
    scores.update(truth, truth, moved(truth, 1, 0))
    alone = scores.result()
    scores.update(np.ones((5, 8), bool), np.zeros((5, 8), bool), np.ones((5, 8), bool))
    together = scores.result()
    assert (together["images"], together["without_boundary"]) == (2, 1)
    assert together["mba"] == alone["mba"] and together["coarse_iou"] < alone["coarse_iou"]


def test_nothing_scored_has_no_figures():
    figures = boundary.Scores().result()
    assert figures["images"] == 0 and np.isnan([figures["iou"], figures["mba"]]).all()


@pytest.mark.parametrize(
    ("rule", "square", "oblong"),
    [("measured", 100, 100), ("kept", 20, 20), ("published", 20, 100)],
)
def test_small_objects_are_kept_coarse_where_asked_for(rule, square, oblong):
    """The coarse mask has 4 of the object's 20 pixels; the refined one is right."""
    for columns, iou in ((10, square), (12, oblong)):
        truth = np.zeros((10, columns), np.uint8)
        truth[2:6, 2:7] = 255
        coarse = np.zeros_like(truth)
        coarse[2, 2:6] = 255
        scores = boundary.Scores(rule)
        scores.update(truth, coarse, truth)
        assert scores.result()["iou"] == iou


def test_an_object_of_five_pixels_is_not_small():
    truth = np.zeros((10, 10), np.uint8)
    truth[2:6, 2:7] = 255
    coarse = np.zeros_like(truth)
    coarse[2, 2:7] = 255
    scores = boundary.Scores("published")
    scores.update(truth, coarse, truth)
    assert scores.result()["iou"] == 100


def test_unknown_rules_are_an_error():
    with pytest.raises(SegjaxError, match=r"small_objects.*'some'.*published"):
        boundary.Scores("some")


def test_scores_of_two_halves_are_those_of_all():
    images = [(blob(k, (40, 50)), blob(k + 7, (40, 50)), blob(k + 9, (40, 50))) for k in range(4)]
    whole, first, second = boundary.Scores(), boundary.Scores(), boundary.Scores()
    for i, image in enumerate(images):
        whole.update(*image)
        (first, second)[i % 2].update(*image)
    first.add(*second.sums())
    assert first.result() == whole.result()


def stripes(shift, shape=(60, 90)):
    """Classes 0 to 4 side by side."""
    return np.broadcast_to((np.arange(shape[1]) + shift) * 5 // shape[1] % 5, shape).copy()


def test_scores_of_label_maps_are_the_definitions():
    truths = [stripes(0), stripes(7)]
    coarse, refined = ([stripes(by), stripes(7 + by)] for by in (9, 1))
    scores = boundary.LabelScores(6)
    for images in zip(truths, coarse, refined):
        scores.update(*images)
    found = scores.result()
    for prefix, maps in (("coarse_", coarse), ("", refined)):
        seen = [np.where(truth == 0, 0, labels) for truth, labels in zip(truths, maps)]
        shares = []
        for label in range(1, 7):
            both = sum(((t == label) & (m == label)).sum() for t, m in zip(truths, seen))
            either = sum(((t == label) | (m == label)).sum() for t, m in zip(truths, seen))
            shares.append(both / (either + 1e-6))
        assert found[f"{prefix}miou"] == pytest.approx(100 * np.mean(shares), abs=0.006)
        near = [plain_accuracy_of_classes(t, m, void=0) for t, m in zip(truths, seen)]
        assert found[f"{prefix}mba"] == pytest.approx(100 * np.mean(near), abs=0.006)
    assert found["miou"] > found["coarse_miou"]
    assert found["miou"] < 100 * 4 / 6  # two of six classes occur nowhere
    assert found["images"] == 2


def test_labels_beyond_the_classes_are_an_error():
    with pytest.raises(SegjaxError, match=r"holds 0 to 4; it must hold 0 .* to 3"):
        boundary.LabelScores(3).update(stripes(0), stripes(0), stripes(0))
