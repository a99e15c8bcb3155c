"""`segjax bench hssn`: the tree-min loss and its gradient against binary cross entropy and against
PyTorch, and forward pass and training step of the networks that HSSN stands on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from segjax import importers, systems
from segjax.backbones import hrnet, resnet
from segjax.bench import ops, regproxy, torch_regproxy, torch_side, weights
from segjax.bench import torch_hssn as twin
from segjax.bench.measure import OURS, Contest, Goal, agree, compiled
from segjax.bench.torch_side import nchw, tensor
from segjax.data import hierarchies
from segjax.ops import hierarchy, resize
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE, Array, Size

Make = Callable[[], Contest]

TREES = ("cityscapes", "mapillary_vistas_v2")
"""Of 26 and of 148 nodes."""

LOSSES = {"tree-min": 0.0, "focal tree-min": 2.0}
"""Rows and the focal exponent."""

STRIPS, PLAIN = "BCE in strips", "BCE, plain"
MASKS, PARENTS = "torch, masks", "torch, by parents"

NO_MORE_THAN_BCE = Goal(1 / 1.5, 1 / 1.1)
"""The loss may take 1.5 times the time of BCE and 1.1 times its bytes."""

STRIDE = 8

MOST_MASKED = 2**29
"""Most entries that PyTorch's masks have, V * V * pixels: what takes seconds. With 148 nodes these
are 16 rows of 1024 pixels; the time is linear in the rows."""


class Options(NamedTuple):
    """What is measured.

    Attributes:
        labels: (height, width) of the losses' labels; logits have an eighth of it.
        image: (height, width) of the networks' images.
        batch: images of the forward passes; a step has two at least, because the batch norm on the
            mean of an image needs them.
        classes: K of the networks.
        tiny: whether the networks are.
        compile: whether torch.compile takes part.
        device: see `torch_side.setup`.
    """

    labels: Size = (512, 1024)
    image: Size = (256, 512)
    batch: int = 1
    classes: int = 19
    tiny: bool = False
    compile: bool = True
    device: str = "cpu"


def contests(options: Options) -> Iterator[tuple[str, Make]]:
    """All rows, in order."""
    for name in TREES:
        tree = hierarchies.load(name).tree
        for loss, gamma in LOSSES.items():
            title = f"{loss}, {tree.nodes} nodes"
            yield title, functools.partial(beside_bce, options.labels, tree, gamma)
            height, width = size = masked_size(options.labels, tree)
            make = functools.partial(beside_torch, size, tree, gamma, options.device)
            yield f"{title}, {height} x {width}, torch", make
    for name in NETWORKS:
        yield f"{name} forward", functools.partial(forward, options, name)
        yield f"{name} step", functools.partial(train_step, options, name)


# --------------------------------------------------------------------------------------------------
# Losses


def beside_bce(size: Size, tree: Tree, gamma: float) -> Contest:
    """Value and gradient of the loss and of BCE (focal where the loss is), in the same kind of
    strips and at the labels' size at once. BCE is another loss; its two sides are compared with
    each other.

    What the loss does beyond BCE in strips, on a CPU: it reads all logits twice more, for the
    highest child of each parent and for which one that is, and once more to hand its slope down.
    So that it holds no more than BCE, its tiles are half as large.
    """
    logits, labels = scene(size, tree)
    ours, _ = compiled(value_and_gradient(hierarchy.tree_min_loss, tree, gamma), logits, labels)
    strips, bce = compiled(value_and_gradient(hierarchy.node_loss, tree, gamma), logits, labels)
    plain, plain_bce = compiled(value_and_gradient(full_size_bce, tree, gamma), logits, labels)
    error = worst("BCE", bce, plain_bce)
    return Contest(
        {OURS: ours, STRIPS: strips, PLAIN: plain},
        {STRIPS: error, PLAIN: error},
        goals={STRIPS: NO_MORE_THAN_BCE, PLAIN: NO_MORE_THAN_BCE},
    )


def beside_torch(size: Size, tree: Tree, gamma: float, device: str) -> Contest:
    """Value and gradient of the loss; in PyTorch by masks, some pixels at a time (see
    `torch_hssn.CHUNK`), and the fast way."""
    logits, labels = scene(size, tree)
    given, truth = nchw(logits, device), tensor(labels, device).long()
    ours, found = compiled(value_and_gradient(hierarchy.tree_min_loss, tree, gamma), logits, labels)
    sides, errors = {OURS: ours}, {}
    for name, scores, pixels in (
        (MASKS, twin.masked_broadcast, twin.pixels_at_a_time(tree)),
        (PARENTS, twin.by_parents, labels.size),
    ):
        loss = functools.partial(
            twin.tree_loss, given, truth, tree, gamma, scores(tree, device), pixels
        )
        side, (value, gradient) = torch_side.side(loss, device)
        errors[name] = worst(name, found, (value.cpu(), gradient.cpu().permute(0, 2, 3, 1)))
        sides[name] = side._replace(before=lambda: None)  # a run is long
    return Contest(sides, errors, goals={MASKS: Goal(5.0)})


def value_and_gradient(
    loss: Callable[..., Any], tree: Tree, gamma: float
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(logits, labels) -> both, of a `hierarchy.TreeLoss`."""

    def both(logits: Array, labels: Array) -> tuple[Array, Array]:
        return jax.value_and_grad(lambda z: loss(z, labels, tree, gamma).value)(logits)

    return both


