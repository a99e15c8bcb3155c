"""The tree-triplet loss: pixels of classes close in a tree lie closer in the embedding than pixels
of classes far apart (HSSN, Sec. 3.3). Facts follow github.com/0liliulei/HieraSeg.

Letters: K leaves, N pixels of the embedding's grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE, Array

Order = Callable[[int], Array]
"""The number of pixels -> int32 [N], all pixels in the order in which they are drawn."""


class TripletLoss(NamedTuple):
    """Attributes:
    value: float32, the mean over the classes that have a triplet, 0 where none has.
    classes: int32, how many have.
    """

    value: Array
    classes: Array


def first_in_raster_order(pixels: int) -> Array:
    """The official draw: image by image, row by row."""
    return jnp.arange(pixels, dtype=jnp.int32)


def at_random(rng: Array) -> Order:
    """The paper's draw. The same pixel may serve several classes."""
    return lambda pixels: jax.random.permutation(rng, pixels).astype(jnp.int32)


def tree_triplet(
    embedding: Array,
    labels: Array,
    tree: Tree,
    margin: float | Literal["tree"] = 0.6,
    cap: int = 200,
    skip_background: bool = False,
    order: Order = first_in_raster_order,
) -> TripletLoss:
    """The hinge of every class: max(a.n - a.p + margin, 0), averaged over its triplets.

    An anchor a is a pixel of the class, a positive p one of another class with the same parent, a
    negative n one under another parent. A class has as many triplets as its smallest pool has
    pixels, at most `cap`: the first of each pool, paired in their order.

    It is defined over the batch given. The official code gives it the images of one device; a
    sharded batch inside `jax.jit` is a single one here, whose embedding is then gathered.

    Args:
        embedding: [B, h, w, C] of length 1; takes the gradient.
        labels: [B, H, W] leaf ids; picked for the grid at floor(i * H / h), as torch's nearest
            resize does. IGNORE is in no pool.
        tree: its leaves and the level above them are used, with margin "tree" all levels.
        margin: the official constant, or "tree" for the paper's 0.1 + 0.5 m, m being how much
            further the negative's leaf is from the anchor's than the positive's, as a share of the
            longest way in the tree.
        cap: most triplets of a class.
        skip_background: whether class 0 is in no pool either.
        order: how pixels are drawn, see `first_in_raster_order` and `at_random`.
    """
    *grid, channels = embedding.shape
    small = resize.nearest(labels[..., None], grid[1:]).reshape(-1).astype(jnp.int32)
    if skip_background:
        small = jnp.where(small == 0, IGNORE, small)
    drawn = order(small.size)
    picked, valid = _triplets(small[drawn], tree, cap)
    picked = drawn[picked]  # [K, 3, cap]
    vectors = embedding.reshape(-1, channels)[picked].astype(jnp.float32)
    anchor, positive, negative = (vectors[:, pool] for pool in range(3))
    if margin == "tree":
        distance = jnp.asarray(tree_distance(tree), jnp.float32)
        # Pairs beyond the last triplet look up what they like.
        of_anchor, of_positive, of_negative = (small[picked[:, pool]] for pool in range(3))
        further = distance[of_anchor, of_negative] - distance[of_anchor, of_positive]
        margin = 0.1 + 0.5 * further / (2 * len(tree.sizes))
    hinge = jax.nn.relu((anchor * (negative - positive)).sum(axis=-1) + margin)
    count = valid.sum(axis=-1)
    means = jnp.where(valid, hinge, 0.0).sum(axis=-1) / count.clip(1)
    classes = (count > 0).sum(dtype=jnp.int32)
    return TripletLoss(means.sum() / classes.clip(1), classes)


def _triplets(labels: Array, tree: Tree, cap: int) -> tuple[Array, Array]:
    """Which pixels make the triplets of each class.

    Args:
        labels: int32 [N], first come first served.

    Returns:
        int32 [K, 3, cap], pixels as anchor, positive and negative, and bool [K, cap], which of
        these triplets there are.
    """
    leaves = tree.sizes[0]
    parents = jnp.asarray(tree.ancestors[:, 1])
    parent = jnp.where(labels == IGNORE, IGNORE, parents[labels])
    ranks = jnp.arange(1, cap + 1, dtype=jnp.int32)

    def of_class(leaf: Array) -> tuple[Array, Array]:
        above = parents[leaf]
        anchor = labels == leaf
        pools = (anchor, ~anchor & (parent == above), (parent != above) & (labels != IGNORE))
        so_far = [jnp.cumsum(pool, dtype=jnp.int32) for pool in pools]
        picked = jnp.stack([jnp.searchsorted(counts, ranks) for counts in so_far])
        fewest = jnp.stack([counts[-1] for counts in so_far]).min()
        return picked.clip(max=labels.size - 1), ranks <= fewest

    return jax.lax.map(of_class, jnp.arange(leaves, dtype=jnp.int32))


def tree_distance(tree: Tree) -> np.ndarray:
    """int32 [K, K]: edges between two leaves. The classes of the last level share a root."""
    paths = tree.ancestors
    apart = paths[:, None] != paths  # [K, K, levels]
    return 2 * apart.sum(axis=-1, dtype=np.int32)


def ramp(step: Array | float, iterations: int, maximum: float = 0.5) -> Array:
    """The factor of the loss: half a cosine from 0 up to `maximum` at step `iterations`, and
    `maximum` from there on."""
    phase = jnp.pi * (step - iterations) / iterations
    return jnp.where(step < iterations, 0.5 * maximum * (1.0 + jnp.cos(phase)), maximum)
