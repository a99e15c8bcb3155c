"""HSSN: Deep Hierarchical Semantic Segmentation (Li, Zhou, Wang, Li, Yang; CVPR 2022).

Any network that scores pixels gets one logit per node of a class tree instead of one per class.
Training forbids a child to score above its ancestors (tree-min loss, Sec. 3.2) and shapes an
embedding by the tree (tree-triplet loss, Sec. 3.3); the prediction is the best path from a leaf to
its root (Sec. 3.4). Facts follow github.com/0liliulei/HieraSeg.

The public code has DeepLabV3+ alone. How the tree attaches to other networks is segjax's reading of
the paper's definitions: whatever `outputs` of a system gives as scores of V channels takes the
losses; auxiliary scores of V channels take a cross entropy per level, those of K the usual one; and
`mask_scores` says what a set of masks scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.decoders.projection import Projection
from segjax.errors import SegjaxError
from segjax.losses import tree_triplet as triplets
from segjax.losses.region_mutual_information import region_mutual_information
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.ops import dense, hierarchy
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE, Array, Batch, Scalars, Semantic, System, Variables
from segjax.systems.mask_backbone import covered

# --------------------------------------------------------------------------------------------------
# The losses


class Settings(NamedTuple):
    """What is trained, and how it counts.

    Attributes:
        tree_loss: "ftm" (Eq. 6), "tm" (Eq. 5), their forms without the tree "focal" and "bce",
            "cce" (softmax cross entropy of the leaves), or "none".
        gamma: the exponent of ftm and focal.
        tree_weight: factor of that loss.
        ce_weight: factor of the softmax cross entropy of each level, which the official recipes
            add and the paper doesn't.
        rmi_weight: factor of the region mutual information, which two official recipes add.
        triplet_weight: the largest factor of the tree-triplet loss (beta), 0 to leave it out.
        triplet_ramp: training steps over which the factor grows from 0, as half a cosine.
        margin: of the triplets; 0 for the paper's, which follows tree distances.
        triplet_cap: most triplets of a class.
        triplet_sampling: "first", in raster order as the official code does, or "random".
        skip_background: whether leaf 0 takes part in no triplet.
        auxiliary_weight: factor of the auxiliary heads' cross entropy.
        void: "ignore", or "as_published": after the tree loss, pixels without label train as leaf 0
            (a side effect of the official code, which overwrites the labels in place).
    """

    tree_loss: str = "ftm"
    gamma: float = 2.0
    tree_weight: float = 1.0
    ce_weight: float = 0.0
    rmi_weight: float = 0.0
    triplet_weight: float = 0.5
    triplet_ramp: int = 80_000
    margin: float = 0.6
    triplet_cap: int = 200
    triplet_sampling: str = "first"
    skip_background: bool = False
    auxiliary_weight: float = 0.4
    void: str = "ignore"

    @property
    def leaves_alone(self) -> bool:
        """Whether no other node is trained; the prediction is then that of a flat network."""
        return self.tree_loss == "cce" and not (self.ce_weight or self.rmi_weight)


def _mean_tree_min(scores: Array, labels: Array, tree: Tree, gamma: float) -> Array:
    loss = hierarchy.tree_min_loss(scores, labels, tree, gamma)
    return loss.value / loss.pixels.clip(1.0)


def _mean_node_loss(scores: Array, labels: Array, tree: Tree, gamma: float) -> Array:
    loss = hierarchy.node_loss(scores, labels, tree, gamma)
    return loss.value / loss.pixels.clip(1.0)


def _leaf_cross_entropy(scores: Array, labels: Array, tree: Tree, gamma: float) -> Array:
    return pixel_cross_entropy(scores[..., : tree.sizes[0]], labels)[0]


def _nothing(scores: Array, labels: Array, tree: Tree, gamma: float) -> Array:
    return jnp.zeros(())


TREE_LOSSES: dict[str, Callable[[Array, Array, Tree, float], Array]] = {
    "ftm": _mean_tree_min,
    "tm": lambda scores, labels, tree, gamma: _mean_tree_min(scores, labels, tree, 0.0),
    "focal": _mean_node_loss,
    "bce": lambda scores, labels, tree, gamma: _mean_node_loss(scores, labels, tree, 0.0),
    "cce": _leaf_cross_entropy,
    "none": _nothing,
}


def loss(
    scores: Array,
    embedding: Array | None,
    labels: Array,
    step: Array,
    tree: Tree,
    settings: Settings,
    rng: Array | None = None,
) -> tuple[Array, Scalars, Array]:
    """The losses of one head.

    Args:
        scores: [B, h, w, V] logits, resized bilinearly to the labels.
        embedding: [B, h', w', C] of length 1, or None where no triplets are trained.
        labels: [B, H, W] leaf ids, or IGNORE.
        step: the number of this training step, from 1; drives the triplets' factor.
        rng: for random triplets.

    Returns:
        The weighted sum; its terms (`tree` and `triplet` without their factors); and the labels as
        later heads see them (see `Settings.void`).
    """
    tree_value = TREE_LOSSES[settings.tree_loss](scores, labels, tree, settings.gamma)
    scalars = {"loss_tree": tree_value}
    total = settings.tree_weight * tree_value
    if settings.void == "as_published":
        labels = jnp.where(labels == IGNORE, 0, labels)
    if settings.ce_weight:
        parts = level_cross_entropies(scores, labels, tree)
        scalars |= {f"loss_ce_{level}": part for level, part in enumerate(parts, start=1)}
        total += settings.ce_weight * sum(parts)
    if settings.rmi_weight:
        scalars["loss_rmi"] = region_mutual_information(scores, labels, tree)
        total += settings.rmi_weight * scalars["loss_rmi"]
    if settings.triplet_weight:
        value, classes = triplets.tree_triplet(
            embedding,
            labels,
            tree,
            margin=settings.margin or "tree",
            cap=settings.triplet_cap,
            skip_background=settings.skip_background,
            order=_order(settings, rng),
        )
        factor = triplets.ramp(step, settings.triplet_ramp, settings.triplet_weight)
        total += factor * value
        scalars |= {
            "loss_triplet": value,
            "triplet_classes": classes,
            "triplet_weight": factor,
        }
    return total, scalars, labels


def _order(settings: Settings, rng: Array | None) -> triplets.Order:
    if settings.triplet_sampling == "random":
        return triplets.at_random(rng)
    return triplets.first_in_raster_order


def level_cross_entropies(scores: Array, labels: Array, tree: Tree) -> list[Array]:
    """Softmax cross entropy within each level, over all pixels. `scores`: [B, h, w, V]."""
    parts = zip(tree.levels(scores), hierarchy.levels_of(labels, tree), strict=True)
    return [pixel_cross_entropy(part, of_level)[0] for part, of_level in parts]


def auxiliary_loss(scores: Array, labels: Array, tree: Tree) -> Array:
    """The cross entropy of an auxiliary head with a channel per leaf, or per node."""
    if scores.shape[-1] == tree.nodes:
        return sum(level_cross_entropies(scores, labels, tree))
    return pixel_cross_entropy(scores, labels)[0]


# --------------------------------------------------------------------------------------------------
# The prediction


SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": lambda logits: jax.nn.softmax(logits, axis=-1),
    "sigmoid": jax.nn.sigmoid,
    "logits": lambda logits: logits,
}
"""What is summed along a path. The official code takes the softmax over all nodes together, the
paper sigmoids, mmsegmentation's port logits."""


