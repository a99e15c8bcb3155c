"""Class trees on the device: scores that never break a tree, the tree-min losses, best paths.

A network gives one logit per node. Its channels are the leaves, then the classes of each further
level upwards; the root has none. (Li, Zhou, Wang, Li, Yang; Deep Hierarchical Semantic
Segmentation, CVPR 2022, Sec. 3.2.)
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.ops.dense import Strips
from segjax.structs import IGNORE, Array

EPSILON = 1e-8
"""Inside the logarithms, as in the official code (github.com/0liliulei/HieraSeg)."""

CPU_TILE = 400_000
"""Logits at the labels' resolution that are held at a time on CPU: with their costs and
slopes they should stay in a core's cache. `tree_min_loss`, which holds more of them, takes half."""


class Tree(NamedTuple):
    """A forest in which every leaf lies equally deep.

    Attributes:
        sizes: number of classes of each level, leaves first.
        parents: for each level but the last, the parent of each of its classes as an index into the
            next level.
    """

    sizes: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @property
    def nodes(self) -> int:
        """V."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First channel of each level."""
        return tuple(int(x) for x in np.cumsum((0, *self.sizes[:-1])))

    @property
    def ancestors(self) -> np.ndarray:
        """int32 [leaves, levels]: the class at each level that a leaf belongs to, column 0 being
        the leaf itself."""
        columns = [np.arange(self.sizes[0], dtype=np.int32)]
        for parent in self.parents:
            columns.append(np.asarray(parent, np.int32)[columns[-1]])
        return np.stack(columns, axis=1)

    @property
    def paths(self) -> np.ndarray:
        """int32 [leaves, levels]: the channels from a leaf up to its root."""
        return self.ancestors + np.asarray(self.offsets, np.int32)

    def levels(self, x: Array, axis: int = -1) -> list[Array]:
        """`x` cut along its axis of nodes into levels."""
        cuts = list(self.offsets[1:])
        return jnp.split(x, cuts, axis=axis)

    def families(self, level: int) -> list[np.ndarray]:
        """For each class of level + 1, its children within `level`, ascending."""
        parent = np.asarray(self.parents[level])
        return [np.flatnonzero(parent == above) for above in range(self.sizes[level + 1])]

    def children(self, level: int) -> np.ndarray:
        """int32 [classes of level + 1, most children]: `families`, the last child repeated to fill
        a row."""
        rows = self.families(level)
        most = max(len(row) for row in rows)
        return np.stack([np.pad(row, (0, most - len(row)), mode="edge") for row in rows]).astype(
            np.int32
        )


# --------------------------------------------------------------------------------------------------
# Scores


def positive_scores(scores: Array, tree: Tree) -> Array:
    """The lowest score of each node and its ancestors: what a node may score where it is true.

    Args:
        scores: [..., V].

    Returns:
        [..., V]; no child is above its parent. Of equal scores the lower node's gets the gradient.
    """
    levels = tree.levels(scores)
    for level in reversed(range(len(levels) - 1)):
        own, above = levels[level], levels[level + 1][..., np.asarray(tree.parents[level])]
        levels[level] = jnp.where(above < own, above, own)
    return jnp.concatenate(levels, axis=-1)


def negative_scores(scores: Array, tree: Tree) -> Array:
    """The highest score of each node and its descendants: what a node scores where it is false.

    Args:
        scores: [..., V].

    Returns:
        [..., V]; no parent is below a child. Of equal scores the lowest and first node's gets the
        gradient.
    """
    levels = tree.levels(scores)
    for level in range(len(levels) - 1):
        below = levels[level][..., tree.children(level)]
        first = jnp.argmax(below, axis=-1, keepdims=True)
        highest = jnp.take_along_axis(below, first, axis=-1)[..., 0]
        own = levels[level + 1]
        levels[level + 1] = jnp.where(own > highest, own, highest)
    return jnp.concatenate(levels, axis=-1)


def path_sums(scores: Array, tree: Tree) -> Array:
    """The summed score of the path from each leaf to its root.

    Args:
        scores: [..., V].

    Returns:
        [..., leaves]. The argmax is the leaf of the best path (Sec. 3.4).
    """
    own, *above = tree.levels(scores)
    for level, part in enumerate(above, start=1):
        own = own + part[..., tree.ancestors[:, level]]
    return own


