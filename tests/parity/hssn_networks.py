"""HSSN's rows about networks: DeepLabV3+ and OCRNet with a channel per node of a class tree.

Every function takes (args, tensors, inputs) of a case and gives its outputs. Maps are NCHW on both
sides; weights pass the library's importer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import importers
from segjax.decoders.projection import Projection
from segjax.ops import resize
from segjax.structs import Size
from segjax.systems import deeplab_v3plus, ocrnet
from tests.parity.hssn_trees import TREES, Tree
from tests.parity.mask2former_results import near
from tests.parity.regproxy import Args, Arrays, Outputs, nchw, nhwc


def deeplabv3plus_forward(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    assert args.get("flavour", "v1d_d8") == "v1d_d8" and not args.get("align_corners", False)
    image = nhwc(inputs["image"])
    tree = tree_of(args)
    module = deeplab_v3plus.build(
        classes=sum(tree[0]),
        auxiliary_classes=tree[0][0],
        backbone=args.get("backbone", "resnet101") + "_v1d",
    ).module

    projection = Projection()

    def init(rng: jax.Array, image: jax.Array) -> dict[str, Any]:
        network = module.init(rng, image)
        beside = projection.init(rng, jnp.zeros((1, 1, 1, 2048)), False)
        made = {name: network[name] | {"projection": beside[name]} for name in network}
        return made | {"hierarchy": {"step": jnp.zeros(())}}

    @jax.jit
    def forward(variables: dict[str, Any], image: jax.Array) -> dict[str, jax.Array]:
        said, kept = module.apply(
            {name: tree for name, tree in variables.items() if name != "hierarchy"},
            image,
            with_auxiliary=True,
            capture_intermediates=lambda module, _: module.name == "backbone",
        )
        (levels,) = kept["intermediates"]["backbone"]["__call__"]
        beside = {name: variables[name]["projection"] for name in ("params", "batch_stats")}
        return {
            "layer1": levels["res2"],
            "layer4": levels["res5"],
            "logits": said.scores,
            "aux_logits": said.auxiliary[0],
            "embedding": projection.apply(beside, said.features, False),
        }

    expected = jax.eval_shape(init, jax.random.key(0), image)
    found = forward(importers.to_variables("hssn", tensors, expected), image)
    full = resize.bilinear(found["logits"], image.shape[1:3])
    found["full_logits"] = full
    size = tuple(args.get("original_size", image.shape[1:3]))
    prob, pred = path_scores(full, size, tree, args.get("scores", "softmax_all"))
    found["prob"] = prob
    return {name: np.asarray(nchw(x)) for name, x in found.items()} | {"pred": np.asarray(pred)}


def ocrnet_forward(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    assert not args.get("align_corners", False)
    image = nhwc(inputs["image"])
    level_sizes, _ = tree_of(args)
    backbone = args.get("backbone", "hrnet_w48")
    module = ocrnet.build(classes=sum(level_sizes), backbone=backbone).module
    expected = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = importers.to_variables("ocrnet", tensors, expected)

    @jax.jit
    def forward(variables: Any, image: jax.Array) -> Any:
        return module.apply(variables, image, capture_intermediates=True)

    said, kept = forward(variables, image)
    kept = kept["intermediates"]
    (branches,), (objects,) = kept["backbone"]["__call__"], kept["head"]["objects"]
    found = {
        "branch0": branches["branch_0"],
        "branch3": branches["branch_3"],
        "coarse_logits": said.auxiliary[0],
        "ocr_feats": kept["head"]["bottleneck"]["__call__"][0],
        "object_context": objects[:, :, None],
        "ocr_out": kept["head"]["attention"]["__call__"][0],
        "logits": said.scores,
        "full_logits": resize.bilinear(said.scores, image.shape[1:3]),
    }
    return {name: np.asarray(nchw(x)) for name, x in found.items()}


def path_scores(full: jax.Array, size: Size, tree: Tree, scores: str) -> tuple[Any, Any]:
    """Scores of all nodes at `size` [B, h, w, V], and the leaf whose path has the highest sum
    [B, h, w]."""
    level_sizes, parents = tree
    logits = resize.bilinear(full, size)
    nodes = {"softmax_all": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "logits": jnp.asarray}
    of_node = nodes[scores](logits)
    leaves = np.arange(level_sizes[0])
    total, ancestors, start = of_node[..., : level_sizes[0]], leaves, level_sizes[0]
    for level, above in enumerate(parents, 1):
        ancestors = np.asarray(above)[ancestors]
        total = total + of_node[..., start + ancestors]
        start += level_sizes[level]
    return of_node, total.argmax(axis=-1)


def tree_of(args: Args) -> Tree:
    level_sizes, parents = TREES[args["tree"]]
    assert list(level_sizes) == list(args.get("level_sizes", level_sizes))
    return level_sizes, parents


RUNNERS = {
    "hssn.deeplabv3plus_forward": deeplabv3plus_forward,
    "hssn.ocrnet_forward": ocrnet_forward,
}
JUDGES = {("hssn.deeplabv3plus_forward", "pred"): near}