class BestPath(NamedTuple):
    """The leaf of the path with the largest summed score; see `ops.assembly.Decision`.

    Attributes:
        scores: a name in SCORES.
    """

    tree: Tree
    scores: str = "softmax"

    def of_copy(self, logits: Array) -> Array:
        """[..., V] -> [..., V]."""
        return SCORES[self.scores](logits)

    def of_classes(self, mean: Array) -> Array:
        """[..., V] -> [..., leaves]."""
        return hierarchy.path_sums(mean, self.tree)

    def of_nodes(self, mean: Array) -> Array:
        """[..., V] -> [..., V], no node above its ancestors."""
        return hierarchy.positive_scores(mean, self.tree)

    def __call__(self, logits: Array) -> Array:
        """The leaves' scores of a single copy."""
        return self.of_classes(self.of_copy(logits))


class BestLeaf(NamedTuple):
    """The leaf with the largest score, as without a tree, where nothing else was trained; see
    `ops.assembly.Decision`. Its ancestors are as probable as their leaves together."""

    tree: Tree

    def of_copy(self, logits: Array) -> Array:
        """[..., V] -> [..., V], of which only the leaves are read."""
        leaves = jax.nn.softmax(logits[..., : self.tree.sizes[0]], axis=-1)
        above = [
            leaves @ jax.nn.one_hot(self.tree.ancestors[:, level], size, dtype=leaves.dtype)
            for level, size in enumerate(self.tree.sizes[1:], start=1)
        ]
        return jnp.concatenate([leaves, *above], axis=-1)

    def of_classes(self, mean: Array) -> Array:
        """[..., V] -> [..., leaves]."""
        return mean[..., : self.tree.sizes[0]]

    def of_nodes(self, mean: Array) -> Array:
        """[..., V] as it is: no node is above its ancestors."""
        return mean

    def __call__(self, logits: Array) -> Array:
        """The leaves' scores of a single copy."""
        return self.of_classes(self.of_copy(logits))


