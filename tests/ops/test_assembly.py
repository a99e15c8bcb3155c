"""Assembly against the plain way: resize every window, lay it, count, divide, resize, softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.ops import assembly, resize

# What the cases differ in: the size of the result and of the image that is cut, window, cells, the
# first pixels of the windows along both axes, and whether the image was mirrored.
ONE_WINDOW = ((40, 50), (40, 50), (40, 50), (10, 13), ((0,), (0,)), False)
OVERLAPPING = ((37, 61), (48, 72), (32, 32), (8, 8), ((0, 16), (0, 24, 40)), False)
SHORT_AND_PADDED = ((30, 70), (20, 48), (32, 32), (8, 8), ((0,), (0, 16)), True)
THREE_DEEP = ((100, 33), (70, 24), (40, 32), (10, 8), ((0, 10, 20, 30), (0,)), True)
CASES = {
    "one window": ONE_WINDOW,
    "overlapping": OVERLAPPING,
    "short, padded, mirrored": SHORT_AND_PADDED,
    "three windows deep": THREE_DEEP,
}


def padded(length, tile):
    return -(-length // tile) * tile


def copy_of(case, scores, length=None):
    """scores: [n, h, w, K] of one image."""
    size, inner, window, cells, starts, mirrored = case
    length = length or size
    axes = []
    for axis, tile in enumerate((assembly.ROW_TILE, assembly.COLUMN_TILE)):
        taps = assembly.taps(
            size[axis],
            inner[axis],
            starts[axis],
            window[axis],
            cells[axis],
            mirrored and axis == 1,
        )
        blocks = assembly.blocks(*taps, tile, padded(length[axis], tile))
        axes.append(assembly.stack([blocks]))
    grid = len(starts[0]), len(starts[1])
    return assembly.Copy(assembly.join_windows(jnp.asarray(scores)[None], grid), *axes)


def plain_logits(case, scores):
    size, inner, window, _, starts, mirrored = case
    large = resize.bilinear(jnp.asarray(scores), window)
    total = np.zeros((*inner, scores.shape[-1]), np.float32)
    count = np.zeros((*inner, 1), np.float32)
    for k, (top, left) in enumerate((y, x) for y in starts[0] for x in starts[1]):
        here = slice(top, top + window[0]), slice(left, left + window[1])
        h, w = count[here].shape[:2]
        total[here] += large[k, :h, :w]
        count[here] += 1
    logits = np.asarray(resize.bilinear(jnp.asarray(total / count), size))
    return logits[:, ::-1] if mirrored else logits


def random_scores(case, classes=21, seed=0):
    cells, starts = case[3], case[4]
    shape = (len(starts[0]) * len(starts[1]), *cells, classes)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_are_those_of_the_plain_way(case):
    scores = random_scores(case)
    ours = np.asarray(jax.jit(assembly.scores)([copy_of(case, scores)]))[0]
    height, width = case[0]
    plain = plain_logits(case, scores)
    assert relative_error(ours[:height, :width], plain) < 1e-5
    assert not ours[height:].any() and not ours[:, width:].any()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels_are_the_classes_of_the_plain_way(case):
    scores = random_scores(case)
    ours = np.asarray(jax.jit(assembly.labels)([copy_of(case, scores)]))[0]
    plain = plain_logits(case, scores)
    best = np.sort(plain, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5  # float32 may order closer ones either way
    assert clear.mean() > 0.999
    assert ours.dtype == np.int32
    labels = ours[: case[0][0], : case[0][1]]
    np.testing.assert_array_equal(labels[clear], plain.argmax(-1)[clear])


def same_size(size):
    """Three scales of an image of one size, each plain and mirrored, with unlike windows."""
    for inner, starts in (
        ((20, 30), ((0,), (0,))),
        ((40, 60), ((0, 8), (0, 28))),
        ((60, 90), ((0, 28), (0, 32, 58))),
    ):
        for mirrored in (False, True):
            yield size, inner, (32, 32), (8, 8), starts, mirrored


def test_several_copies_average_their_probabilities():
    cases = list(same_size((45, 67)))
    scores = [3 * random_scores(case, 5, seed) for seed, case in enumerate(cases)]
    copies = [copy_of(case, one) for case, one in zip(cases, scores)]
    ours = np.asarray(jax.jit(assembly.scores)(copies))[0, :45, :67]
    logits = (jnp.asarray(plain_logits(case, one)) for case, one in zip(cases, scores))
    plain = np.mean([jax.nn.softmax(x, axis=-1) for x in logits], axis=0)
    assert relative_error(ours, plain) < 1e-5
    labels = np.asarray(jax.jit(assembly.labels)(copies))[0, :45, :67]
    assert (labels == plain.argmax(-1)).mean() > 0.999


def test_probabilities_of_one_copy_are_its_softmax():
    copy = copy_of(OVERLAPPING, random_scores(OVERLAPPING))
    logits, probabilities = assembly.scores([copy]), assembly.probabilities([copy])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits, axis=-1), rtol=1e-6)


def test_a_flip_is_undone():
    """Mirrored scores of a mirrored image give what the plain ones give, up to the last bit: which
    of two taps is multiplied first decides what a fused multiply-add rounds."""
    case = ((40, 64), (40, 64), (40, 64), (10, 16), ((0,), (0,)), False)
    scores = random_scores(case)
    plain = assembly.scores([copy_of(case, scores)])
    mirrored = assembly.scores([copy_of((*case[:-1], True), scores[:, :, ::-1])])
    assert relative_error(mirrored, plain) < 1e-6


def test_images_of_a_batch_with_unlike_sizes_do_not_touch_each_other():
    sizes = [(37, 61), (30, 40), (16, 64)]
    cases = [(size, *OVERLAPPING[1:]) for size in sizes]
    scores = [random_scores(case, seed=i) for i, case in enumerate(cases)]
    singles = [copy_of(case, one, (48, 64)) for case, one in zip(cases, scores)]
    batch = assembly.Copy(
        jnp.concatenate([copy.scores for copy in singles]),
        assembly.stack([jax.tree.map(lambda x: x[0], copy.rows) for copy in singles]),
        assembly.stack([jax.tree.map(lambda x: x[0], copy.columns) for copy in singles]),
    )
    together = np.asarray(assembly.scores([batch]))
    for i, copy in enumerate(singles):
        np.testing.assert_allclose(together[i], assembly.scores([copy])[0], atol=1e-6)


def test_an_accelerator_takes_more_strips_at_once_and_gets_the_same(monkeypatch):
    cases = list(same_size((45, 67)))[2:4]
    copies = [copy_of(case, random_scores(case)) for case in cases]
    one_by_one = jax.jit(lambda copies: assembly.scores(copies))(copies)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    at_once = jax.jit(lambda copies: assembly.scores(copies))(copies)
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-6)


def test_no_full_resolution_tensor_of_classes_exists():
    """The labels of a 512 x 704 image with 150 classes need less than a tenth of its logits."""
    case = ((512, 704), (512, 704), (512, 512), (128, 128), ((0,), (0, 192)), False)
    copy = jax.eval_shape(lambda: copy_of(case, jnp.zeros((2, 128, 128, 150))))
    memory = jax.jit(assembly.labels).lower([copy]).compile().memory_analysis()
    full = 4 * 512 * 704 * 150
    assert memory.temp_size_in_bytes < full / 10
    plain = jax.jit(lambda copies: assembly.scores(copies).argmax(-1)).lower([copy]).compile()
    assert plain.memory_analysis().temp_size_in_bytes >= full


@given(
    length=st.integers(1, 90),
    inner=st.integers(1, 90),
    crop=st.integers(4, 40),
    cells=st.integers(1, 12),
    stride=st.integers(1, 40),
    mirrored=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_weights_of_every_pixel_sum_to_one(length, inner, crop, cells, stride, mirrored):
    stride = min(stride, crop)
    count = max(inner - crop + stride - 1, 0) // stride + 1
    starts = [max(min(k * stride + crop, inner) - crop, 0) for k in range(count)]
    indices, weights = assembly.taps(length, inner, starts, crop, cells, mirrored)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert indices.min() >= 0 and indices.max() < count * cells
    blocks = assembly.blocks(indices, weights, 16)
    dense, again = (np.zeros((length, count * cells)) for _ in range(2))
    np.add.at(dense, (np.arange(length)[:, None], indices), weights)
    for row in range(length):
        np.add.at(again[row], blocks.indices[row // 16], blocks.weights[row // 16, row % 16])
    np.testing.assert_allclose(again, dense, atol=1e-6)


def test_windows_that_leave_a_gap_are_refused():
    with pytest.raises(ValueError, match="do not cover"):
        assembly.taps(50, 50, (0, 30), 20, 5)


@pytest.mark.parametrize("classes", [1, 7, 16, 17, 150])
def test_best_class_is_the_lowest_of_the_highest(classes):
    scores = np.random.default_rng(1).integers(0, 4, (9, 31, classes)).astype(np.float32)
    best = assembly.best_class(jnp.asarray(scores))
    np.testing.assert_array_equal(best, scores.argmax(-1))


def test_scores_may_cover_more_than_their_window():
    """A system that fills 27 pixels up to 32 has scores for 32; those beyond the image are cut."""
    scores = np.random.default_rng(0).normal(size=(4, 1, 1)).astype(np.float32)
    indices, weights = assembly.taps(27, 27, (0,), 27, 4, covers=32)
    ours = (scores[indices, 0, 0] * weights).sum(axis=1)
    plain = resize.bilinear(jnp.asarray(scores)[None], (32, 1))[0, :27, 0, 0]
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
