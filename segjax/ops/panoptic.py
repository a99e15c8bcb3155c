"""From the masks of one image to its results at full resolution: panoptic, semantic, instances.

All that lies between the mask logits of a network and the pixels of the result is linear and
separable: they are resized to the padded image, cropped to the image and resized to the size that
is asked for. `placement` joins these steps on the host to a few taps per row and column. The taps
are inputs of the compiled program, so one program serves all sizes up to a bucket's; `extent` says
how much of the bucket is image.

The output is made some rows at a time: a [H, W, Q] or [H, W, K] tensor exists only where one is
asked for.

The rules are those of MaskFormer (Sec. 3.4) and Mask2Former (Sec. 4), as their public code has
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import dense, resize
from segjax.ops.resize import Taps
from segjax.structs import IGNORE, Array, Instances, Panoptic

CHUNK = 16
"""Queries that `panoptic` compares at a time. It stops after the last one that is kept, and of a
hundred queries few are."""

# --------------------------------------------------------------------------------------------------
# Host: one axis


def placement(
    grid: int, padded: int, inside: int, output: int, bucket: int, mirrored: bool = False
) -> Taps:
    """How one axis of the output follows from the grid of the masks.

    The grid is resized to the padded image, that is cropped to its first `inside` pixels, and these
    are resized to the output, bilinearly (half-pixel centres) both times.

    Args:
        grid: samples of the grid, at most `padded`.
        padded: pixels of the padded image.
        inside: pixels of the image within it.
        output: pixels of the result.
        bucket: rows of the taps, at least `output`; those beyond the output weigh nothing.
        mirrored: the image was mirrored along this axis before the network saw it.

    Returns:
        indices int32 and weights float32, [bucket, T]; T is 3, or 2 where the grid is that of the
        padded image. The weights of a row of the output sum to 1.
    """
    if not (0 < grid <= padded and 0 < inside <= padded and 0 < output <= bucket):
        raise ValueError(f"{grid}, {padded}, {inside}, {output}, {bucket} don't lie in each other.")
    inner_indices, inner_weights = resize.taps(padded, grid)
    outer_indices, outer_weights = resize.taps(output, inside)
    indices = inner_indices[outer_indices].reshape(output, -1)  # [output, 2 * 2]
    weights = (outer_weights[..., None].astype(np.float64) * inner_weights[outer_indices]).reshape(
        output, -1
    )
    # Neighbouring pixels of the padded image are at most a sample of the grid apart, so they mix
    # three neighbouring samples at most, and two where they are the samples.
    used = weights > 0
    first = np.where(used, indices, grid).min(axis=1)
    most = 2 if grid == padded else 3
    slots = np.where(used, indices - first[:, None], 0)
    merged = np.zeros((bucket, most))
    np.add.at(merged, (np.arange(output)[:, None], slots), weights)
    near = np.zeros((bucket, most), np.int32)
    near[:output] = np.minimum(first[:, None] + np.arange(most), grid - 1)
    if mirrored:
        near[:output], merged[:output] = near[:output][::-1], merged[:output][::-1]
    return near, merged.astype(np.float32)


# --------------------------------------------------------------------------------------------------
# Device: panoptic


def panoptic(
    class_logits: Array,
    mask_logits: Array,
    rows: Taps,
    columns: Taps,
    extent: Array,
    is_thing: Array,
    object_threshold: float | Array,
    overlap_threshold: float | Array,
    clip: bool,
) -> Panoptic:
    """A segment for each confident query that keeps most of its mask.

    Queries whose best class is an object, with a probability above `object_threshold`, compete for
    each pixel by class probability times mask probability; the first one wins a tie. A query is
    dropped if it wins less than `overlap_threshold` of its own mask, the pixels whose probability
    is at least 0.5. Queries of one stuff class make one segment.

    Args:
        class_logits: [Q, K + 1], the last one "no object".
        mask_logits: [h, w, Q].
        rows: taps [H, T] of `placement`.
        columns: taps [W, T].
        extent: int32 (height, width), pixels of the output that are image.
        is_thing: bool [K].
        object_threshold: 0..1.
        overlap_threshold: 0..1.
        clip: a segment holds only pixels of its own mask, and one without any is none
            (Mask2Former), or all that the query wins (MaskFormer).

    Returns:
        Its map is [H, W], 0 beyond the extent; its table has Q rows.
    """
    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    chex.assert_shape(is_thing, (classes,))
    chex.assert_axis_dimension(mask_logits, 2, queries)
    score, label = dense.best_class(jax.nn.softmax(class_logits.astype(jnp.float32)))
    kept = (label != classes) & (score > object_threshold)
    order = jnp.argsort(~kept, stable=True)  # the kept ones first, as they come
    score, label, sorted_kept = score[order], label[order].clip(max=classes - 1), kept[order]
    rank, inside, half = _winners(
        mask_logits.astype(jnp.float32)[..., order],
        jnp.where(sorted_kept, score, -1.0),
        kept.sum(),
        rows,
        columns,
        extent,
    )
    won = _histogram(2 * rank + inside, 2 * queries).reshape(queries, 2)
    areas, clear = won.sum(axis=1), won[:, 1]
    good = sorted_kept & (areas > 0) & (half > 0) & (areas / half >= overlap_threshold)
    if clip:
        good &= clear > 0
    segment, is_new = _numbers(good, label, jnp.asarray(is_thing))
    row = jnp.where(is_new, segment - 1, queries)
    drawn = (rank < queries) & (inside | (not clip))
    return Panoptic(
        segment_map=jnp.where(drawn, segment[rank.clip(max=queries - 1)], 0),
        segment_class=jnp.full(queries, -1, jnp.int32).at[row].set(label, mode="drop"),
        segment_score=jnp.zeros(queries).at[row].set(score, mode="drop"),
    )


def _winners(
    masks: Array, scores: Array, count: Array, rows: Taps, columns: Taps, extent: Array
) -> tuple[Array, Array, Array]:
    """Who wins each pixel.

    Args:
        masks: [h, w, Q] logits, the first `count` of which compete.
        scores: [Q] their class probabilities, negative for the others.
        count: of competing queries.
        rows, columns, extent: see `panoptic`.

    Returns:
        the winner int32 [H, W], Q where nobody competes or beyond the extent; whether the pixel is
        in its own mask, bool [H, W]; and the pixels of each mask, int32 [Q].
    """
    height, width, queries = masks.shape
    chunk = min(CHUNK, queries)
    beyond = -queries % chunk
    masks = jnp.pad(masks, ((0, 0), (0, 0), (0, beyond)))
    masks = jnp.moveaxis(masks.reshape(height, width, -1, chunk), 2, 0)
    scores = jnp.pad(scores, (0, beyond), constant_values=-1.0).reshape(-1, chunk)
    ids = jnp.arange(chunk, dtype=jnp.int32)

    def tile(inputs: tuple[Array, Taps]) -> tuple[Array, Array, Array]:
        first, taps = inputs
        real = _within(first, taps, columns, extent)

        def step(number: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            best, winner, inside, half = carry
            share = jax.nn.sigmoid(_resized(masks[number], taps, columns))  # [T, W, chunk]
            mine = jnp.where(scores[number] > 0, share * scores[number], -1.0)
            highest, which = dense.best_class(mine)
            clear = share >= 0.5
            its_own = (clear & (ids == which[..., None])).any(axis=-1)
            better = highest > best
            pixels = (clear & real[..., None]).sum(axis=(0, 1), dtype=jnp.int32)
            return (
                jnp.where(better, highest, best),
                jnp.where(better, which + number * chunk, winner),
                jnp.where(better, its_own, inside),
                half.at[number].set(pixels),
            )

        start = (
            jnp.full(real.shape, -0.5),
            jnp.full(real.shape, queries, jnp.int32),
            jnp.zeros(real.shape, bool),
            jnp.zeros(scores.shape, jnp.int32),
        )
        _, winner, inside, half = jax.lax.fori_loop(0, -(-count // chunk), step, start)
        return jnp.where(real, winner, queries), inside & real, half

    tall = _tall(len(columns[0]), chunk)
    winner, inside, half = jax.lax.map(tile, _tiled(rows, tall))
    half = half.sum(axis=0).reshape(-1)[:queries]
    return _joined(winner, rows), _joined(inside, rows), half


def _numbers(good: Array, label: Array, is_thing: Array) -> tuple[Array, Array]:
    """The segment of each query, from 1 and 0 for none, and whether it is the segment's first.

    All [Q]; `is_thing` [K].
    """

    def step(carry: tuple[Array, Array], query: tuple[Array, Array]) -> tuple:
        count, stuff = carry
        is_good, label = query
        earlier = stuff[label]  # 0 for things
        is_new = is_good & (earlier == 0)
        count += is_new
        segment = jnp.where(is_new, count, jnp.where(is_good, earlier, 0))
        remembered = jnp.where(is_new & ~is_thing[label], count, earlier)
        return (count, stuff.at[label].set(remembered)), (segment, is_new)

    start = jnp.zeros((), jnp.int32), jnp.zeros(is_thing.shape, jnp.int32)
    return jax.lax.scan(step, start, (good, label))[1]


def _histogram(values: Array, bins: int) -> Array:
    """How often 0..bins-1 occur; int32 [...] -> int32 [bins]. Larger values count nowhere."""

    def scatter(values: Array) -> Array:
        zeros = jnp.zeros(bins, jnp.int32)
        return zeros.at[values.reshape(-1)].add(1, mode="drop")

    def compare(values: Array) -> Array:  # a TPU has no fast scatter
        ids = jnp.arange(bins, dtype=jnp.int32)
        return jax.lax.map(lambda k: (values == k).sum(dtype=jnp.int32), ids)

    return jax.lax.platform_dependent(values, tpu=compare, default=scatter)


# --------------------------------------------------------------------------------------------------
# Device: semantic


class View(NamedTuple):
    """What a network says about one view of an image: one scale, mirrored or not.

    The taps lead to the output (masks are resized, then summed to classes), or to the padded image
    (classes are summed there) and `then_...` from there to the output. The taps of a mirrored
    view's columns are mirrored ones.

    Attributes:
        class_logits: [Q, K + 1].
        mask_logits: [h, w, Q].
        rows: taps [H, T], or [padded height, T].
        columns: taps [W, T], or [padded width, T].
        then_rows: taps [H, T] on the padded image, or None.
        then_columns: taps [W, T] on the padded image, or None.
    """

    class_logits: Array
    mask_logits: Array
    rows: Taps
    columns: Taps
    then_rows: Taps | None = None
    then_columns: Taps | None = None

    @property
    def to_output(self) -> tuple[Taps, Taps]:
        """The last taps: rows, columns."""
        if self.then_rows is None:
            return self.rows, self.columns
        return self.then_rows, self.then_columns


def semantic(
    class_logits: Array, mask_logits: Array, rows: Taps, columns: Taps, extent: Array
) -> Array:
    """The best class of each pixel: the sum over queries of class times mask probability.

    Masks are resized before the sum.

    Args:
        class_logits: [Q, K + 1], the last one "no object".
        mask_logits: [h, w, Q].
        rows: taps [H, T] of `placement`.
        columns: taps [W, T].
        extent: int32 (height, width), pixels of the output that are image.

    Returns:
        int32 [H, W]; the lowest class on ties, IGNORE beyond the extent.
    """
    return semantic_views([View(class_logits, mask_logits, rows, columns)], extent)


def semantic_after(
    class_logits: Array,
    mask_logits: Array,
    first_rows: Taps,
    first_columns: Taps,
    second_rows: Taps,
    second_columns: Taps,
    extent: Array,
) -> Array:
    """`semantic`, but the sum comes before the second resize, on the padded image.

    `first_...` are `placement(grid, padded, padded, padded, bucket)` and `second_...`
    `placement(padded, padded, inside, output, bucket)`. Only the rows of the padded image that a
    tile needs exist at a time; neighbouring output rows that need the same one make it twice.
    """
    view = View(class_logits, mask_logits, first_rows, first_columns, second_rows, second_columns)
    return semantic_views([view], extent)


def semantic_views(views: Sequence[View], extent: Array) -> Array:
    """The best class of each pixel by the mean score over several views (test-time augmentation).

    int32 [H, W]; the lowest class on ties, IGNORE beyond the extent.
    """
    columns = views[0].to_output[1]

    def tile(inputs: tuple[Array, list[Taps]]) -> Array:
        first, taps = inputs
        label = dense.best_class(_mean_scores(views, taps))[1]
        return jnp.where(_within(first, taps[0], columns, extent), label, IGNORE)

    return _by_tiles(tile, views)


def semantic_scores(
    class_logits: Array, mask_logits: Array, rows: Taps, columns: Taps, extent: Array
) -> Array:
    """The scores whose argmax is `semantic`, float32 [H, W, K], 0 beyond the extent.

    They are at most Q, and no distribution over the classes.
    """
    return semantic_scores_of_views([View(class_logits, mask_logits, rows, columns)], extent)


def semantic_scores_of_views(views: Sequence[View], extent: Array) -> Array:
    """The scores whose argmax is `semantic_views`, float32 [H, W, K], 0 beyond the extent."""
    columns = views[0].to_output[1]

    def tile(inputs: tuple[Array, list[Taps]]) -> Array:
        first, taps = inputs
        real = _within(first, taps[0], columns, extent)
        return jnp.where(real[..., None], _mean_scores(views, taps), 0.0)

    return _by_tiles(tile, views)


def _by_tiles(tile: Callable[..., Array], views: Sequence[View]) -> Array:
    rows = [view.to_output[0] for view in views]
    tall = min(
        _tall(
            max(len(view.columns[0]) * (1 if view.then_rows is None else 2), len(view.rows[0])),
            max(view.class_logits.shape),
        )
        for view in views
    )
    first = _tiled(rows[0], tall)[0]
    return _joined(jax.lax.map(tile, (first, [_tiled(taps, tall)[1] for taps in rows])), rows[0])


def _mean_scores(views: Sequence[View], rows: Sequence[Taps]) -> Array:
    """Class scores of a tile, float32 [T, W, K]; `rows` are its taps in each view."""
    return sum(_class_scores(view, taps) for view, taps in zip(views, rows)) / len(views)


def _class_scores(view: View, rows: Taps) -> Array:
    shares = jax.nn.softmax(view.class_logits.astype(jnp.float32))[:, :-1]
    taps = rows
    if view.then_rows is not None:  # every row of the padded image that an output row needs
        taps = tuple(part[rows[0].reshape(-1)] for part in map(jnp.asarray, view.rows))
    logits = _resized(view.mask_logits.astype(jnp.float32), taps, view.columns)
    chance, exact = jax.nn.sigmoid(logits), jax.lax.Precision.HIGHEST
    if view.then_rows is not None:
        # Rows are mixed before queries are summed, which is the same and less work; as a product,
        # since XLA would make the sigmoids again for every place where a sum is read.
        indices, weights = rows
        chance = chance.reshape(*indices.shape, *chance.shape[1:])
        chance = jnp.einsum("ht,htwq->hwq", weights, chance, precision=exact)
    scores = jnp.einsum("hwq,qk->hwk", chance, shares, precision=exact)
    return scores if view.then_rows is None else resize.mix(scores, *view.then_columns)


# --------------------------------------------------------------------------------------------------
# Device: instances


def instances(
    class_logits: Array,
    mask_logits: Array,
    rows: Taps,
    columns: Taps,
    extent: Array,
    topk: int,
    thing: Array | None = None,
) -> Instances:
    """The most probable pairs of a query and a class, each with the query's mask.

    A mask holds the pixels whose logit is positive; a pair's score is its class probability times
    the mean mask probability within the mask, 0 where that is empty.

    Args:
        class_logits: [Q, K + 1], the last one "no object".
        mask_logits: [h, w, Q].
        rows: taps [H, T] of `placement`.
        columns: taps [W, T].
        extent: int32 (height, width), pixels of the output that are image.
        topk: pairs that are taken, by class probability; at most Q * K.
        thing: bool [K]; pairs of other classes are dropped after they were taken. None keeps all.

    Returns:
        N = min(topk, Q * K) rows by falling score, then class; dropped ones (class -1) at the end.
    """
    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    shares = jax.nn.softmax(class_logits.astype(jnp.float32))[:, :-1]
    best, pair = jax.lax.top_k(shares.reshape(-1), min(topk, queries * classes))
    query, label = pair // classes, pair % classes
    masks, area, certainty, box = _masks(
        mask_logits.astype(jnp.float32), rows, columns, jnp.asarray(extent)
    )
    score = best * (certainty / (area + 1e-6))[query]
    if thing is not None:
        dropped = ~jnp.asarray(thing)[label]
        score, label = jnp.where(dropped, 0.0, score), jnp.where(dropped, -1, label)
    order = jnp.lexsort((label, -score, label < 0))
    score, label, query = score[order], label[order], query[order]
    taken = label >= 0
    return Instances(
        scores=score,
        classes=label.astype(jnp.int32),
        queries=query.astype(jnp.int32),
        masks=masks,
        areas=jnp.where(taken, area[query], 0),
        boxes=jnp.where(taken[:, None], box[query], 0),
    )


def _masks(
    logits: Array, rows: Taps, columns: Taps, extent: Array
) -> tuple[Array, Array, Array, Array]:
    """Of each query: bits uint8 [Q, H, ceil(W / 8)], area int32 [Q], the sum of the probabilities
    in the mask float32 [Q], and the box int32 [Q, 4]."""
    wide = len(columns[0])
    across = jnp.arange(wide, dtype=jnp.int32)[:, None]

    def tile(inputs: tuple[Array, Taps]) -> tuple[Array, ...]:
        first, taps = inputs
        logit = _resized(logits, taps, columns)  # [T, W, Q]
        held = (logit > 0) & _within(first, taps, columns, extent)[..., None]
        down = first + jnp.arange(len(held), dtype=jnp.int32)[:, None]
        in_row, in_column = held.any(axis=1), held.any(axis=0)  # [T, Q], [W, Q]
        return (
            jnp.packbits(held, axis=1),
            held.sum(axis=(0, 1), dtype=jnp.int32),
            jnp.where(held, jax.nn.sigmoid(logit), 0.0).sum(axis=(0, 1)),
            jnp.where(in_column, across, wide).min(axis=0),
            jnp.where(in_row, down, len(rows[0])).min(axis=0),
            jnp.where(in_column, across, -1).max(axis=0),
            jnp.where(in_row, down, -1).max(axis=0),
        )

    bits, area, certainty, left, top, right, bottom = jax.lax.map(
        tile, _tiled(rows, _tall(wide, logits.shape[2]))
    )
    area = area.sum(axis=0)
    left, top, right, bottom = left.min(0), top.min(0), right.max(0), bottom.max(0)
    box = jnp.stack([left, top, right + 1 - left, bottom + 1 - top], axis=-1)
    bits = jnp.moveaxis(_joined(bits, rows), -1, 0)
    return bits, area, certainty.sum(axis=0), jnp.where(area[:, None] > 0, box, 0)


# --------------------------------------------------------------------------------------------------
# Tiles


def _tall(width: int, depth: int) -> int:
    """Rows of a tile whose pixels have `depth` numbers each."""
    on_cpu = jax.default_backend() == "cpu"
    return max((dense.CPU_STRIP if on_cpu else dense.ACCELERATOR_STRIP) // (width * depth), 1)


def _tiled(rows: Taps, tall: int) -> tuple[Array, Taps]:
    """The first row of each tile int32 [n], and its taps [n, tall, T]."""
    count = len(rows[0])
    tall = min(tall, count)
    beyond = ((0, -count % tall), (0, 0))
    indices, weights = (jnp.pad(part, beyond).reshape(-1, tall, part.shape[1]) for part in rows)
    return tall * jnp.arange(len(indices), dtype=jnp.int32), (indices, weights)


def _joined(tiles: Array, rows: Taps) -> Array:
    """[n, tall, ...] -> [H, ...]."""
    return tiles.reshape(-1, *tiles.shape[2:])[: len(rows[0])]


def _resized(maps: Array, rows: Taps, columns: Taps) -> Array:
    """[h, w, C] and taps of m rows and n columns -> [m, n, C]."""
    height, width, depth = maps.shape
    tall = resize.mix(maps.reshape(1, height, width * depth), *map(jnp.asarray, rows))
    return resize.mix(tall.reshape(-1, width, depth), *map(jnp.asarray, columns))


def _within(first: Array, rows: Taps, columns: Taps, extent: Array) -> Array:
    """Which pixels of a tile that begins at row `first` are image, bool [tall, W]."""
    height, width = extent
    down = first + jnp.arange(len(rows[0]), dtype=jnp.int32)
    across = jnp.arange(len(columns[0]), dtype=jnp.int32)
    return (down < height)[:, None] & (across < width)
