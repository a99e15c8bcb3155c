"""Areas and means against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.metrics import confusion
from segjax.structs import IGNORE


def counted_by_hand(predicted, semantic, classes):
    areas = np.zeros((3, classes), np.int64)
    for p, s in zip(predicted.reshape(-1).tolist(), semantic.reshape(-1).tolist()):
        if s == IGNORE:
            continue
        if p < classes:
            areas[confusion.PREDICTED, p] += 1
        if s < classes:
            areas[confusion.LABELLED, s] += 1
        if p == s and p < classes:
            areas[confusion.INTERSECTION, p] += 1
    return areas


def on_device(predicted, semantic, classes):
    return np.asarray(
        jax.jit(confusion.image_areas, static_argnums=2)(
            jnp.asarray(predicted), jnp.asarray(semantic), classes
        )
    )


def test_areas_of_each_image_are_what_counting_by_hand_gives():
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, 9, (3, 13, 17)).astype(np.int16)
    semantic = rng.integers(IGNORE, 9, (3, 13, 17)).astype(np.int16)
    areas = on_device(predicted, semantic, 7)  # 7 and 8 are no classes
    assert areas.dtype == np.int32
    for image in range(3):
        expected = counted_by_hand(predicted[image], semantic[image], 7)
        np.testing.assert_array_equal(areas[image], expected)


def test_predictions_on_pixels_without_a_label_count_nowhere():
    semantic = np.array([[[0, IGNORE, 1, IGNORE]]], np.int16)
    one, other = (np.array([[[0, x, 1, 1 - x]]], np.int16) for x in (0, 1))
    np.testing.assert_array_equal(on_device(one, semantic, 2), on_device(other, semantic, 2))
    assert on_device(one, semantic, 2).sum() == 6


def test_totals_are_exact_beyond_32_bits():
    """Cityscapes-size images overflow 32 bits after some two thousand."""
    total = confusion.zeros(2)
    area = np.array([[[2**31 - 1, 3], [2**31 - 1, 0], [7, 2**30 + 1]]], np.int32)
    add = jax.jit(confusion.add)
    for _ in range(5):
        total = add(total, jnp.asarray(np.repeat(area, 2, axis=0)))
    np.testing.assert_array_equal(confusion.to_host(total), 10 * area[0].astype(np.int64))


def test_totals_of_several_devices_are_added():
    total = np.stack([np.asarray(confusion.zeros(2))] * 3)
    total[:, 0, 1, 0] = (5, 6, 2**32 - 1)
    assert confusion.to_host(total)[1, 0] == 2**32 + 10


def test_classes_that_occur_nowhere_are_left_out_of_the_means_and_false_alarms_count():
    #                   right      predicted  labelled; class 2 is nowhere, 3 is only predicted
    areas = np.array([[3, 1, 0, 0], [4, 2, 0, 5], [6, 2, 0, 0]], np.int64)
    summary = confusion.summary(areas, ["a", "b", "c", "d"])
    ious = [3 / 7, 1 / 3, 0.0]
    assert summary["mIoU"] == round(100 * sum(ious) / 3, 2)
    assert summary["mAcc"] == round(100 * (3 / 6 + 1 / 2) / 2, 2)
    assert summary["aAcc"] == 50.0
    assert [row["IoU"] for row in summary["classes"]] == [42.86, 33.33, None, 0.0]
    assert [row["Acc"] for row in summary["classes"]] == [50.0, 50.0, None, None]
    assert [row["labelled"] for row in summary["classes"]] == [6, 2, 0, 0]


def test_nothing_labelled_gives_nan_and_no_warning():
    with np.errstate(all="raise"):
        summary = confusion.summary(np.zeros((3, 2), np.int64), ["a", "b"])
    assert np.isnan(summary["mIoU"]) and np.isnan(summary["aAcc"])


@pytest.mark.parametrize("classes", [1, 150])
def test_a_perfect_prediction_has_100_percent(classes):
    labels = np.arange(400).reshape(1, 20, 20).astype(np.int16) % classes
    areas = on_device(labels, labels, classes).sum(axis=0).astype(np.int64)
    summary = confusion.summary(areas, [str(k) for k in range(classes)])
    assert (summary["mIoU"], summary["mAcc"], summary["aAcc"]) == (100.0, 100.0, 100.0)


def test_a_tpu_counts_without_scatter():
    """It has no fast one; its lowering can be looked at from any machine."""
    maps = jax.ShapeDtypeStruct((2, 9, 9), jnp.int16)
    traced = jax.jit(confusion.image_areas, static_argnums=2).trace(maps, maps, 5)
    assert "scatter" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "scatter" in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_counting_without_scatter_gives_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    predicted, semantic = rng.integers(0, 6, (2, 2, 11, 5)).astype(np.int16)
    semantic[rng.random(semantic.shape) < 0.2] = IGNORE
    expected = on_device(predicted, semantic, 5)
    as_a_tpu = lambda *args, tpu, default: tpu(*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", as_a_tpu)
    found = confusion.image_areas(jnp.asarray(predicted), jnp.asarray(semantic), 5)
    np.testing.assert_array_equal(found, expected)


def pairs_by_hand(predicted, semantic, classes):
    matrix = np.zeros((classes, classes), np.int64)
    for p, s in zip(predicted.reshape(-1).tolist(), semantic.reshape(-1).tolist()):
        if 0 <= s < classes and p < classes:
            matrix[s, p] += 1
    return matrix


def pairs_on_device(predicted, semantic, classes):
    return np.asarray(
        jax.jit(confusion.image_pairs, static_argnums=2)(
            jnp.asarray(predicted), jnp.asarray(semantic), classes
        )
    )


@pytest.mark.parametrize("classes", [1, 7, 150])
def test_the_matrix_of_each_image_is_what_counting_by_hand_gives(classes):
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, classes, (3, 13, 17)).astype(np.int16)
    semantic = rng.integers(IGNORE, classes, (3, 13, 17)).astype(np.int16)
    pairs = pairs_on_device(predicted, semantic, classes)
    assert pairs.dtype == np.int32
    for image in range(3):
        expected = pairs_by_hand(predicted[image], semantic[image], classes)
        np.testing.assert_array_equal(pairs[image], expected)


def test_a_matrix_holds_the_areas():
    rng = np.random.default_rng(1)
    predicted = rng.integers(0, 6, (4, 9, 8)).astype(np.int16)
    semantic = rng.integers(IGNORE, 6, (4, 9, 8)).astype(np.int16)
    found = confusion.pair_areas(jnp.asarray(pairs_on_device(predicted, semantic, 6)))
    np.testing.assert_array_equal(found, on_device(predicted, semantic, 6))


def test_pixels_of_no_class_are_in_no_pair():
    predicted = np.array([[[0, 1, 2, 1]]], np.int16)
    semantic = np.array([[[IGNORE, 1, 1, 2]]], np.int16)
    np.testing.assert_array_equal(pairs_on_device(predicted, semantic, 2), [[[0, 0], [0, 1]]])


def test_totals_of_matrices_are_exact_beyond_32_bits():
    total = jnp.zeros((2, 2, 2), jnp.uint32)
    pairs = np.array([[2**31 - 1, 3], [0, 2**30 + 1]], np.int32)
    add = jax.jit(confusion.add)
    for _ in range(5):
        total = add(total, jnp.asarray(np.stack([pairs] * 2)))
    np.testing.assert_array_equal(confusion.to_host(total), 10 * pairs.astype(np.int64))
    both = np.stack([np.asarray(total)] * 2)
    np.testing.assert_array_equal(confusion.to_host(both), 20 * pairs.astype(np.int64))


def test_a_tpu_counts_pairs_by_matrix_products():
    maps = jax.ShapeDtypeStruct((2, 9, 9), jnp.int16)
    traced = jax.jit(confusion.image_pairs, static_argnums=2).trace(maps, maps, 5)
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "scatter" not in lowered and "dot_general" in lowered


@pytest.mark.parametrize("tile", [7, 55, 8192])
def test_matrix_products_count_the_same_pairs(tile, monkeypatch):
    rng = np.random.default_rng(3)
    predicted, semantic = rng.integers(0, 6, (2, 2, 11, 5)).astype(np.int16)
    semantic[rng.random(semantic.shape) < 0.2] = IGNORE
    expected = pairs_on_device(predicted, semantic, 5)
    assert expected.sum()
    as_a_tpu = lambda *args, tpu, default: tpu(*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", as_a_tpu)
    monkeypatch.setattr(confusion, "PAIR_TILE", tile)
    found = confusion.image_pairs(jnp.asarray(predicted), jnp.asarray(semantic), 5)
    np.testing.assert_array_equal(found, expected)


def test_the_iou_of_an_image_is_over_the_classes_in_its_truth():
    #                 right   predicted  labelled; class 2 is a false alarm, 3 is nowhere
    areas = np.array([[3, 1, 0, 0], [4, 2, 5, 0], [6, 2, 0, 0]])
    found = confusion.present_iou(np.stack([areas, 0 * areas]))
    assert found[0] == pytest.approx((3 / 7 + 1 / 3) / 2)
    assert np.isnan(found[1])
