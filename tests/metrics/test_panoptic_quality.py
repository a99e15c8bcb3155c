"""Panoptic quality against the definition, loop by loop, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.bench import measure, metrics_contest
from segjax.bench.plain_panoptic import plain_counts
from segjax.errors import SegjaxError
from segjax.metrics import panoptic

CLASSES = 4


def counted(truth, predicted, true_class, crowd, found_class, **options):
    """The counts [K, 4]; the truth counts segments from 0, the prediction from 1."""
    shared = panoptic.intersections(
        jnp.asarray(truth), jnp.asarray(predicted), len(true_class), len(found_class)
    )
    counts = panoptic.from_image(
        np.asarray(shared), np.array(true_class), np.array(crowd), np.array(found_class), CLASSES,
        **options,
    )  # fmt: skip
    return counts, np.stack([counts.iou, counts.matched, counts.false, counts.missed], axis=-1)


def draw(seed):
    """A truth of stripes with void and crowds, and a prediction that is it moved and renamed."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, 9, (5, 6)).repeat(5, 0).repeat(5, 1).astype(np.int32)
    predicted = np.roll(truth, rng.integers(0, 3, 2), (0, 1)) + 1
    predicted[predicted == 3] = 0
    true_class = rng.integers(0, CLASSES, 9)
    found_class = np.where(rng.random(9) < 0.3, rng.integers(0, CLASSES, 9), true_class)
    drawn = np.bincount(predicted.reshape(-1), minlength=10)[1:] > 0
    return truth, predicted, true_class, rng.random(9) < 0.3, np.where(drawn, found_class, -1)


def by_the_definition(truth, predicted, true_class, crowd, found_class, areas=None):
    areas = np.bincount(truth[truth >= 0], minlength=9) if areas is None else areas
    true = [
        dict(id=k + 1, category_id=int(c), area=int(areas[k]), iscrowd=int(crowd[k]))
        for k, c in enumerate(true_class)
    ]
    found = [dict(id=k + 1, category_id=int(c)) for k, c in enumerate(found_class) if c >= 0]
    return plain_counts(truth + 1, true, predicted, found, range(CLASSES))


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_the_definition(seed):
    scene = draw(seed)
    np.testing.assert_allclose(counted(*scene)[1], by_the_definition(*scene), rtol=1e-12)


def test_the_area_that_a_file_states_counts_instead_of_the_pixels():
    scene = draw(1)
    areas = np.bincount(scene[0][scene[0] >= 0], minlength=9) + 3
    found = counted(*scene, true_area=areas)[1]
    np.testing.assert_allclose(found, by_the_definition(*scene, areas), rtol=1e-12)
    assert (found[:, 0] < counted(*scene)[1][:, 0]).any()


def row(*pieces):
    """A map of one row: (value, pixels)."""
    return np.concatenate([np.full(n, value, np.int32) for value, n in pieces])[None]


def test_an_iou_of_one_half_is_no_match():
    half = counted(row((0, 6), (-1, 4)), row((1, 3), (0, 7)), [2], [False], [2])[1]
    assert half[2].tolist() == [0, 0, 1, 1]
    more = counted(row((0, 7), (-1, 3)), row((1, 4), (0, 6)), [2], [False], [2])[1]
    assert more[2].tolist() == [4 / 7, 1, 0, 0]


def test_void_is_taken_out_of_the_union_and_excuses_a_prediction_that_lies_in_it():
    matched = counted(row((0, 4), (-1, 6)), row((1, 8), (0, 2)), [1], [False], [1])[1]
    assert matched[1].tolist() == [1, 1, 0, 0]
    excused = counted(row((0, 4), (-1, 6)), row((0, 3), (1, 3), (0, 4)), [1], [False], [1])[1]
    assert excused[1].tolist() == [0, 0, 0, 1]
    at_half = counted(row((0, 4), (-1, 6)), row((0, 3), (1, 2), (0, 5)), [1], [False], [1])[1]
    assert at_half[1].tolist() == [0, 0, 1, 1]


def test_a_crowd_matches_nothing_and_excuses_predictions_of_its_class():
    truth, found = row((0, 8), (1, 2)), row((1, 4), (2, 4), (3, 2))
    counts = counted(truth, found, [1, 2], [True, False], [1, 3, 2])[1]
    assert counts.tolist() == [[0] * 4, [0] * 4, [1, 1, 0, 0], [0, 0, 1, 0]]