def mask_scores(class_logits: Array, mask_logits: Array, tree: Tree) -> Array:
    """What a set of masks scores at every pixel, as logits. Experimental: neither the paper nor its
    code says how class probabilities become multi-label.

    A query's probabilities are a softmax within each level beside the shared "no object"; a node
    scores their sum over queries, each weighted by its mask, clipped to 1e-6 .. 1 - 1e-6.

    Args:
        class_logits: [B, Q, V + 1].
        mask_logits: [B, h, w, Q].

    Returns:
        float32 [B, h, w, V].
    """
    nodes, nothing = class_logits[..., :-1], class_logits[..., -1:]
    chances = [
        jax.nn.softmax(jnp.concatenate([level, nothing], axis=-1), axis=-1)[..., :-1]
        for level in tree.levels(nodes)
    ]
    weights = jnp.concatenate(chances, axis=-1)
    masks = jax.nn.sigmoid(mask_logits.astype(jnp.float32))
    chance = jnp.einsum("bhwq,bqv->bhwv", masks, weights).clip(1e-6, 1.0 - 1e-6)
    return jnp.log(chance) - jnp.log1p(-chance)


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


NETWORKS = ("deeplab_v3plus", "ocrnet", "maskformer", "regproxy")
"""The systems whose `outputs` hold what `Dense` needs."""


class Dense(NamedTuple):
    """What HSSN reads of a network.

    Attributes:
        scores: [B, h, w, V] logits.
        auxiliary: scores of further heads.
        features: [B, h', w', C], what the embedding is made from.
    """

    scores: Array
    auxiliary: tuple[Array, ...]
    features: Array


@dataclasses.dataclass(frozen=True)
class HSSN:
    """See `segjax.structs.System`. Its variables are the network's, the projection beside them, and
    in the collection "hierarchy" the number of training steps so far.

    Attributes:
        network: a system with V classes that has `outputs`.
        projection: makes the embedding; None without triplets.
    """

    network: System
    tree: Tree
    settings: Settings
    scores: str = "softmax"
    projection: Projection | None = None

    @property
    def module(self) -> nn.Module:
        return self.network.module

    @property
    def classes(self) -> int:
        return self.tree.sizes[0]

    def init(self, rng: Array, batch: Batch) -> Variables:
        variables = dict(self.network.init(rng, batch))
        if self.projection is not None:
            # Shapes alone: nothing of the network is computed.
            features = jax.eval_shape(lambda: self._dense(variables, batch, None, 1)[0].features)
            zeros = jnp.zeros(features.shape, features.dtype)
            made = self.projection.init(jax.random.fold_in(rng, 1), zeros, False)
            variables = _with_projection(variables, made)
        return variables | {"hierarchy": {"step": jnp.zeros((), jnp.float32)}}

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        network_rng, triplet_rng = jax.random.split(rng)
        found, mutated = self._dense(variables, batch, network_rng, microbatches)
        embedding = None
        if self.projection is not None:
            embedding, statistics = self.projection.apply(
                _projection_of(variables), found.features, True, mutable=["batch_stats"]
            )
            mutated = _with_projection(mutated, statistics)
        # The official counter is raised by every forward pass, in evaluation too; ours in training.
        step = variables["hierarchy"]["step"] + 1.0
        total, scalars, labels = loss(
            found.scores,
            embedding,
            batch["semantic"],
            step,
            self.tree,
            self.settings,
            triplet_rng,
        )
        for number, other in enumerate(found.auxiliary):
            part = auxiliary_loss(other, labels, self.tree)
            scalars[f"loss_aux_{number}"] = part
            total += self.settings.auxiliary_weight * part
        return total, (scalars, {**mutated, "hierarchy": {"step": step}})

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        size = batch["image"].shape[1:3]
        found, _ = self._dense(variables, batch, None, 1)
        covers = covered(self.network, batch) if hasattr(self.network, "divisible") else None
        decision = BestPath(self.tree, self.scores)
        if self.settings.leaves_alone:
            decision = BestLeaf(self.tree)
        labels = dense.resize_argmax(found.scores, covers or size, decision)
        return Semantic(
            labels[:, : size[0], : size[1]], found.scores, covers=covers, decision=decision
        )

    def _dense(
        self, variables: Variables, batch: Batch, rng: Array | None, microbatches: int
    ) -> tuple[Dense, Variables]:
        outputs, mutated = self.network.outputs(
            _without_projection(variables), batch, rng, microbatches
        )
        if hasattr(outputs, "class_logits"):
            scores = mask_scores(outputs.class_logits[-1], outputs.mask_logits[-1], self.tree)
            return Dense(scores, (), outputs.features), mutated
        return Dense(outputs.scores, tuple(outputs.auxiliary), outputs.features), mutated


