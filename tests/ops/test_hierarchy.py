"""Class trees: extrema along paths, the tree-min losses, best paths."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.ops import hierarchy, resize
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE

SMALL = Tree((5, 3, 2), ((0, 0, 1, 2, 2), (0, 1, 1)))
CHAIN = Tree((1, 1, 1), ((0,), (0,)))
FOREST = Tree((4, 4), ((0, 1, 2, 3),))
FLAT = Tree((4,), ())


@st.composite
def trees(draw):
    """Any tree in levels: every class of a level has a child."""
    sizes = [draw(st.integers(1, 6))]
    parents = []
    for _ in range(draw(st.integers(0, 3))):
        above = draw(st.integers(1, sizes[-1]))
        rest = draw(
            st.lists(
                st.integers(0, above - 1), min_size=sizes[-1] - above, max_size=sizes[-1] - above
            )
        )
        parents.append(tuple(draw(st.permutations([*range(above), *rest]))))
        sizes.append(above)
    return Tree(tuple(sizes), tuple(parents))


def random(shape, seed=0, scale=3.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_labels(tree, size=(2, 6, 8), seed=1, void=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, tree.sizes[0], size)
    return np.where(rng.random(size) < void, IGNORE, labels).astype(np.int16)


def below(tree):
    """bool [V, V]: whether node j is node i or lies under it."""
    result = np.eye(tree.nodes, dtype=bool)
    for path in tree.paths:
        for level, node in enumerate(path):
            result[node, path[: level + 1]] = True
    return result


def plain_loss(logits, labels, tree, gamma, linked=True):
    """Eq. 5 and 6 by masks of [V, V], at the labels' size, in float64; with its gradient."""
    import torch

    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    s = torch.sigmoid(z)
    mask = torch.tensor(below(tree) if linked else np.eye(tree.nodes, dtype=bool))
    wide = s[..., None, :].expand(*s.shape[:-1], tree.nodes, tree.nodes)
    negative = wide.masked_fill(~mask, -1.0).amax(-1)
    positive = wide.masked_fill(~mask.T, 2.0).amin(-1)
    labels = torch.tensor(labels.astype(np.int64))
    truth = torch.zeros(s.shape, dtype=torch.float64)
    paths = torch.tensor(tree.paths.astype(np.int64))
    truth.scatter_(-1, paths[labels.clamp(min=0)], 1.0)
    cost = -truth * (1 - positive) ** gamma * torch.log(positive + 1e-8)
    cost = cost - (1 - truth) * negative**gamma * torch.log(1 - negative + 1e-8)
    cost = cost * (labels != IGNORE)[..., None]
    levels = torch.split(cost, list(tree.sizes), dim=-1)
    total = sum(level.sum() / size for level, size in zip(levels, tree.sizes))
    total.backward()
    return total.item(), z.grad.numpy()


