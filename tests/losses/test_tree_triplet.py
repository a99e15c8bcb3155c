"""The tree-triplet loss against plain loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.losses import tree_triplet as triplets
from segjax.ops import resize
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE

TWO_LEVELS = Tree(sizes=(7, 3), parents=((0, 1, 0, 1, 1, 2, 0),))  # 5 has no sibling
THREE_LEVELS = Tree(sizes=(8, 4, 2), parents=((0, 0, 1, 1, 2, 2, 3, 3), (0, 0, 1, 1)))
LIKE_PEOPLE = Tree(sizes=(6, 3, 2), parents=((0, 1, 1, 2, 2, 1), (0, 1, 1)))


def edges(tree, one, other):
    """Edges between two leaves, walking up from both until they meet, in the root at last."""
    steps = 0
    for parent in tree.parents:
        if one == other:
            return steps
        one, other, steps = parent[one], parent[other], steps + 2
    return steps if one == other else steps + 2


def reference(embedding, labels, tree, order, margin=0.6, cap=200, skip_background=False):
    """Loss, classes and gradient, class by class and triplet by triplet, in float64."""
    batch, rows, cols, channels = embedding.shape
    height, width = labels.shape[1:]
    vectors = np.asarray(embedding, np.float64).reshape(-1, channels)
    small = np.array(
        [
            labels[b, i * height // rows, j * width // cols]
            for b in range(batch)
            for i in range(rows)
            for j in range(cols)
        ]
    )
    parent = tree.parents[0]
    usable = [
        int(n) for n in order if small[n] != IGNORE and not (skip_background and small[n] == 0)
    ]
    losses, slopes = [], []
    for leaf in range(tree.sizes[0]):
        anchors = [n for n in usable if small[n] == leaf]
        others = [n for n in usable if small[n] != leaf]
        positives = [n for n in others if parent[small[n]] == parent[leaf]]
        negatives = [n for n in others if parent[small[n]] != parent[leaf]]
        chosen = list(zip(anchors, positives, negatives))[:cap]
        if not chosen:
            continue
        total, slope = 0.0, np.zeros_like(vectors)
        for a, p, n in chosen:
            least = margin
            if margin == "tree":
                further = edges(tree, leaf, small[n]) - edges(tree, leaf, small[p])
                least = 0.1 + 0.5 * further / (2 * len(tree.sizes))
            near, far = 1 - vectors[a] @ vectors[p], 1 - vectors[a] @ vectors[n]
            if near - far + least > 0:
                total += near - far + least
                slope[a] += vectors[n] - vectors[p]
                slope[p] -= vectors[a]
                slope[n] += vectors[a]
        losses.append(total / len(chosen))
        slopes.append(slope / len(chosen))
    if not losses:
        return 0.0, 0, np.zeros(embedding.shape)
    return np.mean(losses), len(losses), np.mean(slopes, axis=0).reshape(embedding.shape)


def draw(tree, seed=0, grid=(2, 5, 7), size=(21, 30), channels=8):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(*grid, channels))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    labels = rng.integers(IGNORE, tree.sizes[0], (grid[0], *size))
    return jnp.asarray(vectors, jnp.float32), labels


def ours(embedding, labels, tree, **options):
    def loss(embedding, labels):
        found = triplets.tree_triplet(embedding, labels, tree, **options)
        return found.value, found.classes

    call = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, classes), gradient = call(embedding, jnp.asarray(labels, jnp.int16))
    return float(value), int(classes), np.asarray(gradient)


@pytest.mark.parametrize(
    "order", [triplets.first_in_raster_order, triplets.at_random(jax.random.key(3))]
)
@pytest.mark.parametrize(
    "tree, options",
    [
        (TWO_LEVELS, {}),
        (TWO_LEVELS, {"cap": 3}),
        (THREE_LEVELS, {"margin": "tree"}),
        (LIKE_PEOPLE, {"skip_background": True, "margin": 0.3}),
    ],
    ids=["two levels", "cap", "margin by distance", "background skipped"],
)
def test_loss_and_gradient_are_those_of_plain_loops(tree, options, order):
    embedding, labels = draw(tree)
    drawn = np.asarray(order(embedding[..., 0].size))
    value, classes, gradient = ours(embedding, labels, tree, order=order, **options)
    exact, count, slope = reference(embedding, labels, tree, drawn, **options)
    assert classes == count > 3
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)


def test_a_class_without_siblings_contributes_nothing():
    tree = Tree(sizes=(3, 2), parents=((0, 0, 1),))
    embedding, labels = draw(tree)
    assert ours(embedding, labels, tree)[1] == 2
    only_child = np.where(labels == 1, 0, labels)  # and now class 0 has no sibling either
    assert ours(embedding, only_child, tree)[:2] == (0.0, 0)


@pytest.mark.parametrize("label", [IGNORE, 0], ids=["no label", "one class"])
def test_no_triplet_is_no_loss(label):
    embedding, labels = draw(TWO_LEVELS)
    value, classes, gradient = ours(embedding, np.full_like(labels, label), TWO_LEVELS)
    assert (value, classes) == (0.0, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_pixels_without_label_are_in_no_triplet():
    embedding, labels = draw(TWO_LEVELS)
    labels[:, :10] = IGNORE
    small = np.asarray(resize.nearest(labels[..., None], embedding.shape[1:3]))[..., 0]
    value, classes, gradient = ours(embedding, labels, TWO_LEVELS)
    assert classes > 0 and np.abs(gradient).max() > 0
    np.testing.assert_array_equal(gradient[small == IGNORE], 0)
    changed = jnp.where((small == IGNORE)[..., None], 7.0, embedding)
    assert ours(changed, labels, TWO_LEVELS)[0] == value


def test_names_of_classes_do_not_matter():
    """Leaves renumbered together with the tree give the same loss."""
    embedding, labels = draw(TWO_LEVELS)
    number = np.random.default_rng(1).permutation(7)  # new number of each leaf
    parents = np.zeros(7, int)
    parents[number] = TWO_LEVELS.parents[0]
    renamed = Tree(sizes=(7, 3), parents=(tuple(int(x) for x in parents),))
    relabelled = np.where(labels == IGNORE, IGNORE, number[labels])
    chex.assert_trees_all_close(
        ours(embedding, relabelled, renamed), ours(embedding, labels, TWO_LEVELS), rtol=1e-5
    )


def test_equal_embeddings_cost_the_margin():
    embedding, labels = draw(TWO_LEVELS)
    same = jnp.broadcast_to(embedding[:1, :1, :1], embedding.shape)
    np.testing.assert_allclose(ours(same, labels, TWO_LEVELS, margin=0.25)[0], 0.25, rtol=1e-5)


def test_the_papers_margin_of_siblings_against_others_of_two_levels():
    """0.1 + 0.5 * (4 - 2) / 4; the official code has 0.6."""
    embedding, labels = draw(TWO_LEVELS)
    same = jnp.broadcast_to(embedding[:1, :1, :1], embedding.shape)
    np.testing.assert_allclose(ours(same, labels, TWO_LEVELS, margin="tree")[0], 0.35, rtol=1e-5)


def test_random_triplets_come_from_their_pools_and_differ_from_draw_to_draw():
    _, labels = draw(TWO_LEVELS)
    labels = labels.reshape(-1)
    parent = np.asarray(TWO_LEVELS.parents[0])
    draws = []
    for seed in range(3):
        order = triplets.at_random(jax.random.key(seed))(labels.size)
        picked, valid = triplets._triplets(jnp.asarray(labels)[order], TWO_LEVELS, 20)
        picked = np.asarray(order)[picked]
        for leaf, (pools, real) in enumerate(zip(picked, np.asarray(valid))):
            anchor, positive, negative = labels[pools[:, real]]
            assert real.sum() == (0 if leaf == 5 else 20)
            assert (anchor == leaf).all()
            assert (positive != leaf).all() and (positive != IGNORE).all()
            assert (parent[positive] == parent[leaf]).all()
            assert (parent[negative] != parent[leaf]).all() and (negative != IGNORE).all()
            assert all(len(np.unique(pool[real])) == real.sum() for pool in pools)
        draws.append(picked[0])
    assert (draws[0] != draws[1]).any() and (draws[1] != draws[2]).any()


def test_tree_distance_counts_edges():
    for tree in (TWO_LEVELS, THREE_LEVELS, LIKE_PEOPLE):
        leaves = range(tree.sizes[0])
        expected = [[edges(tree, one, other) for other in leaves] for one in leaves]
        np.testing.assert_array_equal(triplets.tree_distance(tree), expected)
    np.testing.assert_array_equal(triplets.tree_distance(THREE_LEVELS)[0], [0, 2, 4, 4, 6, 6, 6, 6])


def test_the_factor_grows_as_published():
    steps = [0, 20_000, 40_000, 79_000, 80_000, 90_000]
    found = [float(triplets.ramp(jnp.asarray(step), 80_000)) for step in steps]
    expected = [0.0, 0.073223, 0.25, 0.499807, 0.5, 0.5]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(triplets.ramp(5.0, 10, maximum=2.0), 1.0, rtol=1e-6)


def test_a_sharded_batch_has_the_triplets_of_one_device():
    """Raster order runs through the images of all devices."""
    embedding, labels = draw(THREE_LEVELS, grid=(8, 4, 5))
    split = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))

    @jax.jit
    def loss_and_gradient(embedding, labels):
        def loss(embedding):
            return triplets.tree_triplet(embedding, labels, THREE_LEVELS, cap=20)[0]

        return jax.value_and_grad(loss)(embedding)

    one = loss_and_gradient(embedding, jnp.asarray(labels))
    eight = loss_and_gradient(*jax.device_put((embedding, jnp.asarray(labels)), split))
    chex.assert_trees_all_close(eight, one, rtol=1e-5, atol=1e-7)