def levels_of(labels: Array, tree: Tree) -> list[Array]:
    """The label map of every level, from that of the leaves.

    Args:
        labels: [...] leaf ids or IGNORE.

    Returns:
        For each level [...] ids within it, IGNORE kept.
    """
    table = np.concatenate([tree.ancestors, np.full((1, len(tree.sizes)), IGNORE, np.int32)])
    return [jnp.asarray(table[:, level])[labels] for level in range(len(tree.sizes))]


# --------------------------------------------------------------------------------------------------
# The tree-min loss


class TreeLoss(NamedTuple):
    """Attributes:
    value: float32, the sum over pixels and levels of the mean loss of a level's classes; has a
        gradient.
    levels: float32 [levels], the same of each level; no gradient passes.
    pixels: float32, how many pixels have a label.
    """

    value: Array
    levels: Array
    pixels: Array


def tree_min_loss(logits: Array, labels: Array, tree: Tree, gamma: float = 0.0) -> TreeLoss:
    """The tree-min loss (Eq. 5), for gamma > 0 its focal form (Eq. 6), of logits resized bilinearly
    to the labels.

    With s the sigmoid of the logits, p+ and p- its `positive_scores` and `negative_scores`, a node
    costs -(1 - p+)^gamma log(p+ + 1e-8) where it is on the label's path and
    -(p-)^gamma log(1 - p- + 1e-8) elsewhere.

    Value and gradient are made in one pass over strips of output rows (`dense.Strips`), of which
    columns are mixed once and a few rows at a time are finished; the gradient at the resolution of
    the logits. So neither direction holds a full-resolution tensor of nodes. Nodes come first
    there: a level is a run of rows, and pixels fill the lanes. A sigmoid keeps order, so the
    extrema are taken of logits; p+ is needed on the label's path alone. The cost is linear in V.

    Args:
        logits: [B, h, w, V] of any float dtype; computed in float32.
        labels: [B, H, W] leaf ids, or IGNORE.
        gamma: the focal exponent, 0 or at least 1.
    """
    return _tree_loss(logits, labels, tree, float(gamma), linked=True)