@given(trees(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=12)
def test_scores_never_break_the_tree(tree, seed):
    scores = random((3, tree.nodes), seed)
    for found in (hierarchy.positive_scores(scores, tree), hierarchy.negative_scores(scores, tree)):
        levels = tree.levels(np.asarray(found))
        for level, parent in enumerate(tree.parents):
            assert (levels[level] <= levels[level + 1][:, list(parent)]).all()


@given(trees(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=12)
def test_scores_are_extrema_over_ancestors_and_descendants(tree, seed):
    scores = random((3, tree.nodes), seed)
    mask = below(tree)
    lowest = np.where(mask.T, scores[:, None], np.inf).min(-1)
    highest = np.where(mask, scores[:, None], -np.inf).max(-1)
    np.testing.assert_array_equal(hierarchy.positive_scores(scores, tree), lowest)
    np.testing.assert_array_equal(hierarchy.negative_scores(scores, tree), highest)


@given(trees(), st.integers(0, 10**6))
@settings(deadline=None, max_examples=5)
def test_loss_and_gradient_are_the_definitions_for_any_tree(tree, seed):
    pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    logits, labels = random((1, 4, 5, tree.nodes), seed), random_labels(tree, (1, 4, 5), seed)
    for gamma in (0.0, 2.0):
        value, gradient = jax.value_and_grad(
            lambda x, gamma=gamma: hierarchy.tree_min_loss(x, labels, tree, gamma).value
        )(logits)
        plain, plain_gradient = plain_loss(logits, labels, tree, gamma)
        np.testing.assert_allclose(value, plain, rtol=1e-5)
        np.testing.assert_allclose(gradient, plain_gradient, atol=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 3.5])
@pytest.mark.parametrize("tree", [CHAIN, FOREST, FLAT])
def test_a_chain_a_forest_and_a_single_level_are_trees(tree, gamma):
    pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    logits, labels = random((2, 6, 8, tree.nodes)), random_labels(tree)
    value, gradient = jax.value_and_grad(
        lambda x: hierarchy.tree_min_loss(x, labels, tree, gamma).value
    )(logits)
    plain, plain_gradient = plain_loss(logits, labels, tree, gamma)
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    np.testing.assert_allclose(gradient, plain_gradient, atol=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_logits_are_resized_to_the_labels(gamma):
    logits, labels = random((2, 5, 7, 10)), random_labels(SMALL, (2, 37, 50))

    def fused(x):
        return hierarchy.tree_min_loss(x, labels, SMALL, gamma).value

    def plain(x):
        full = resize.bilinear(x, labels.shape[1:])
        return hierarchy.tree_min_loss(full, labels, SMALL, gamma).value

    ours, theirs = (jax.jit(jax.value_and_grad(f))(logits) for f in (fused, plain))
    chex.assert_trees_all_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_without_edges_tree_min_is_binary_cross_entropy(gamma):
    """Every node of FOREST has one child; the nodes of FLAT have none."""
    labels = random_labels(FLAT)
    logits = random((2, 6, 8, 4))
    tree = hierarchy.tree_min_loss(logits, labels, FLAT, gamma)
    plain = hierarchy.node_loss(logits, labels, FLAT, gamma)
    chex.assert_trees_all_equal(tree, plain)
    s = 1 / (1 + np.exp(-logits.astype(np.float64)))
    truth = np.arange(4) == labels[..., None]
    cost = np.where(truth, -((1 - s) ** gamma) * np.log(s), -(s**gamma) * np.log(1 - s))
    np.testing.assert_allclose(plain.value, cost[labels != IGNORE].sum() / 4, rtol=1e-5)


def test_the_tree_raises_the_cost_of_a_child_above_its_parent():
    logits = np.zeros((1, 1, 1, 10), np.float32)
    logits[..., 0] = 4.0  # leaf 0 is sure, its ancestors are not
    labels = np.full((1, 1, 1), 3)
    linked = hierarchy.tree_min_loss(logits, labels, SMALL)
    assert float(linked.value) > float(hierarchy.node_loss(logits, labels, SMALL).value) + 1


@given(trees(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=3)
def test_renaming_the_nodes_permutes_the_loss(tree, random_order):
    """Other numbers for the classes of each level, in tree, labels and channels."""
    orders = [random_order.sample(range(size), size) for size in tree.sizes]  # new -> old
    places = [np.argsort(order) for order in orders]  # old -> new
    parents = tuple(
        tuple(int(places[level + 1][parent[old]]) for old in orders[level])
        for level, parent in enumerate(tree.parents)
    )
    renamed = Tree(tree.sizes, parents)
    channels = np.concatenate([np.add(o, first) for o, first in zip(orders, tree.offsets)])
    logits, labels = random((1, 4, 5, tree.nodes)), random_labels(tree, (1, 4, 5))
    new_labels = np.where(labels == IGNORE, IGNORE, places[0][labels])

    def loss(x, labels, tree):
        return hierarchy.tree_min_loss(x, labels, tree, 2.0).value

    ours = jax.value_and_grad(loss)(logits[..., channels], new_labels, renamed)
    theirs = jax.value_and_grad(loss)(logits, labels, tree)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1][..., channels], rtol=1e-4, atol=1e-6)


def test_gradient_is_the_finite_difference():
    logits, labels = random((1, 3, 4, 10)), random_labels(SMALL, (1, 6, 8))

    def loss(x):
        return hierarchy.tree_min_loss(x, labels, SMALL, 2.0).value

    direction = random(logits.shape, 5, scale=1.0)
    slope = jnp.vdot(jax.grad(loss)(logits), direction)
    numeric = (loss(logits + 1e-3 * direction) - loss(logits - 1e-3 * direction)) / 2e-3
    np.testing.assert_allclose(slope, numeric, rtol=5e-3)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_pixels_without_label_contribute_nothing(gamma):
    logits, labels = random((1, 6, 8, 10)), random_labels(SMALL, (1, 6, 8))
    other = np.where((labels == IGNORE)[..., None], 50.0, logits)

    def loss(x):
        return hierarchy.tree_min_loss(x, labels, SMALL, gamma).value

    value, gradient = jax.value_and_grad(loss)(logits)
    chex.assert_trees_all_equal(value, loss(other))
    assert not np.asarray(gradient)[labels == IGNORE].any()
    nothing = hierarchy.tree_min_loss(logits, np.full((1, 6, 8), IGNORE), SMALL, gamma)
    chex.assert_trees_all_equal(nothing, hierarchy.TreeLoss(0.0, np.zeros(3, np.float32), 0.0))


def test_equal_scores_give_the_gradient_to_one_node():
    """All logits 0: the lowest from a node upwards is the node, the highest downwards is a leaf."""
    labels = np.zeros((1, 1, 1), int)
    gradient = jax.grad(lambda x: hierarchy.tree_min_loss(x, labels, SMALL).value)(
        jnp.zeros((1, 1, 1, 10))
    )[0, 0, 0]
    # Costs of -log(1/2) have slope 1/2 each, in level means over 5, 3 and 2 classes. The path of
    # leaf 0 pays node by node, what is off it pays at the first leaf below.
    second, third = 0.5 * (1 / 5 + 1 / 3 + 1 / 2), 0.5 * (1 / 5 + 1 / 3)
    path = [-0.5 / 5, -0.5 / 3, -0.5 / 2]
    wanted = [path[0], 0.5 / 5, second, third, 0.5 / 5, path[1], 0, 0, path[2], 0]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


def test_sure_and_wrong_is_finite():
    logits = np.full((1, 1, 2, 10), 200.0, np.float32)
    logits[0, 0, 1] = -200.0
    labels = np.zeros((1, 1, 2), int)
    for gamma in (0.0, 2.0):
        value, gradient = jax.value_and_grad(
            lambda x, gamma=gamma: hierarchy.tree_min_loss(x, labels, SMALL, gamma).value
        )(logits)
        chex.assert_tree_all_finite((value, gradient))
        assert float(value) > 18.0


def test_bfloat16_logits_stay_close_to_float32():
    logits, labels = random((2, 6, 8, 10)), random_labels(SMALL)
    exact = hierarchy.tree_min_loss(logits, labels, SMALL, 2.0).value
    rounded = hierarchy.tree_min_loss(jnp.asarray(logits, jnp.bfloat16), labels, SMALL, 2.0).value
    np.testing.assert_allclose(rounded, exact, rtol=1e-2)


def test_no_full_resolution_tensor_of_nodes_is_held():
    tree = Tree((40, 8), (tuple(i % 8 for i in range(40)),))
    logits, labels = jnp.zeros((1, 64, 64, 48)), jnp.zeros((1, 512, 512), jnp.int32)

    def loss(x):
        return hierarchy.tree_min_loss(x, labels, tree, 2.0).value

    memory = jax.jit(jax.value_and_grad(loss)).lower(logits).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 512 * 512 * 48 / 2


def test_best_path_is_the_largest_sum():
    scores = random((7, 10))
    sums = np.stack([scores[:, path].sum(-1) for path in SMALL.paths], axis=1)
    np.testing.assert_allclose(hierarchy.path_sums(scores, SMALL), sums, rtol=1e-6)


def test_label_maps_of_the_levels_are_ancestors():
    labels = random_labels(SMALL)
    leaves, middle, top = map(np.asarray, hierarchy.levels_of(jnp.asarray(labels), SMALL))
    np.testing.assert_array_equal(leaves, labels)
    table = {IGNORE: (IGNORE, IGNORE), 0: (0, 0), 1: (0, 0), 2: (1, 1), 3: (2, 1), 4: (2, 1)}
    for index, label in np.ndenumerate(labels):
        assert (middle[index], top[index]) == table[int(label)]
