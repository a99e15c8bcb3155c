"""HSSN's rows about the tree: its losses, its inference, and whole training calls.

Every function takes (args, tensors, inputs) of a case and gives its outputs. Maps are NCHW on both
sides; weights pass the library's importer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import config as configs
from segjax import importers
from segjax.losses.region_mutual_information import region_mutual_information
from segjax.ops import hierarchy, resize
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE
from segjax.systems import hssn, maskformer
from segjax.training import optimizer
from tests.parity.hssn_trees import TREES
from tests.parity.mask2former_results import near
from tests.parity.regproxy import Args, Arrays, Outputs, nchw, nhwc
from tests.parity.weights import Case

RAMPS = {"cityscapes": 80_000, "person_part": 60_000, "lip": 160_000}


def tree_of(args: Args, inputs: Arrays) -> Tree:
    """The case's class tree; Mapillary's comes with its inputs."""
    if args["tree"] == "mapillary":
        given = (inputs["parent_of_leaf"], inputs["parent_of_mid"])
        return Tree(tuple(args["level_sizes"]), tuple(tuple(map(int, one)) for one in given))
    return Tree(*TREES[args["tree"]])


def labels_of(args: Args, labels: np.ndarray) -> jax.Array:
    return jnp.asarray(np.where(labels == args.get("ignore", 255), IGNORE, labels), jnp.int32)


def published(labels: jax.Array, args: Args) -> np.ndarray:
    """Ours with the published number for "no label"."""
    return np.asarray(jnp.where(labels == IGNORE, args.get("ignore", 255), labels))


def settings_of(args: Args, **more: Any) -> hssn.Settings:
    """A whole loss as the case's args describe it."""
    return hssn.Settings(
        tree_loss=args.get("tree_loss", "tm"),
        tree_weight=args.get("tree_scale", 5.0),
        ce_weight=args.get("ce_weight", 1.0),
        triplet_weight=args.get("triplet_weight_max", 0.5),
        triplet_ramp=args.get("triplet_ramp_iters", RAMPS.get(args["tree"], 80_000)),
        margin=args.get("margin", 0.6),
        triplet_cap=args.get("max_triplets", 200),
        skip_background=args.get("skip_background", args["tree"] != "cityscapes"),
        void=args.get("void", "as_published"),
    )._replace(**more)


def tree_min_losses(args: Args, inputs: Arrays) -> Outputs:
    """tm and ftm with their gradients, and the label maps above the leaves."""
    assert args.get("eps", 1e-8) == hierarchy.EPSILON
    tree = tree_of(args, inputs)
    logits, labels = nhwc(inputs["logits"]), labels_of(args, inputs["labels"])
    one = args["tree"] != "cityscapes"
    scales = {
        "tm": args.get("tm_scale", 1.0 if args["tree"] == "mapillary" else 5.0),
        "ftm": args.get("ftm_scale", 1.0 if one else 5.0),
    }
    gammas = {"tm": 0.0, "ftm": float(inputs["gamma"])}
    found = {}
    for name, scale in scales.items():

        def value(x: jax.Array, scale: float = scale, name: str = name) -> jax.Array:
            loss = hierarchy.tree_min_loss(x, labels, tree, gammas[name])
            return scale * loss.value / loss.pixels

        found[name], gradient = jax.value_and_grad(value)(logits)
        found[f"grad_{name}"] = nchw(gradient)
    levels = hierarchy.levels_of(jnp.where(labels == IGNORE, 0, labels), tree)
    found |= dict(zip(("labels_mid", "labels_top"), levels[1:], strict=False))
    return found