def worst(what: str, ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> float:
    """The larger error of values and gradients. Where two nodes are equally high but for rounding,
    the slope of a pixel may go to either."""
    value = agree(f"{what}, value", ours[0], theirs[0], 1e-4)
    return max(value, agree(f"{what}, gradient", ours[1], theirs[1], 1e-2))


def masked_size(size: Size, tree: Tree) -> Size:
    """The upper part of the labels that MOST_MASKED allows, in whole 16 rows."""
    rows = MOST_MASKED // (tree.nodes**2 * size[1])
    return min(size[0], max(rows // 16, 1) * 16), size[1]


def scene(size: Size, tree: Tree) -> tuple[Array, Array]:
    """Logits [1, H/8, W/8, V], and labels [1, H, W] in blocks of 16 x 16 pixels, some of none. No
    probability is so close to 1 that its last bit, which is chance, decides about the gradient."""
    height, width = size
    logits = 2 * ops.random(1, height // STRIDE, width // STRIDE, tree.nodes)
    return logits, blocks((1, height, width), tree.sizes[0]).astype(jnp.int32)


def blocks(shape: tuple[int, int, int], classes: int) -> Array:
    """int16 labels [B, H, W] in blocks of 16 x 16 pixels, some IGNORE."""
    batch, height, width = shape
    coarse = np.random.default_rng(0).integers(-1, classes, (batch, height // 16, width // 16))
    labels = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return jnp.asarray(np.where(labels < 0, IGNORE, labels), jnp.int16)


def full_size_bce(logits: Array, labels: Array, tree: Tree, gamma: float) -> hierarchy.TreeLoss:
    """`hierarchy.node_loss` as its definition has it, differentiated by JAX."""
    z = resize.bilinear(logits, labels.shape[1:])
    p = hierarchy.sigmoid(z)
    path = jnp.asarray(tree.paths)[labels.clip(0)]
    truth = sum(jnp.arange(tree.nodes) == path[..., level, None] for level in range(path.shape[-1]))
    right = jnp.where(truth, p, jnp.maximum(1 - p, 0.0))
    cost = -((1 - right) ** gamma) * jnp.log(right + hierarchy.EPSILON)
    weight = np.repeat(1 / np.float32(tree.sizes), tree.sizes)
    valid = labels != IGNORE
    levels = tree.levels((cost * weight * valid[..., None]).sum(axis=(0, 1, 2)))
    sums = jnp.stack([level.sum() for level in levels])
    return hierarchy.TreeLoss(sums.sum(), sums, valid.sum(dtype=jnp.float32))


# --------------------------------------------------------------------------------------------------
# Networks


class Network(NamedTuple):
    """A network and its twin.

    Attributes:
        backbone: fields of ours.
        head: the rest of its fields.
        beside: of the twin's fields, those of the backbone that ours leaves to defaults.
        twin: makes it.
    """

    backbone: Mapping[str, Any]
    head: Mapping[str, Any]
    beside: tuple[str, ...]
    twin: Callable[..., torch.nn.Module]


NETWORKS = {
    "deeplab_v3plus": Network(
        resnet.VARIANTS["resnet50_v1d"],
        dict(features=512, early_features=48, dilations=(12, 24, 36), auxiliary_features=256),
        ("width", "depths", "stem_width"),
        twin.DeepLabV3Plus,
    ),
    "ocrnet": Network(
        dict(stem=64, modules=(1, 4, 3), blocks=4) | hrnet.VARIANTS["hrnet_w18"],
        dict(features=512, key_features=256),
        ("width", "stem", "modules", "blocks"),
        twin.OCRNet,
    ),
}

TINY = {
    "deeplab_v3plus": (
        dict(width=8, depths=(1, 1, 1, 1), stem_width=4),
        dict(features=16, early_features=4, dilations=(1, 2, 3), auxiliary_features=8),
    ),
    "ocrnet": (
        dict(width=4, stem=8, modules=(1, 1), blocks=1),
        dict(features=16, key_features=8),
    ),
}


@functools.lru_cache(maxsize=1)  # rows of one network come one after another
def pair(options: Options, name: str) -> regproxy.Pair:
    """A system with its variables, and PyTorch's model of the same weights. Nothing is dropped in
    training, which would be another draw on either side."""
    network = NETWORKS[name]
    backbone, head = dict(network.backbone), dict(network.head)
    if options.tiny:
        backbone, head = backbone | TINY[name][0], head | TINY[name][1]
    dropout = dict(dropout=0.0) if name == "deeplab_v3plus" else {}
    system = systems.build(
        dict(system=name, backbone=backbone, classes=options.classes, **head, **dropout)
    )
    variables = jax.device_put(weights.drawn(system, {"image": images(options)}, moved=0.02))
    shape = {field: backbone[field] for field in network.beside}
    model = network.twin(classes=options.classes, **shape, **head)
    published = importers.to_published(name, variables)
    model = torch_regproxy.load(model, published).to(options.device).eval()
    return regproxy.Pair(system, variables, model)


def images(options: Options, least: int = 1) -> Array:
    """float32 [B, H, W, 3], normalised."""
    return ops.random(max(options.batch, least), *options.image, 3)


def forward(options: Options, name: str) -> Contest:
    """Normalised images to scores."""
    return regproxy.passes(f"{name} forward", pair(options, name), images(options), options)


def train_step(options: Options, name: str) -> Contest:
    """The trainer's step with AdamW, and PyTorch's; both heads are charged.

    In float32 the gradient's norm is known less well than the loss, on either side. DeepLabV3+:
    164.64 in float64, 164.91 by PyTorch, 165.08 here (165.06 with XLA's convolutions). OCRNet:
    171.35 in float64, 171.32 by PyTorch (169.88 with maps stored channels last), 171.44 here.
    """
    image = images(options, least=2)
    batch = {"image": image, "semantic": blocks(image.shape[:3], options.classes)}
    norm_tolerance = 1e-2 if name == "ocrnet" else None
    return regproxy.steps(
        f"{name} step",
        pair(options, name),
        batch,
        options,
        twin.loss,
        norm_tolerance=norm_tolerance,
    )
