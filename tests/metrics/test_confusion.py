"""The metric against counting pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.metrics import confusion
from segjax.structs import IGNORE


def counted_by_hand(predicted, semantic, classes):
    """(intersection, predicted, labelled) of every class, one pixel after another."""
    areas = np.zeros((3, classes), np.int64)
    for said, true in zip(predicted.reshape(-1).tolist(), semantic.reshape(-1).tolist()):
        if true == IGNORE:
            continue
        areas[confusion.LABELLED, true] += 1
        areas[confusion.PREDICTED, said] += 1
        areas[confusion.INTERSECTION, true] += said == true
    return areas


def random_maps(seed, shape, classes, ignored=0.2):
    random = np.random.default_rng(seed)
    predicted = random.integers(0, classes, shape)
    semantic = np.where(random.random(shape) < 0.5, predicted, random.integers(0, classes, shape))
    return predicted, np.where(random.random(shape) < ignored, IGNORE, semantic)


@pytest.mark.parametrize(("predicted_type", "semantic_type"), [("int16", "int16"), ("u1", "int32")])
def test_areas_are_those_of_counting_pixel_by_pixel(predicted_type, semantic_type):
    predicted, semantic = random_maps(0, (3, 13, 17), 7)
    areas = confusion.image_areas(
        jnp.asarray(predicted.astype(predicted_type)),
        jnp.asarray(semantic.astype(semantic_type)),
        7,
    )
    for found, said, true in zip(np.asarray(areas), predicted, semantic):
        np.testing.assert_array_equal(found, counted_by_hand(said, true, 7))


def test_the_prediction_on_an_ignored_pixel_counts_nowhere():
    semantic = np.full((1, 4, 5), IGNORE)
    semantic[0, :, :2] = 1
    calm = np.ones((1, 4, 5), int)
    wild = np.where(semantic == IGNORE, 2, calm)
    areas = [np.asarray(confusion.image_areas(jnp.asarray(p), semantic, 3)) for p in (calm, wild)]
    np.testing.assert_array_equal(*areas)
    assert areas[0].sum() == 3 * 8


def test_the_histogram_that_a_tpu_takes_counts_the_same():
    """`platform_dependent` hides it on a CPU, so its lowering for a TPU is looked at."""
    predicted, semantic = random_maps(1, (2, 9, 9), 5)

    def areas(predicted, semantic):
        return confusion.image_areas(predicted, semantic, 5)

    lowered = jax.jit(areas).trace(jnp.asarray(predicted), jnp.asarray(semantic))
    assert "scatter" not in lowered.lower(lowering_platforms=("tpu",)).as_text()
    assert "scatter" in lowered.lower(lowering_platforms=("cpu",)).as_text()


def test_totals_are_exact_beyond_32_bits():
    """2000 x 2**31 pixels of a class, plus one at a time where float32 would lose them."""
    big = jnp.full((1, 3, 2), 2**31 - 1, jnp.int32)
    one = jnp.ones((1, 3, 2), jnp.int32)
    add = jax.jit(confusion.add)
    total = confusion.zeros(2)
    for _ in range(5):
        total = add(total, big)
        total = add(total, one)
    total = add(total, one)
    np.testing.assert_array_equal(confusion.to_host(total), np.full((3, 2), 5 * 2**31 + 1))
    several = jnp.stack([total, total])
    np.testing.assert_array_equal(confusion.to_host(several), np.full((3, 2), 10 * 2**31 + 2))


def test_absent_classes_are_nan_and_left_out_of_the_means():
    #                 right, predicted, labelled
    areas = np.array([[6, 0, 0, 1], [8, 5, 0, 1], [10, 0, 0, 8]])
    np.testing.assert_allclose(confusion.iou(areas), [6 / 12, 0, np.nan, 1 / 8])
    np.testing.assert_allclose(confusion.accuracy(areas), [0.6, np.nan, np.nan, 1 / 8])
    summary = confusion.summary(areas, ["road", "never there", "absent", "sky"])
    assert summary["mIoU"] == round(100 * (0.5 + 0 + 0.125) / 3, 2)
    assert summary["mAcc"] == round(100 * (0.6 + 0.125) / 2, 2)
    assert summary["aAcc"] == round(100 * 7 / 18, 2)
    assert [row["name"] for row in summary["classes"]] == ["road", "never there", "absent", "sky"]
    assert [row["IoU"] for row in summary["classes"]] == [50.0, 0.0, None, 12.5]
    assert [row["Acc"] for row in summary["classes"]] == [60.0, None, None, 12.5]


def test_nothing_labelled_gives_nan_and_no_warning(recwarn):
    summary = confusion.summary(np.zeros((3, 2), np.int64), ["a", "b"])
    assert all(np.isnan(summary[name]) for name in ("mIoU", "mAcc", "aAcc"))
    assert not len(recwarn)