def tree_min(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    tree, logits = tree_of(args, inputs), nhwc(inputs["logits"])
    scores = hierarchy.sigmoid(logits)
    return tree_min_losses(args, inputs) | {
        "positive_scores": nchw(hierarchy.positive_scores(scores, tree)),
        "negative_scores": nchw(hierarchy.negative_scores(scores, tree)),
    }


def whole_loss(
    args: Args, inputs: Arrays, settings: hssn.Settings
) -> tuple[Any, dict[str, jax.Array], jax.Array, tuple[Any, Any]]:
    """Total, terms, labels afterwards, and the gradients of logits and embedding (NCHW)."""
    tree, labels = tree_of(args, inputs), labels_of(args, inputs["labels"])
    step = jnp.asarray(inputs["step"], jnp.float32)

    def total(logits: jax.Array, embedding: jax.Array) -> Any:
        value, scalars, after = hssn.loss(logits, embedding, labels, step, tree, settings)
        return value, (scalars, after)

    both = nhwc(inputs["logits"]), nhwc(inputs["embedding"])
    call = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (value, (scalars, after)), gradients = call(*both)
    return value, scalars, after, tuple(map(nchw, gradients))


def loss_two_level(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    settings = settings_of(args)
    total, scalars, after, gradients = whole_loss(args, inputs, settings)
    return {
        "total": total,
        "tree_min": settings.tree_weight * scalars["loss_tree"],
        "ce_leaf": scalars["loss_ce_1"],
        "ce_super": scalars["loss_ce_2"],
        "triplet": scalars["loss_triplet"],
        "triplet_weight": scalars["triplet_weight"],
        "triplet_classes": scalars["triplet_classes"],
        "grad_logits": gradients[0],
        "grad_embedding": gradients[1],
        "labels_after": published(after, args),
    }


def loss_three_level(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    assert args.get("rmi_radius", 3) == 3 and args.get("rmi_pool", 3) == 3
    assert args.get("rmi_lambda", 0.5) == 0.5
    settings = settings_of(
        args,
        tree_loss="ftm",
        gamma=args.get("total_gamma", 2.0),
        tree_weight=args.get("total_ftm_weight", 0.5),
        rmi_weight=args.get("total_rmi_weight", 0.5),
    )
    total, scalars, _, gradients = whole_loss(args, inputs, settings)
    tree, labels = tree_of(args, inputs), labels_of(args, inputs["labels"])
    filled = jnp.where(labels == IGNORE, 0, labels)
    rmi, grad_rmi = jax.value_and_grad(region_mutual_information)(
        nhwc(inputs["logits"]), filled, tree
    )
    return tree_min_losses(args, inputs) | {
        "rmi": rmi,
        "grad_rmi": nchw(grad_rmi),
        "ce_leaf": scalars["loss_ce_1"],
        "ce_mid": scalars["loss_ce_2"],
        "ce_top": scalars["loss_ce_3"],
        "triplet": scalars["loss_triplet"],
        "triplet_classes": scalars["triplet_classes"],
        "triplet_weight": scalars["triplet_weight"],
        "total": total,
        "grad_total_logits": gradients[0],
        "grad_total_embedding": gradients[1],
    }


def inference(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    """Views to a leaf map, through the decision that the library's inference takes."""
    assert not args.get("swap_on_unflip", False) and not args.get("align_corners", False)
    names = {"softmax_all": "softmax", "sigmoid": "sigmoid", "logits": "logits"}
    decision = hssn.BestPath(tree_of(args, inputs), names[args.get("scores", "softmax_all")])
    size = tuple(int(side) for side in inputs["original_size"])
    views = []
    for number in range(args["num_views"]):
        view = decision.of_copy(resize.bilinear(nhwc(inputs[f"logits_{number}"]), size))
        views.append(view[:, :, ::-1] if inputs["flip"][number] else view)
    mean = sum(views) / len(views)
    scores = decision.of_classes(mean)
    return {"prob": nchw(mean), "scores": nchw(scores), "pred": scores.argmax(-1)}


# Paths of ours that the official trainer's groups of rates are about.
GROUPS = {
    "stem_layer1": r"^backbone/(stem|res2)",
    "layer2_layer3": r"^backbone/res[34]",
    "layer4": r"^backbone/res5",
    "heads": r"^(head|auxiliary|projection)",
}


def train_step(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    """In float32; a float64 case has a tolerance for that."""
    assert args["batch_norm"] == "train" and not args.get("dropout", 0.0)
    tree = tree_of(args, inputs)
    settings = settings_of(args, auxiliary_weight=args.get("aux_weight", 0.4))
    network = dict(
        system="deeplab_v3plus",
        classes=tree.sizes[0],
        backbone=args["backbone"] + "_v1d",
        dropout=0.0,
    )
    system = hssn.build(network, tree, **settings._asdict())
    batch = {
        "image": nhwc(inputs["image"]),
        "semantic": labels_of(args, inputs["labels"]),
    }
    expected = jax.eval_shape(lambda: system.init(jax.random.key(0), batch))
    variables = importers.to_variables("hssn", tensors, expected)

    @jax.jit
    def step(params: Any) -> Any:
        def total(params: Any) -> Any:
            return system.loss({**variables, "params": params}, batch, jax.random.key(0))

        return jax.value_and_grad(total, has_aux=True)(params)

    (value, (scalars, mutated)), gradients = step(variables["params"])
    auxiliary = settings.auxiliary_weight * scalars["loss_aux_0"]
    filled = jnp.where(batch["semantic"] == IGNORE, 0, batch["semantic"])
    statistics = importers.to_published("hssn", mutated)
    found = {
        "total": value,
        "aux_loss": auxiliary,
        "decode_loss": value - auxiliary,
        "step_after": statistics["decode_head.step"],
        "labels_after": published(filled, args)[:, None],
    }
    for name, array in statistics.items():
        module, _, kind = name.rpartition(".")
        found[f"{kind}/{module}"] = array
    found |= _named("grad", gradients)
    if args.get("optimizer"):
        found |= _named("update", _first_update(args["optimizer"], variables["params"], gradients))
    return found


def _named(kind: str, tree: Any) -> Outputs:
    published = importers.to_published("hssn", {"params": tree})
    return {f"{kind}/{name}": array for name, array in published.items()}


def _first_update(recipe: Args, params: Any, gradients: Any) -> Any:
    rates = tuple((GROUPS[name], factor) for name, factor in recipe["lr_multipliers"].items())
    config = configs.defaults()
    config.optimizer.update(
        name="sgd",
        learning_rate=recipe["lr"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
        no_decay=(),
        rates=rates,
    )
    config.schedule.update(name="constant", warmup_steps=0)
    sgd = optimizer.make(config.optimizer, config.schedule, 1)
    return jax.jit(lambda p, g: sgd.update(g, sgd.init(p), p)[0])(params, gradients)


def in_float32(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative error; of a float64 case as a share of its tolerance for float32."""
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    wide = case.args.get("float32_tolerance")
    return error * case.tolerance / wide if wide else error


def maskformer_forward(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    """The bare network; `semantic` is MaskFormer's own, not the per-level one of hssn.py."""
    tree = tree_of(args, inputs)
    system = maskformer.build(
        classes=tree.nodes, backbone=args["backbone"], queries=args["num_queries"]
    )
    batch = {"image": nhwc(inputs["image"])}
    expected = jax.eval_shape(lambda: system.init(jax.random.key(0), batch))
    variables = importers.to_variables("maskformer", tensors, expected)
    said, _ = jax.jit(system.outputs)(variables, batch)
    logits, masks = said.class_logits[-1], said.mask_logits[-1]
    chance = jax.nn.softmax(logits, axis=-1)[0, :, :-1]
    semantic = jnp.einsum("qv,hwq->vhw", chance, jax.nn.sigmoid(masks[0]))
    return {
        "res2": nchw(said.backbone["res2"]),
        "res5": nchw(said.backbone["res5"]),
        "pred_logits": logits,
        "pred_masks": nchw(masks),
        "semantic": semantic,
    }


RUNNERS = {
    "hssn.train_step": train_step,
    "hssn.maskformer_forward": maskformer_forward,
    "hssn.tree_min": tree_min,
    "hssn.loss_two_level": loss_two_level,
    "hssn.loss_three_level": loss_three_level,
    "hssn.inference": inference,
}
JUDGES = {
    ("hssn.inference", "pred"): near,
    ("hssn.train_step", "grad"): in_float32,
    ("hssn.train_step", "update"): in_float32,
}