def test_of_two_crowds_of_a_class_only_the_last_is_known():
    truth, found = row((0, 4), (1, 4)), row((1, 4), (2, 4))
    assert counted(truth, found, [1, 1], [True, True], [1, 1])[1][1].tolist() == [0, 0, 1, 0]


def test_without_a_prediction_all_is_missed_and_without_truth_all_is_void():
    truth = row((0, 4), (1, 4))
    assert counted(truth, 0 * truth, [0, 3], [False, True], [-1])[1].sum(0).tolist() == [0, 0, 0, 1]
    empty = counted(0 * truth - 1, truth + 1, [-1], [False], [0, 1])[1]
    assert not empty.any()


def test_a_true_segment_without_a_pixel_is_missed():
    assert counted(row((0, 4)), row((1, 4)), [0, 0], [False] * 2, [0])[1][0].tolist() == [
        1,
        1,
        0,
        1,
    ]


def test_two_images_have_the_sum_of_their_counts():
    (one, mine), (other, its) = counted(*draw(0)), counted(*draw(5))
    both = panoptic.Counts.zeros(CLASSES) + one + other
    found = np.stack([both.iou, both.matched, both.false, both.missed], axis=-1)
    np.testing.assert_array_equal(found, mine + its)
    assert both.matched.dtype == np.int64


def test_a_map_and_a_table_that_differ_are_told_apart():
    with pytest.raises(SegjaxError, match=r"a\.png: predicted segment 2 has no pixel"):
        counted(row((0, 4)), row((1, 4)), [0], [False], [0, 1], name="a.png")
    with pytest.raises(SegjaxError, match="segment 1 has pixels but no class"):
        counted(row((0, 4)), row((1, 4)), [0], [False], [-1])


def test_means_are_over_the_classes_that_occur():
    counts = panoptic.Counts(
        np.array([1.6, 0, 0, 0.9]), *np.array([[2, 0, 0, 1], [0, 2, 0, 0], [2, 0, 0, 0]])
    )
    summary = panoptic.summary(counts, [True, True, False, False], list("abcd"))
    a, d = {"PQ": 160 / 3, "SQ": 80, "RQ": 200 / 3}, {"PQ": 90, "SQ": 90, "RQ": 100}
    for part, classes in (("all", (a, {}, d)), ("things", (a, {})), ("stuff", (d,))):
        assert summary[part]["n"] == len(classes)
        for figure in ("PQ", "SQ", "RQ"):
            mean = sum(one.get(figure, 0) for one in classes) / len(classes)
            assert summary[part][figure] == pytest.approx(mean)
    assert summary["classes"][1] == dict(
        name="b", PQ=0.0, SQ=0.0, RQ=0.0, matched=0, false=2, missed=0
    )
    assert summary["classes"][2]["PQ"] is None
    nothing = panoptic.summary(panoptic.Counts.zeros(2), [True, False], ["a", "b"])
    assert nothing["all"]["n"] == 0 and np.isnan(nothing["all"]["PQ"])


def test_a_tpu_counts_by_matrix_products():
    maps = jax.ShapeDtypeStruct((9, 9), jnp.int32)
    traced = jax.jit(panoptic.intersections, static_argnums=(2, 3)).trace(maps, maps, 5, 4)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "scatter" not in text and "dot_general" in text


@pytest.mark.parametrize("tile", [7, 8192])
def test_matrix_products_count_the_same(tile, monkeypatch):
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.integers(-1, 7, (11, 9))), jnp.asarray(rng.integers(-1, 6, (11, 9)))
    expected = np.asarray(panoptic.intersections(*maps, 5, 4))
    by_hand = np.zeros((6, 5), int)
    for one, other in zip(np.ravel(maps[0]) + 1, np.ravel(maps[1])):
        if one <= 5 and 0 <= other <= 4:
            by_hand[one, other] += 1
    np.testing.assert_array_equal(expected, by_hand)
    monkeypatch.setattr(panoptic, "TILE", tile)
    as_a_tpu = lambda *args, tpu, default: tpu(*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", as_a_tpu)
    np.testing.assert_array_equal(panoptic.intersections(*maps, 5, 4), expected)


def test_the_contest_runs_and_its_sides_agree():
    rows = measure.measure_all(metrics_contest.contests(((48, 64),)), 1)
    assert rows[0]["sides"]["numpy"]["error"] <= 1e-12
