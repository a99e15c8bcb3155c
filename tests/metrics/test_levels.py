"""Scores of levels, from the matrix, equal those of label maps whose classes are replaced."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data import hierarchies
from segjax.metrics import confusion, levels
from segjax.structs import IGNORE

ANCESTORS = np.array([[0, 0, 0], [1, 1, 1], [2, 1, 1], [3, 2, 1], [4, 1, 1]])
NAMES = (tuple("abcde"), ("A", "B", "C"), ("top", "rest"))


def maps(seed=0, classes=5, shape=(3, 11, 13)):
    rng = np.random.default_rng(seed)
    truth = rng.integers(IGNORE, classes, shape).astype(np.int16)
    return rng.integers(0, classes, shape).astype(np.int16), truth


def matrix(predicted, truth, classes):
    pairs = confusion.image_pairs(jnp.asarray(predicted), jnp.asarray(truth), classes)
    return np.asarray(pairs).astype(np.int64).sum(0)


def areas_of_maps(predicted, truth, classes):
    counted = confusion.image_areas(jnp.asarray(predicted), jnp.asarray(truth), classes)
    return np.asarray(counted).astype(np.int64).sum(0)


@pytest.mark.parametrize("name", ["cityscapes", "person_part", "shapescapes"])
def test_merging_the_matrix_is_replacing_the_labels_of_every_pixel(name):
    tree = hierarchies.load(name)
    predicted, truth = maps(classes=tree.sizes[0], shape=(2, 40, 40))
    found = levels.areas(matrix(predicted, truth, tree.sizes[0]), tree.ancestors)
    assert len(found) == len(tree.sizes)
    for level, classes in enumerate(tree.sizes):
        above = tree.ancestors[:, level].astype(np.int16)
        replaced = np.where(truth == IGNORE, IGNORE, above[truth])
        expected = areas_of_maps(above[predicted], replaced, classes)
        assert expected.any()
        chex.assert_trees_all_equal(found[level], expected)


def test_a_level_counts_confusions_within_a_group_as_right():
    """All of class 1 is taken for class 2, which has the same parent."""
    pairs = np.zeros((5, 5), np.int64)
    pairs[1, 2], pairs[3, 3], pairs[0, 3] = 10, 5, 5
    found = levels.summary(pairs, ANCESTORS, NAMES)
    assert found["mIoU^1"] == 12.5  # 0, 0, 0 and 1/2; class 4 is nowhere
    assert found["mIoU^2"] == 50.0  # 0, 1 and 1/2
    assert found["mIoU^3"] == 37.5  # 0 and 15/20
    second, third = found["levels"]
    assert (second["level"], third["level"]) == (2, 3)
    assert [row["name"] for row in second["classes"]] == ["A", "B", "C"]
    assert [row["IoU"] for row in second["classes"]] == [0.0, 100.0, 50.0]
    assert third["aAcc"] == 75.0


def test_the_first_level_is_the_flat_score():
    predicted, truth = maps(1)
    found = levels.summary(matrix(predicted, truth, 5), ANCESTORS, NAMES)
    flat = confusion.summary(areas_of_maps(predicted, truth, 5), NAMES[0])
    assert found["mIoU^1"] == flat["mIoU"]


def test_every_level_holds_all_pixels_and_none_is_less_accurate_than_the_one_below():
    predicted, truth = maps(2)
    found = levels.areas(matrix(predicted, truth, 5), ANCESTORS)
    assert {int(areas[confusion.LABELLED].sum()) for areas in found} == {(truth != IGNORE).sum()}
    accuracies = [confusion.pixel_accuracy(areas) for areas in found]
    assert accuracies == sorted(accuracies) and accuracies[0] < accuracies[-1]


def test_counts_beyond_32_bits_stay_exact():
    pairs = np.full((5, 5), 2**40 + 1, np.int64)
    chex.assert_trees_all_equal(
        levels.merged(pairs, ANCESTORS[:, 2], 2), (2**40 + 1) * np.array([[1, 4], [4, 16]])
    )
    assert levels.areas(pairs, ANCESTORS)[2][confusion.LABELLED].tolist() == [
        5 * (2**40 + 1),
        20 * (2**40 + 1),
    ]


def test_a_group_that_occurs_nowhere_does_not_count():
    pairs = np.zeros((5, 5), np.int64)
    pairs[0, 0] = 7
    found = levels.summary(pairs, ANCESTORS, NAMES)
    assert [found[f"mIoU^{level}"] for level in (1, 2, 3)] == [100.0] * 3
    assert [row["IoU"] for row in found["levels"][0]["classes"]] == [100.0, None, None]
