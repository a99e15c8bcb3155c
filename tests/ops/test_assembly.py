"""Assembly against doing it plainly: resize every window, lay it down, count, crop, resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import assembly, resize

CASES = {
    # name: (output, image, starts of the rows, of the columns, window, cells, mirrored)
    "one window": ((32, 48), (32, 48), (0,), (0,), (32, 48), (8, 12), False),
    "enlarged": ((75, 101), (32, 48), (0,), (0,), (32, 48), (8, 12), False),
    "reduced": ((20, 17), (32, 48), (0,), (0,), (32, 48), (8, 12), False),
    "overlapping": ((40, 57), (40, 57), (0, 8), (0, 20, 25), (32, 32), (8, 8), False),
    "three deep": ((64, 40), (64, 40), (0, 8, 16, 32), (0, 8), (32, 32), (4, 4), False),
    "short": ((19, 33), (19, 33), (0,), (0, 1), (32, 32), (8, 8), False),
    "short, enlarged, mirrored": ((60, 90), (19, 41), (0,), (0, 9), (32, 32), (8, 8), True),
    "odd cells": ((50, 50), (45, 37), (0, 13), (0, 5), (32, 32), (5, 7), True),
}


def plain_logits(scores, case):
    """scores [ny, nx, h, w, K] -> [H, W, K], in float64 where numpy does the work."""
    output, image, tops, lefts, window, _, mirrored = case
    total = np.zeros((*image, scores.shape[-1]))
    count = np.zeros((*image, 1))
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            here = np.asarray(resize.bilinear(jnp.asarray(scores[i, j])[None], window))[0]
            place = total[top : top + window[0], left : left + window[1]]
            place += here[: place.shape[0], : place.shape[1]]
            count[top : top + window[0], left : left + window[1]] += 1
    logits = np.asarray(resize.bilinear(jnp.asarray(total / count, jnp.float32)[None], output))[0]
    return logits[:, ::-1] if mirrored else logits


def make(case, classes=5, seed=0, length=(0, 0)):
    """(scores of the windows, the copy that assembly takes)."""
    output, image, tops, lefts, window, cells, mirrored = case
    shape = (len(tops), len(lefts), *cells, classes)
    scores = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3
    rows = assembly.taps(output[0], image[0], tops, window[0], cells[0])
    columns = assembly.taps(output[1], image[1], lefts, window[1], cells[1], mirrored)
    joined = assembly.join_windows(
        jnp.asarray(scores).reshape(1, -1, *cells, classes), (len(tops), len(lefts))
    )
    blocks = (
        assembly.blocks(*rows, assembly.ROW_TILE, length[0]),
        assembly.blocks(*columns, assembly.COLUMN_TILE, length[1]),
    )
    return scores, assembly.Copy(joined, *(assembly.stack([axis]) for axis in blocks))


def softmax(x):
    return np.asarray(jax.nn.softmax(jnp.asarray(x), axis=-1))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_plain_way(name):
    case = CASES[name]
    scores, copy = make(case)
    height, width = case[0]
    found = np.asarray(jax.jit(assembly.scores)([copy]))[0, :height, :width]
    expected = plain_logits(scores, case)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_weights_of_a_pixel_sum_to_one_and_stay_in_range(name):
    output, image, tops, _, window, cells, _ = CASES[name]
    indices, weights = assembly.taps(output[0], image[0], tops, window[0], cells[0])
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert weights.min() >= 0
    assert 0 <= indices.min() and indices.max() < len(tops) * cells[0]


def test_several_copies_average_probabilities_not_logits():
    names = ("one window", "overlapping", "short, enlarged, mirrored")
    cases = [((40, 57), *CASES[name][1:]) for name in names]
    made = [make(case, seed=seed) for seed, case in enumerate(cases)]
    logits = [plain_logits(scores, case) for (scores, _), case in zip(made, cases)]
    expected = sum(map(softmax, logits)) / len(logits)
    copies = [copy for _, copy in made]
    found = np.asarray(jax.jit(assembly.probabilities)(copies))[0, :40, :57]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = np.asarray(jax.jit(assembly.labels)(copies))[0, :40, :57]
    sure = np.diff(np.sort(expected, axis=-1)[..., -2:], axis=-1)[..., 0] > 1e-4
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(labels[sure], expected.argmax(-1)[sure])
    from_logits = np.mean(logits, axis=0).argmax(-1)
    assert (labels != from_logits).mean() > 0.02  # the two do differ


def test_a_single_copy_gives_softmax_on_request():
    scores, copy = make(CASES["overlapping"])
    found = np.asarray(assembly.probabilities([copy]))[0, :40, :57]
    np.testing.assert_allclose(found, softmax(plain_logits(scores, CASES["overlapping"])), 1e-4)


def test_images_of_different_sizes_share_a_batch():
    names = ("overlapping", "three deep")
    cases = [(*CASES[name][:2], (0, 8), (0, 5), (32, 32), (8, 8), False) for name in names]
    cases = [((52, 60), (40, 37), *cases[0][2:]), ((31, 33), (40, 37), *cases[1][2:])]
    made = [make(case, seed=seed, length=(64, 64)) for seed, case in enumerate(cases)]
    both = assembly.Copy(
        jnp.concatenate([copy.scores for _, copy in made]),
        *(
            assembly.stack([jax.tree.map(lambda x: x[0], getattr(copy, axis)) for _, copy in made])
            for axis in ("rows", "columns")
        ),
    )
    found = np.asarray(assembly.scores([both]))
    assert found.shape == (2, 64, 64, 5)
    for image, (scores, _), case in zip(found, made, cases):
        height, width = case[0]
        expected = plain_logits(scores, case)
        np.testing.assert_allclose(image[:height, :width], expected, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 5, 16, 17, 40])
def test_the_best_class_is_argmax_with_ties_to_the_lowest(classes):
    scores = np.random.default_rng(0).integers(0, 4, (6, 50, classes)).astype(np.float32)
    found = np.asarray(assembly.best_class(jnp.asarray(scores)))
    np.testing.assert_array_equal(found, scores.argmax(-1))
    assert found.dtype == np.int32


def test_windows_are_joined_row_by_row():
    scores = jnp.arange(2 * 6 * 2 * 3).reshape(2, 6, 2, 3, 1)
    joined = assembly.join_windows(scores, (3, 2))
    assert joined.shape == (2, 6, 6, 1)
    np.testing.assert_array_equal(joined[1, 2:4, 3:6], scores[1, 3])  # row 1, column 1


def test_labels_never_hold_the_full_scores():
    """Six copies of 512 x 512 pixels of 60 classes would take 63 MB each."""
    classes, side = 60, 512
    case = ((side, side), (256, 256), (0, 64), (0, 64), (192, 192), (48, 48), False)
    copies = [make(case, classes)[1] for _ in range(6)]
    compiled = jax.jit(assembly.labels).lower(copies).compile()
    full = 4 * classes * side * side
    assert compiled.memory_analysis().temp_size_in_bytes < full / 6


def test_gaps_between_windows_are_refused():
    with pytest.raises(ValueError, match="do not cover"):
        assembly.taps(64, 64, (0, 40), 20, 5)
