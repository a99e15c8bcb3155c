"""Minimum-cost bipartite matching inside a compiled program.

Shortest augmenting paths with dual variables (Jonker and Volgenant, Computing 1987; Crouse, IEEE
TAES 2016). Each step is a few operations on vectors as long as there are columns.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.structs import Array

LARGEST = 1e30
"""Costs from here on count as infinite: sums of a few of them must stay finite."""


class Matching(NamedTuple):
    """Pairs of queries and targets.

    Attributes:
        query_of_target: [..., T] int32, -1 for the padding, and for targets without a query.
        target_of_query: [..., Q] int32, -1 where there is none.
        replaced: [...] int32, how many costs were not finite.
    """

    query_of_target: Array
    target_of_query: Array
    replaced: Array


def match(costs: Array, count: Array) -> Matching:
    """The min(Q, count) pairs of least total cost, no query and no target twice.

    Costs of real targets that are NaN or infinite (as they are once a training diverges) are
    replaced by one so large that as few pairs as possible have it. Targets beyond `count` may cost
    anything; no step is spent on them. The problems of a batch run side by side, as long as the
    one that takes the most steps.

    Args:
        costs: [..., Q, T] float32.
        count: [...] int32, 0..T, how many of the targets are real; those come first.

    Returns:
        See `Matching`. Of several best answers any one.
    """
    batch, (queries, targets) = costs.shape[:-2], costs.shape[-2:]
    if queries == 0 or targets == 0:
        nothing = jnp.full((*batch, targets), -1), jnp.full((*batch, queries), -1)
        return Matching(*nothing, jnp.zeros(batch, jnp.int32))
    flat = costs.reshape(-1, queries, targets), jnp.broadcast_to(count, batch).reshape(-1)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), jax.vmap(_match_one)(*flat))


def _match_one(costs: Array, count: Array) -> Matching:
    queries, targets = costs.shape
    costs, replaced = _finite(costs.astype(jnp.float32), count)
    # Rows, which all find a partner, are what there is less of.
    few = jnp.where(count <= queries, count, 0)
    query_of_target, target_of_query = _assign(costs.T, few, queries)
    if targets > queries:
        many = jnp.where(count <= queries, 0, queries)
        other_target, other_query = _assign(costs, many, count)
        query_of_target = jnp.maximum(query_of_target, other_query)  # one of them is -1
        target_of_query = jnp.maximum(target_of_query, other_target)
    return Matching(query_of_target, target_of_query, replaced)


def _finite(costs: Array, count: Array) -> tuple[Array, Array]:
    """The costs [Q, T] without what isn't finite, zeros for the padding, and how many it were."""
    real = jnp.arange(costs.shape[1]) < count
    good = jnp.abs(costs) < LARGEST  # NaN is not
    kept = jnp.where(real & good, costs, 0.0)
    pairs = min(costs.shape)
    # Even were all other pairs as dear as can be, one of these would be dearer.
    large = kept.max() + pairs * (kept.max() - kept.min() + 1.0)
    bad = real & ~good
    return jnp.where(bad, large, kept), bad.sum(dtype=jnp.int32)


class _State(NamedTuple):
    """A search for the row `start`, among R rows and M columns.

    Attributes:
        price: [M] float32, the columns' dual variables. Those of the rows follow from their pairs.
        column_of, row_of: [R] and [M] int32, the pairs so far, -1 where there is none.
        start: the row that seeks a column; R when all have one.
        tip: the row that the path has come to.
        length: float32, of the shortest path to `tip`.
        shortest: [M] float32, of the paths to each column that were found so far.
        before: [M] int32, the row from which that path comes.
        closed: [M] bool, columns whose path is final.
        turn: the column whose pair is to be changed on the way back, -1 during the search.
    """

    price: Array
    column_of: Array
    row_of: Array
    start: Array
    tip: Array
    length: Array
    shortest: Array
    before: Array
    closed: Array
    turn: Array


def _assign(costs: Array, rows: Array, columns: Array | int) -> tuple[Array, Array]:
    """The first `rows` of the rows, each with one of the first `columns` columns.

    Args:
        costs: [R, M] float32, finite.
        rows: int32, at most `columns`.
        columns: int32.

    Returns:
        (column of each row [R], row of each column [M]) int32, -1 where there is none.
    """
    row, column = (jnp.arange(size, dtype=jnp.int32) for size in costs.shape)
    exists = column < columns

    def next_free(column_of: Array) -> Array:
        return jnp.where((column_of < 0) & (row < rows), row, len(row)).min()

    # Every row whose cheapest column no earlier row wants has it: with prices of 0 that is optimal.
    cheapest = jnp.where(exists, costs, jnp.inf).argmin(axis=1)
    wants = (cheapest[:, None] == column) & (row < rows)[:, None]
    row_of = jnp.where(wants.any(axis=0), wants.argmax(axis=0), -1).astype(jnp.int32)
    column_of = jnp.where((row < rows) & (row_of[cheapest] == row), cheapest, -1).astype(jnp.int32)
    start = next_free(column_of)
    begin = _State(
        price=jnp.zeros(len(column)),
        column_of=column_of,
        row_of=row_of,
        start=start,
        tip=start,
        length=jnp.float32(0.0),
        shortest=jnp.full(len(column), jnp.inf),
        before=jnp.zeros(len(column), jnp.int32),
        closed=~exists,
        turn=jnp.int32(-1),
    )

    def step(s: _State) -> _State:
        # Forward: the paths that go through the tip, and the nearest column that is still open.
        searching = s.turn < 0
        own = s.column_of[s.tip]
        paid = jnp.where(own < 0, 0.0, costs[s.tip, own] - s.price[own])
        through = s.length + (costs[s.tip] - s.price - paid)
        better = searching & ~s.closed & (through < s.shortest)
        shortest = jnp.where(better, through, s.shortest)
        before = jnp.where(better, s.tip, s.before)
        candidates = jnp.where(s.closed, jnp.inf, shortest)
        least = candidates.min()
        # In place of argmin, which XLA doesn't vectorise on CPU.
        nearest = jnp.where(candidates == least, column, len(column)).min()
        length = jnp.where(searching, least, s.length)
        closed = s.closed | (searching & (column == nearest))
        tip = jnp.where(searching, s.row_of[nearest], s.tip)
        found = searching & (tip < 0)
        reached = found & closed & exists
        price = jnp.where(reached, s.price - (length - shortest), s.price)
        # Back: one pair of the path is changed.
        turn = jnp.where(found, nearest, s.turn)
        turning = turn >= 0
        partner = before[turn]
        left = s.column_of[partner]
        row_of = jnp.where(turning & (column == turn), partner, s.row_of)
        column_of = jnp.where(turning & (row == partner), turn, s.column_of)
        done = turning & (left < 0)
        start = jnp.where(done, next_free(column_of), s.start)
        return _State(
            price=price,
            column_of=column_of,
            row_of=row_of,
            start=start,
            tip=jnp.where(done, start, tip),
            length=jnp.where(done, 0.0, length),
            shortest=jnp.where(done, jnp.inf, shortest),
            before=before,
            closed=jnp.where(done, ~exists, closed),
            turn=jnp.where(turning & ~done, left, -1),
        )

    end = lax.while_loop(lambda s: s.start < len(row), step, begin)
    return end.column_of, end.row_of