def node_loss(logits: Array, labels: Array, tree: Tree, gamma: float = 0.0) -> TreeLoss:
    """`tree_min_loss` with p+ = p- = s: binary cross entropy of every node, for gamma > 0 its focal
    form (the baselines of Table 6)."""
    return _tree_loss(logits, labels, tree, float(gamma), linked=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _tree_loss(logits: Array, labels: Array, tree: Tree, gamma: float, linked: bool) -> TreeLoss:
    return _in_strips(logits, labels, tree, gamma, linked, with_gradient=False)[0]


def _forward(
    logits: Array, labels: Array, tree: Tree, gamma: float, linked: bool
) -> tuple[TreeLoss, Array]:
    loss, gradient = _in_strips(logits, labels, tree, gamma, linked, with_gradient=True)
    return loss, gradient.astype(logits.dtype)


def _backward(
    tree: Tree, gamma: float, linked: bool, gradient: Array, cotangents: TreeLoss
) -> tuple[Array, None]:
    return (gradient * cotangents.value).astype(gradient.dtype), None


_tree_loss.defvjp(_forward, _backward)


def _in_strips(
    logits: Array, labels: Array, tree: Tree, gamma: float, linked: bool, with_gradient: bool
) -> tuple[TreeLoss, Array | None]:
    batch, _, width, nodes = logits.shape
    strips = Strips.plan(labels.shape[1:], logits.shape)
    count, tall, reach = strips.rows.shape
    few = _rows_at_a_time(tall, (1 + linked) * batch * strips.extent[1] * nodes)
    beyond = [(0, more - have) for more, have in zip(strips.extent, labels.shape[1:])]
    labels = jnp.pad(labels.astype(jnp.int32), [(0, 0), *beyond], constant_values=IGNORE)
    labels = labels.reshape(batch, count, tall // few, -1).transpose(1, 2, 0, 3)
    rows = strips.rows.reshape(count, tall // few, few, reach)
    scores = logits.astype(jnp.float32).transpose(3, 0, 1, 2)
    columns_back = resize.transposed(*strips.columns, width)

    def one_strip(carry: tuple[Array, Array | None], inputs: tuple[Array, ...]) -> tuple:
        sums, gradient = carry
        first, rows, labels = inputs
        source = jax.lax.dynamic_slice_in_dim(scores, first, reach, axis=2)
        wide = _mix_columns(source, *strips.columns)  # [V, B, R, W']

        def some_rows(carry: tuple[Array, list[Array]], inputs: tuple[Array, Array]) -> tuple:
            sums, low = carry
            rows, label = inputs
            z = _mix_rows(rows, wide)
            own = tree.levels(z.reshape(nodes, -1), axis=0)
            value, slopes = _pixels(own, label.reshape(-1), tree, gamma, linked)
            # Level by level: XLA would join them pixel by pixel.
            slopes = [slope.reshape(-1, *z.shape[1:]) for slope in slopes]
            low = [part + _mix_rows(rows.T, slope) for part, slope in zip(low, slopes)]
            return (sums + value, low), None

        start = tree.levels(jnp.zeros_like(wide), axis=0) if with_gradient else []
        (sums, low), _ = jax.lax.scan(some_rows, (sums, start), (rows, labels))
        if with_gradient:
            slope = _mix_columns(jnp.concatenate(low), *columns_back)
            slope += jax.lax.dynamic_slice_in_dim(gradient, first, reach, axis=2)
            gradient = jax.lax.dynamic_update_slice_in_dim(gradient, slope, first, axis=2)
        return (sums, gradient), None

    levels = len(tree.sizes)
    start = jnp.zeros(levels + 1), jnp.zeros(scores.shape) if with_gradient else None
    (sums, gradient), _ = jax.lax.scan(one_strip, start, (strips.first, rows, labels))
    loss = TreeLoss(sums[:levels].sum(), sums[:levels], sums[levels])
    return loss, gradient.transpose(1, 2, 3, 0) if with_gradient else None


def _rows_at_a_time(tall: int, held_per_row: int) -> int:
    """As many of a strip's rows as CPU_TILE allows, a divisor of them; elsewhere all."""
    if jax.default_backend() != "cpu":
        return tall
    most = max(CPU_TILE // held_per_row, 1)
    return max(rows for rows in range(1, tall + 1) if tall % rows == 0 and rows <= most)


def _mix_columns(x: Array, indices: np.ndarray, weights: np.ndarray) -> Array:
    """`resize.mix` of the last axis: [..., n] -> [..., m]. With an axis of length 1 behind it, that
    one's tables of indices would be as large as the strip."""

    def by_product(x: Array) -> Array:
        matrix = resize.matrix(indices, weights, x.shape[-1])
        return jnp.einsum("...n,mn->...m", x, matrix, precision=jax.lax.Precision.HIGHEST)

    def by_gathers(x: Array) -> Array:
        return sum(
            x.at[..., indices[:, t]].get(mode="promise_in_bounds") * weights[:, t]
            for t in range(indices.shape[1])
        )

    if indices.shape[1] > resize.MOST_GATHERS:
        return by_product(x)
    return jax.lax.platform_dependent(x, tpu=by_product, default=by_gathers)


def _mix_rows(rows: Array, x: Array) -> Array:
    """[m, n] times [V, B, n, W] -> [V, B, m, W], and as a product never computed twice."""
    nodes, batch, tall, wide = x.shape
    rows = jnp.broadcast_to(rows, (nodes * batch, *rows.shape))  # or XLA would transpose x
    highest = jax.lax.Precision.HIGHEST
    y = jnp.einsum("nij,njk->nik", rows, x.reshape(-1, tall, wide), precision=highest)
    return y.reshape(nodes, batch, -1, wide)


def _pixels(
    own: list[Array], labels: Array, tree: Tree, gamma: float, linked: bool
) -> tuple[Array, list[Array]]:
    """Loss and gradient of pixels without their neighbours.

    Args:
        own: float32 [K, P] logits of each level.
        labels: [P].

    Returns:
        float32 [levels + 1], the sums over pixels of each level's mean over classes and the number
        of labelled pixels; and of each level [K, P], the gradient of the sum of the former.
    """
    valid = labels != IGNORE
    leaf = labels.clip(0)
    path = [jnp.asarray(nodes).at[leaf].get(mode="clip") for nodes in tree.ancestors.T]
    on_path = [jnp.arange(len(z))[:, None] == node for z, node in zip(own, path)]

    # Where a node is true: the lowest logit on the path from it upwards, and where that lies.
    lowest, lowest_at = [], []
    for level in reversed(range(len(own))):
        z = jnp.take_along_axis(own[level], path[level][None], 0, mode="promise_in_bounds")[0]
        at = jnp.full(z.shape, level)
        if linked and lowest:
            below_all = lowest[0] < z
            z = jnp.where(below_all, lowest[0], z)
            at = jnp.where(below_all, lowest_at[0], at)
        lowest.insert(0, z)
        lowest_at.insert(0, at)
    true, slope = _true_cost(jnp.stack(lowest), gamma)  # [levels, P]
    slope = jnp.where(valid, slope, 0.0) / np.float32(tree.sizes)[:, None]
    attained = jnp.stack(lowest_at) == np.arange(len(own))[:, None, None]
    path_gradient = jnp.where(attained, slope, 0.0).sum(axis=1)

    # Where a node is false: the highest logit from it downwards, and the child that has it, -1 for
    # the node itself.
    highest, heir = [own[0]], []
    for level, z in enumerate(own[1:]):
        below, child = _best_child(highest[level], tree.families(level))
        heir.append(jnp.where(below >= z, child, -1))
        highest.append(jnp.maximum(z, below) if linked else z)

    losses: list[Array] = []
    gradient: list[Array] = []
    for level in reversed(range(len(own))):
        false, slope = _false_cost(highest[level], gamma)
        off = jnp.where(on_path[level], 0.0, false).sum(axis=0)
        losses.insert(0, jnp.where(valid, off + true[level], 0.0).sum() / tree.sizes[level])
        mine = jnp.where(on_path[level] | ~valid, 0.0, slope) / tree.sizes[level]
        if linked and gradient:
            # The slope of a maximum belongs to the node that attains it.
            parent = np.asarray(tree.parents[level])
            inherits = jnp.arange(len(parent))[:, None] == heir[level][parent]
            mine = mine + jnp.where(inherits, gradient[0][parent], 0.0)
            gradient[0] = jnp.where(heir[level] >= 0, 0.0, gradient[0])
        gradient.insert(0, mine)
    gradient = [jnp.where(*parts) for parts in zip(on_path, path_gradient, gradient)]
    return jnp.stack([*losses, valid.sum(dtype=jnp.float32)]), gradient


def _best_child(x: Array, families: list[np.ndarray]) -> tuple[Array, Array]:
    """The highest of each family's rows of [K, P] and which row it is, the first of equals.

    Reductions, family by family: XLA's argmax is slow on CPU, and of anything else it would compute
    all families again for every child.
    """
    best, which = [], []
    for family in families:
        first, last = family[0], family[-1]
        in_a_run = last - first == len(family) - 1
        rows = x[first : last + 1] if in_a_run else x[family]
        top = rows.max(axis=0)
        best.append(top)
        which.append(jnp.where(rows == top, family[:, None], len(x)).min(axis=0))
    return jnp.stack(best), jnp.stack(which)


def sigmoid(x: Array) -> Array:
    """As PyTorch computes it. Near 1 the cost's gradient feels the last bit, and XLA's own form
    goes by the hyperbolic tangent."""
    return 1.0 / (1.0 + jnp.exp(-x))


def _false_cost(logit: Array, gamma: float) -> tuple[Array, Array]:
    """-p^gamma log(1 - p + eps) of p = sigmoid(logit), and its slope."""
    p = sigmoid(logit)
    # Never negative; said so, because XLA would else make (1 + eps) - p, without eps, of the sum.
    rest = jnp.maximum(1.0 - p, 0.0)
    return _focal(p, rest + EPSILON, p * rest, gamma)


def _true_cost(logit: Array, gamma: float) -> tuple[Array, Array]:
    """-(1 - p)^gamma log(p + eps) of p = sigmoid(logit), and its slope."""
    p = sigmoid(logit)
    cost, slope = _focal(1.0 - p, p + EPSILON, p * (1.0 - p), gamma)
    return cost, -slope


def _focal(wrong: Array, right: Array, inner: Array, gamma: float) -> tuple[Array, Array]:
    """-wrong^gamma log(right) where d wrong = inner = -d right, and its slope."""
    log = -jnp.log(right)
    if not gamma:
        return log, inner / right
    weight = wrong**gamma
    return weight * log, inner * (gamma * wrong ** (gamma - 1.0) * log + weight / right)