def _without_projection(variables: Variables) -> dict[str, Any]:
    return {
        name: {key: part for key, part in tree.items() if key != "projection"}
        for name, tree in variables.items()
        if name != "hierarchy"
    }


def _projection_of(variables: Variables) -> dict[str, Any]:
    return {name: tree["projection"] for name, tree in variables.items() if "projection" in tree}


def _with_projection(variables: Variables, projection: Variables) -> dict[str, Any]:
    names = [*variables, *(name for name in projection if name not in variables)]
    return {
        name: {
            **variables.get(name, {}),
            **({"projection": projection[name]} if name in projection else {}),
        }
        for name in names
    }


def build(network: Mapping[str, Any], tree: Tree, scores: str = "softmax", **settings: Any) -> HSSN:
    """A hierarchy over a network.

    Args:
        network: a `config.model`; its `classes` are the leaves.
        tree: whose leaves they are.
        scores: a name in SCORES.
        settings: fields of `Settings`.

    Raises:
        SegjaxError: a value doesn't fit, or the network has no dense scores.
    """
    from segjax import systems  # which knows this module

    chosen = Settings(**settings)
    allowed = {
        "tree_loss": (chosen.tree_loss, tuple(TREE_LOSSES)),
        "scores": (scores, tuple(SCORES)),
        "void": (chosen.void, ("ignore", "as_published")),
        "triplet_sampling": (chosen.triplet_sampling, ("first", "random")),
    }
    for field, (value, values) in allowed.items():
        if value not in values:
            raise SegjaxError(
                f"config.hierarchy.{field}: '{value}' is none of {', '.join(values)}."
            )
    if 0.0 < chosen.gamma < 1.0 or chosen.gamma < 0.0:
        raise SegjaxError(
            f"config.hierarchy.gamma: {chosen.gamma} has no finite gradient; take 0, or 1 and more."
        )
    if network["system"] not in NETWORKS:
        raise SegjaxError(
            f"config.hierarchy: {network['system']} has no dense scores for a tree; take one of"
            f" {', '.join(NETWORKS)}."
        )
    leaves = tree.sizes[0]
    if network["classes"] != leaves:
        raise SegjaxError(
            f"config.hierarchy.tree: it has {leaves} leaves, but config.model.classes is"
            f" {network['classes']}; take the tree of these classes."
        )
    if chosen.triplet_weight and len(tree.sizes) < 2:
        raise SegjaxError(
            "config.hierarchy.tree: triplets need two levels and this tree has one; set"
            " config.hierarchy.triplet_weight=0."
        )
    fields = {**network, "classes": tree.nodes}
    if "auxiliary_classes" in systems.fields(network["system"]):
        fields = {"auxiliary_classes": leaves, **fields}
    projection = Projection() if chosen.triplet_weight else None
    return HSSN(systems.build(fields), tree, chosen, scores, projection)
