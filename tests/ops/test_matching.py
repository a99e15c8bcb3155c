"""Matching finds what scipy.optimize.linear_sum_assignment finds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.ops.matching import match

optimize = pytest.importorskip("scipy.optimize")
matched = jax.jit(match)


def random_costs(seed, *shape, kind="normal"):
    """[..., Q, T]; "alike" has queries that are good for all targets, "ties" few values."""
    rng = np.random.default_rng(seed)
    costs = rng.normal(size=shape)
    if kind == "alike":
        costs = 0.2 * costs + 3 * rng.normal(size=(*shape[:-1], 1))
    if kind == "ties":
        costs = rng.integers(0, 4, shape)
    return costs.astype(np.float32)


def check(costs, count, found):
    """A matching of one image, as cheap as scipy's; returns its pairs (target, query)."""
    query_of, target_of = np.asarray(found.query_of_target), np.asarray(found.target_of_query)
    assert query_of.dtype == target_of.dtype == np.int32
    pairs = [(t, q) for t, q in enumerate(query_of) if q >= 0]
    assert pairs == sorted((t, q) for q, t in enumerate(target_of) if t >= 0)
    assert len(pairs) == min(len(costs), count)
    assert all(t < count for t, _ in pairs)
    rows, columns = optimize.linear_sum_assignment(costs[:, :count])
    total = sum(costs[q, t] for t, q in pairs)
    np.testing.assert_allclose(total, costs[rows, columns].sum(), rtol=1e-5, atol=1e-4)
    return pairs


@pytest.mark.parametrize("kind", ["normal", "alike", "ties"])
@pytest.mark.parametrize("queries, targets", [(12, 9), (6, 11), (7, 7)])
def test_every_count_of_targets_costs_as_little_as_with_scipy(queries, targets, kind):
    """Also more targets than queries, and none; the padding costs NaN."""
    counts = np.arange(targets + 1)
    costs = random_costs(0, len(counts), queries, targets, kind=kind)
    padded = np.where(np.arange(targets) < counts[:, None, None], costs, np.nan)
    found = matched(padded, counts)
    assert not found.replaced.any()
    for i, count in enumerate(counts):
        pairs = check(costs[i], count, jax.tree.map(lambda x, i=i: x[i], found))
        if kind == "normal":  # then there is one best answer
            rows, columns = optimize.linear_sum_assignment(costs[i, :, :count])
            assert pairs == sorted(zip(columns, rows, strict=True))


@pytest.mark.parametrize("kind", ["normal", "alike"])
def test_large_problems_are_solved_too(kind):
    costs, counts = random_costs(1, 3, 100, 60, kind=kind), [60, 5, 31]
    found = matched(costs, jnp.array(counts))
    for i, count in enumerate(counts):
        check(costs[i], count, jax.tree.map(lambda x, i=i: x[i], found))


@pytest.mark.parametrize("count", [0, 3, 8])
def test_more_padding_changes_nothing(count):
    costs = random_costs(2, 5, 8)
    short = matched(costs, jnp.int32(count))
    long = matched(np.pad(costs, ((0, 0), (0, 6)), constant_values=-50.0), jnp.int32(count))
    np.testing.assert_array_equal(short.target_of_query, long.target_of_query)
    np.testing.assert_array_equal(short.query_of_target, long.query_of_target[:8])
    assert (long.query_of_target[8:] == -1).all()


@pytest.mark.parametrize("count", [4, 9])
def test_another_order_gives_the_same_pairs(count):
    rng = np.random.default_rng(3)
    costs = random_costs(3, 6, 9)
    queries, targets = rng.permutation(6), rng.permutation(count)
    shuffled = costs.copy()
    shuffled[:, :count] = costs[queries][:, targets]
    before, after = matched(costs, jnp.int32(count)), matched(shuffled, jnp.int32(count))
    expected = np.asarray(before.query_of_target)[targets]
    names = np.append(queries, -1)  # -1 stays
    np.testing.assert_array_equal(names[np.asarray(after.query_of_target)[:count]], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e35])
@pytest.mark.parametrize("queries, targets", [(7, 5), (5, 7)])
def test_costs_that_are_not_finite_are_the_last_resort(bad, queries, targets):
    costs = random_costs(4, queries, targets)
    costs[:3] = bad
    costs[:, 2] = bad
    found = matched(costs, jnp.int32(targets))
    assert found.replaced == (~(np.abs(costs) < 1e30)).sum()
    expected = np.where(np.abs(costs) < 1e30, costs, 1000.0)
    check(expected, targets, found)


def test_nothing_but_nan_still_gives_all_pairs():
    found = matched(np.full((4, 6), np.nan, np.float32), jnp.int32(3))
    assert found.replaced == 12
    check(np.zeros((4, 6), np.float32), 3, found)


def test_an_infinite_padding_is_not_reported():
    costs = random_costs(5, 4, 6)
    costs[:, 3:] = np.inf
    assert matched(costs, jnp.int32(3)).replaced == 0


def test_any_leading_axes_and_vmap_are_the_problems_one_by_one():
    costs, counts = random_costs(6, 2, 3, 5, 4), np.array([[0, 4, 2], [1, 3, 4]])
    found = matched(costs, counts)
    chex.assert_trees_all_equal(found, jax.jit(jax.vmap(match))(costs, counts))
    for i in np.ndindex(2, 3):
        alone = matched(costs[i], counts[i])
        chex.assert_trees_all_equal(alone, jax.tree.map(lambda x, i=i: x[i], found))


def test_a_batch_over_eight_devices_is_matched_as_on_one():
    spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    costs, counts = random_costs(7, 8, 6, 5), np.arange(8) % 6
    over_all = matched(*jax.device_put((costs, counts), spread))
    chex.assert_trees_all_equal(jax.device_get(over_all), jax.device_get(matched(costs, counts)))


@pytest.mark.parametrize("queries, targets", [(0, 3), (3, 0)])
def test_no_queries_or_no_room_for_targets_gives_no_pairs(queries, targets):
    found = matched(np.zeros((2, queries, targets), np.float32), np.zeros(2, np.int32))
    assert found.query_of_target.shape == (2, targets)
    assert found.target_of_query.shape == (2, queries)
    assert (found.query_of_target == -1).all() and (found.target_of_query == -1).all()
