"""Panoptic, semantic and instance results against the official rules at full size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import dense, panoptic
from segjax.structs import IGNORE

torch = pytest.importorskip("torch")

GRID, PADDED, INSIDE, OUTPUT, BUCKET = (8, 12), (32, 48), (29, 41), (37, 53), (40, 64)
QUERIES, CLASSES = 21, 6
IS_THING = np.array([True, False, True, False, False, True])
AXES = list(zip(GRID, PADDED, INSIDE, OUTPUT, BUCKET))


def network(seed=0, queries=QUERIES, confident=14):
    """Logits of cells that divide the image between most of the confident queries, and of blobs
    over them."""
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(queries, CLASSES + 1)).astype(np.float32)
    classes[:, -1] += 3
    chosen = rng.choice(queries, confident, replace=False)
    classes[chosen, rng.integers(CLASSES, size=confident)] += 9
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    centre, radius = rng.uniform(0, GRID, (queries, 2)), rng.uniform(0.5, 3, queries)
    away = np.hypot(y[..., None] - centre[:, 0], x[..., None] - centre[:, 1])
    masks = 3 * (radius - away)
    cells = chosen[: 2 * confident // 3]
    for query in cells:
        others = np.setdiff1d(cells, query)
        masks[..., query] = 4 * (away[..., others].min(-1, initial=9) - away[..., query])
    return classes, (masks + rng.normal(size=away.shape) / 4).astype(np.float32)


def taps(bucket=BUCKET):
    return tuple(panoptic.placement(*axis[:4], size) for axis, size in zip(AXES, bucket))


@functools.cache
def programs():
    """Compiled once; all of one shape."""
    ours = jax.jit(panoptic.panoptic, static_argnames="clip")
    return ours, jax.jit(panoptic.instances, static_argnames="topk")


def run(classes, masks, clip=True, thresholds=(0.8, 0.8), bucket=BUCKET):
    given = classes, masks, *taps(bucket), np.array(OUTPUT, np.int32), IS_THING, *thresholds
    return jax.tree.map(np.asarray, programs()[0](*given, clip=clip))


def enlarged(masks):
    """float32 [Q, H, W] by PyTorch: to the padded image, cropped, to the output."""
    resize = functools.partial(
        torch.nn.functional.interpolate, mode="bilinear", align_corners=False
    )
    maps = resize(torch.tensor(masks).permute(2, 0, 1)[None], PADDED)
    return resize(maps[..., : INSIDE[0], : INSIDE[1]], OUTPUT)[0].numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def plain_panoptic(classes, masks, clip, object_threshold, overlap_threshold):
    """The rule, query by query."""
    shares = softmax(classes)
    label, score = shares.argmax(-1), shares.max(-1)
    kept = np.flatnonzero((label != CLASSES) & (score > object_threshold))
    found, table, stuff = np.zeros(OUTPUT, int), [], {}
    if not len(kept):
        return found, table
    mask = sigmoid(enlarged(masks))[kept]
    winner = (score[kept][:, None, None] * mask).argmax(0)
    for k, query in enumerate(kept):
        own, half = winner == k, mask[k] >= 0.5
        drawn = own & half if clip else own
        if not (own.any() and half.any() and drawn.any()):
            continue
        if own.sum() / half.sum() < overlap_threshold:
            continue
        kind = label[query]
        if not IS_THING[kind] and kind in stuff:
            found[drawn] = stuff[kind]
            continue
        table.append((kind, score[query]))
        found[drawn] = len(table)
        if not IS_THING[kind]:
            stuff[kind] = len(table)
    return found, table


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid, padded, inside, output", [*(axis[:4] for axis in AXES), (24, 96, 96, 70), (5, 5, 4, 9)]
)
def test_the_taps_of_an_axis_are_both_resizes_in_one(grid, padded, inside, output):
    x = torch.randn(1, 3, grid, generator=torch.Generator().manual_seed(0))
    resize = functools.partial(torch.nn.functional.interpolate, mode="linear")
    expected = resize(resize(x, padded)[..., :inside], output)[0].numpy()
    indices, weights = panoptic.placement(grid, padded, inside, output, output + 3)
    mixed = (x[0].numpy()[:, indices] * weights).sum(-1)
    np.testing.assert_allclose(mixed[:, :output], expected, atol=1e-5)
    assert not weights[output:].any() and indices.min() >= 0 and indices.max() < grid
    mirrored, its = panoptic.placement(grid, padded, inside, output, output + 3, mirrored=True)
    np.testing.assert_allclose(
        (x[0].numpy()[:, mirrored] * its).sum(-1)[:, :output], expected[:, ::-1], atol=1e-5
    )


def test_an_image_larger_than_its_padded_self_is_a_mistake():
    with pytest.raises(ValueError, match="33"):
        panoptic.placement(8, 32, 33, 40, 40)


@pytest.mark.parametrize("clip", [True, False], ids=["mask2former", "maskformer"])
@pytest.mark.parametrize("thresholds", [(0.8, 0.8), (0.0, 0.5), (0.7, 0.3)], ids=str)
def test_segments_are_those_of_the_official_rule(clip, thresholds):
    several = 0
    for seed in range(6):
        classes, masks = network(seed)
        expected, table = plain_panoptic(classes, masks, clip, *thresholds)
        found = run(classes, masks, clip, thresholds)
        number = (found.segment_class >= 0).sum()
        assert number == len(table)
        assert found.segment_class[:number].tolist() == [kind for kind, _ in table]
        np.testing.assert_allclose(
            found.segment_score[:number], [score for _, score in table], rtol=1e-5
        )
        here = found.segment_map[: OUTPUT[0], : OUTPUT[1]]
        assert (here == expected).mean() > 0.999
        several += number
    assert several > 10


def test_the_map_and_the_table_hold_the_same_segments():
    for seed in range(4):
        found = run(*network(seed))
        number = (found.segment_class >= 0).sum()
        assert set(np.unique(found.segment_map)) - {0} == set(range(1, number + 1))
        assert (found.segment_class[:number] >= 0).all() and not found.segment_score[number:].any()
        stuff = [k for k in found.segment_class[:number] if not IS_THING[k]]
        assert len(set(stuff)) == len(stuff), "stuff of one class is one segment"


def test_beyond_the_extent_there_is_nothing_and_it_counts_for_nothing():
    classes, masks = network(1)
    wide, exact = run(classes, masks), run(classes, masks, bucket=OUTPUT)
    assert not wide.segment_map[OUTPUT[0] :].any() and not wide.segment_map[:, OUTPUT[1] :].any()
    here = wide.segment_map[: OUTPUT[0], : OUTPUT[1]]
    np.testing.assert_array_equal(here, exact.segment_map)
    np.testing.assert_array_equal(wide.segment_class, exact.segment_class)


@pytest.mark.parametrize("change", ["rows", "queries"])
def test_the_size_of_tiles_and_chunks_changes_nothing(change, monkeypatch):
    classes, masks = network(2)
    expected = run(classes, masks)
    if change == "rows":
        monkeypatch.setattr(dense, "CPU_STRIP", 7 * BUCKET[1] * panoptic.CHUNK)
    else:
        monkeypatch.setattr(panoptic, "CHUNK", 4)
    again = jax.jit(lambda *args: panoptic.panoptic(*args, clip=True))(
        classes, masks, *taps(), np.array(OUTPUT, np.int32), IS_THING, 0.8, 0.8
    )
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_the_order_of_queries_only_numbers_the_segments():
    """Where scores differ, so that nothing ties."""
    classes, masks = network(3)
    order = np.random.default_rng(0).permutation(QUERIES)
    one, other = run(classes, masks), run(classes[order], masks[..., order])
    pairs = np.unique(np.stack([one.segment_map, other.segment_map]).reshape(2, -1), axis=1)
    assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1] > 2
    for mine, its in pairs.T - 1:
        assert (mine < 0) == (its < 0)
        assert mine < 0 or one.segment_class[mine] == other.segment_class[its]


def test_of_equal_queries_the_first_wins_everything():
    classes, masks = network(4, queries=3, confident=0)
    classes[:], masks[:] = classes[:1], 1.0
    classes[:, 0] += 20  # a thing
    found = run(classes, masks)
    assert found.segment_class.tolist() == [0, -1, -1]
    assert found.segment_map.sum() == OUTPUT[0] * OUTPUT[1]


def test_without_a_confident_query_all_is_void():
    classes, masks = network(0, confident=0)
    classes[:, -1] += 20
    for clip in (True, False):
        found = run(classes, masks, clip)
        assert not found.segment_map.any() and (found.segment_class == -1).all()


# --------------------------------------------------------------------------------------------------


def plain_scores(classes, masks):
    return np.einsum("qk,qhw->hwk", softmax(classes)[:, :-1], sigmoid(enlarged(masks)))


@pytest.fixture(params=[None, 3000], ids=["few tiles", "many tiles"])
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(dense, "CPU_STRIP", request.param)


def test_semantic_scores_are_the_sum_over_queries(tiles):
    classes, masks = network()
    extent = np.array(OUTPUT, np.int32)
    expected = plain_scores(classes, masks)
    scores = np.asarray(jax.jit(panoptic.semantic_scores)(classes, masks, *taps(), extent))
    labels = np.asarray(jax.jit(panoptic.semantic)(classes, masks, *taps(), extent))
    here = np.s_[: OUTPUT[0], : OUTPUT[1]]
    np.testing.assert_allclose(scores[here], expected, atol=1e-5)
    assert (labels[here] == expected.argmax(-1)).mean() > 0.999
    assert (labels[OUTPUT[0] :] == IGNORE).all() and (labels[:, OUTPUT[1] :] == IGNORE).all()
    assert not scores[OUTPUT[0] :].any() and not scores[:, OUTPUT[1] :].any()


def after_taps():
    first = [panoptic.placement(grid, size, size, size, size) for grid, size, *_ in AXES]
    return *first, *(panoptic.placement(size, *axis[1:]) for axis in AXES for size in axis[1:2])


def test_the_sum_may_come_before_the_second_resize(tiles):
    classes, masks = network()
    resize = functools.partial(
        torch.nn.functional.interpolate, mode="bilinear", align_corners=False
    )
    maps = torch.sigmoid(resize(torch.tensor(masks).permute(2, 0, 1)[None], PADDED))[0]
    sums = torch.einsum("qk,qhw->khw", torch.tensor(softmax(classes)[:, :-1]), maps)
    expected = resize(sums[None, :, : INSIDE[0], : INSIDE[1]], OUTPUT)[0].numpy()
    extent = np.array(OUTPUT, np.int32)
    here = np.s_[: OUTPUT[0], : OUTPUT[1]]
    view = panoptic.View(classes, masks, *after_taps())
    scores = jax.jit(panoptic.semantic_scores_of_views)([view], extent)[here]
    np.testing.assert_allclose(np.moveaxis(np.asarray(scores), -1, 0), expected, atol=1e-5)
    labels = jax.jit(panoptic.semantic_after)(classes, masks, *after_taps(), extent)[here]
    assert (np.asarray(labels) == expected.argmax(0)).mean() > 0.999


def test_views_are_averaged_and_mirrored_ones_turned_back(tiles):
    (classes, masks), (others, more) = network(0), network(1)
    mirrored = panoptic.placement(*AXES[1], mirrored=True)
    views = [
        panoptic.View(classes, masks, *taps()),
        panoptic.View(others, more, taps()[0], mirrored),
        panoptic.View(classes, masks, *after_taps()),
    ]
    extent = np.array(OUTPUT, np.int32)
    here = np.s_[: OUTPUT[0], : OUTPUT[1]]
    each = [np.asarray(panoptic.semantic_scores_of_views([view], extent))[here] for view in views]
    np.testing.assert_allclose(each[1], plain_scores(others, more)[:, ::-1], atol=1e-5)
    both = jax.jit(panoptic.semantic_scores_of_views)(views, extent)[here]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-5)
    labels = np.asarray(jax.jit(panoptic.semantic_views)(views, extent))[here]
    assert (labels == np.mean(each, axis=0).argmax(-1)).mean() > 0.999


# --------------------------------------------------------------------------------------------------


def plain_instances(classes, masks, topk, thing):
    """(class, query, score) of each, and the masks [Q, H, W]."""
    shares = softmax(classes)[:, :-1]
    logits = enlarged(masks)
    held = logits > 0
    certainty = (sigmoid(logits) * held).sum((1, 2)) / (held.sum((1, 2)) + 1e-6)
    pairs = np.argsort(-shares.reshape(-1), kind="stable")[:topk]
    rows = [(pair % CLASSES, pair // CLASSES) for pair in pairs]
    rows = [(k, q, shares[q, k] * certainty[q]) for k, q in rows if thing is None or thing[k]]
    return sorted(rows, key=lambda row: (-row[2], row[0])), held


@pytest.mark.parametrize("thing", [None, IS_THING], ids=["all classes", "things only"])
@pytest.mark.parametrize("topk", [30, 1000])
def test_instances_are_those_of_the_official_rule(thing, topk, tiles):
    classes, masks = network(5)
    rows, held = plain_instances(classes, masks, topk, thing)
    found = jax.jit(panoptic.instances, static_argnames="topk")(
        classes, masks, *taps(), np.array(OUTPUT, np.int32), topk=topk, thing=thing
    )
    found = jax.tree.map(np.asarray, found)
    assert len(found.scores) == min(topk, QUERIES * CLASSES)
    number = (found.classes >= 0).sum()
    assert number == len(rows) and (found.classes[number:] == -1).all()
    np.testing.assert_allclose(
        found.scores[:number], [score for *_, score in rows], rtol=1e-4, atol=1e-7
    )
    clear = slice(0, min(12, number))  # further down scores are close
    assert found.classes[clear].tolist() == [k for k, *_ in rows[clear]]
    assert found.queries[clear].tolist() == [q for _, q, _ in rows[clear]]
    bits = np.unpackbits(found.masks, axis=-1)
    assert (bits[:, : OUTPUT[0], : OUTPUT[1]] == held).mean() > 0.999
    assert not bits[:, OUTPUT[0] :].any() and not bits[:, :, OUTPUT[1] :].any()
    sizes = bits.sum((1, 2))
    np.testing.assert_array_equal(found.areas[:number], sizes[found.queries[:number]])
    for query, (x, y, width, height) in zip(found.queries[:number], found.boxes[:number]):
        inside = bits[query, y : y + height, x : x + width]
        assert inside.sum() == sizes[query]
        if sizes[query]:
            assert all(inside[edge].any() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))
        else:
            assert (x, y, width, height) == (0, 0, 0, 0)


def test_an_empty_mask_has_no_score_no_area_and_no_box():
    classes, masks = network(0, queries=2, confident=2)
    masks[..., 1] = -5.0
    found = panoptic.instances(classes, masks, *taps(), np.array(OUTPUT, np.int32), topk=2)
    empty = np.asarray(found.queries) == 1
    assert empty.sum() == 1
    for field in (found.scores, found.areas, found.boxes):
        assert not np.asarray(field)[empty].any() and np.asarray(field)[~empty].any()


# --------------------------------------------------------------------------------------------------


def test_no_result_holds_all_queries_at_full_size(monkeypatch):
    monkeypatch.setattr(dense, "CPU_STRIP", 40_000)
    queries, size = 40, 256
    shapes = [(queries, 8), (size // 4, size // 4, queries)]
    rows = panoptic.placement(size // 4, size, size, size, size)
    extent = np.array([size, size], np.int32)
    forms = [
        lambda *x: panoptic.panoptic(*x, rows, rows, extent, np.arange(7) < 3, 0.8, 0.8, True),
        lambda *x: panoptic.semantic(*x, rows, rows, extent),
        lambda *x: panoptic.instances(*x, rows, rows, extent, 20),
    ]
    for form in forms:
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        memory = jax.jit(form).lower(*given).compile().memory_analysis()
        assert memory.temp_size_in_bytes < queries * size * size * 4 / 2


def test_a_tpu_makes_panoptic_maps_without_scattering_pixels():
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 7), (GRID[0], GRID[1], 5))]
    form = jax.jit(
        lambda *x: panoptic.panoptic(
            *x, *taps(), np.array(OUTPUT, np.int32), IS_THING, 0.8, 0.8, clip=True
        )
    )
    text = form.trace(*given).lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" in text
    scattered = [line for line in text.splitlines() if "stablehlo.scatter" in line]
    assert all(f"{BUCKET[0]}x{BUCKET[1]}" not in line for line in scattered)
