"""Mask2Former's and MaskFormer's rows about networks, losses and optimizers.

Every function takes (args, tensors, inputs) of a case and gives its outputs; maps are NCHW on both
sides, and weights pass the library's importer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from segjax import importers
from segjax.decoders.msdeform_pixel import MSDeformAttention, reference_points
from segjax.inference import mask_runner
from segjax.losses import set_prediction as sets
from segjax.losses.set_prediction import Targets
from segjax.ops.position import sine_position
from segjax.systems import mask2former, maskformer
from segjax.training import optimizer
from tests.parity.regproxy import nchw

Args = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


# --------------------------------------------------------------------------------------------------
# Networks


def make_system(args: Args, family: str) -> mask2former.System | maskformer.System:
    """The system of the args."""
    fields = dict(
        classes=args["num_classes"],
        backbone=args["backbone"] + ("c" if args.get("flavour") == "r101c" else ""),
        backbone_norm=args.get("backbone_norm") or "frozen_bn",
        queries=args["num_queries"],
        divisible=args.get("size_divisibility", 32),
    )
    if family == "mask2former":
        return mask2former.build(**fields)
    return maskformer.build(**fields, encoder_layers=args.get("encoder_layers", 0))


def with_variables(args: Args, tensors: Arrays, family: str) -> tuple[Any, Any]:
    system = make_system(args, family)
    layout = family if args.get("layout", "official") == "official" else args["layout"]
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    expected = jax.eval_shape(system.init, jax.random.key(0), {"image": image})
    return system, importers.to_variables(layout, tensors, expected)


def forward(family: str, args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    system, variables = with_variables(args, tensors, family)
    image = jnp.asarray(inputs["image"]).transpose(1, 2, 0)[None]
    outputs, _ = jax.jit(lambda v, x: system.outputs(v, {"image": x}))(variables, image)
    found = {name: nchw(level) for name, level in outputs.backbone.items()}
    found["mask_features"] = nchw(outputs.mask_features)
    for i, (logits, masks) in enumerate(zip(outputs.class_logits, outputs.mask_logits)):
        found |= {f"aux{i}_logits": logits, f"aux{i}_masks": nchw(masks)}
    found["pred_logits"] = found["official_pred_logits"] = outputs.class_logits[-1]
    found["pred_masks"] = found["official_pred_masks"] = nchw(outputs.mask_logits[-1])
    if family == "mask2former":
        found |= {f"ms{i}": nchw(level) for i, level in enumerate(outputs.levels)}
        coarse = outputs.levels[0].shape[1:3]
        found["attn_mask0"] = mask2former.attention_mask(outputs.mask_logits[0], coarse)
    else:
        found["enc_features"] = nchw(outputs.memory)
    size = tuple(args.get("output_size") or image.shape[1:3])
    scores = mask_runner.semantic_scores_of(
        system.predict(variables, {"image": image}),
        image.shape[1:3],
        size,
        resize_first=args["resize_before_inference"],
    )
    found["sem_seg"] = scores.transpose(2, 0, 1)
    return {name: np.asarray(value) for name, value in found.items()}


def semantic_tta(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    system, variables = with_variables(args, tensors, "mask2former")
    image = np.asarray(inputs["image"]).transpose(1, 2, 0)
    size = image.shape[:2]
    views = mask_runner.views(
        size, args["min_sizes"], args["max_size"], args["flip"], system.divisible
    )
    found, said = {}, []
    for i, view in enumerate(views):
        copy = mask_runner.view_of(image, view)
        found[f"aug{i}"] = copy.transpose(2, 0, 1)
        said.append(system.predict(variables, {"image": jnp.asarray(copy)[None]}))
    scores = mask_runner.mean_scores_of(said, views, size)
    found["sem_seg"] = scores.transpose(2, 0, 1)
    single = system.predict(variables, {"image": jnp.asarray(image)[None]})
    single = mask_runner.semantic_scores_of(single, size, size, resize_first=False)
    found["sem_seg_single"] = single.transpose(2, 0, 1)
    return {name: np.asarray(value) for name, value in found.items()}


def deformable_module(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    module = MSDeformAttention(args["heads"], args["points"])
    shapes = [tuple(int(n) for n in row) for row in inputs["spatial_shapes"]]
    assert len(shapes) == args["levels"]
    query, source = jnp.asarray(inputs["query"]), jnp.asarray(inputs["input_flatten"])
    reference = reference_points(shapes)
    fresh = jax.eval_shape(
        lambda: module.init(jax.random.key(0), query, source, reference, shapes)["params"]
    )
    ours = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn."
    renamed = {name.replace(args["prefix"], ours): value for name, value in tensors.items()}
    expected = {"params": {"pixel_decoder": {"encoder_0": {"attention": fresh}}}}
    variables = importers.to_variables("mask2former", renamed, expected)
    params = variables["params"]["pixel_decoder"]["encoder_0"]["attention"]

    def run(query: jax.Array, source: jax.Array) -> jax.Array:
        return module.apply({"params": params}, query, source, reference, shapes)

    output, pull = jax.vjp(run, query, source)
    slopes = pull(jnp.asarray(inputs["cotangent"]))
    places = jnp.broadcast_to(reference[None, :, None], (1, len(reference), len(shapes), 2))
    return {
        "reference_points": np.asarray(places),
        "output": np.asarray(output),
        "d_query": np.asarray(slopes[0]),
        "d_input_flatten": np.asarray(slopes[1]),
    }


def sine(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    def one(size: list[int]) -> np.ndarray:
        position = sine_position(
            tuple(size),
            args.get("features_per_axis", 128),
            args.get("temperature", 10_000),
            args.get("normalize", True),
            args.get("eps", 1e-6),
        )
        return np.asarray(position).transpose(2, 0, 1)[None]

    return {name: one(size) for name, size in args["sizes"].items()}


# --------------------------------------------------------------------------------------------------
# Matching and losses


def targets_of(inputs: Arrays, images: int) -> tuple[Targets, list[int]]:
    """The cases' binary masks, which may overlap, as layers of segments: one layer each."""
    labels = [np.atleast_1d(inputs[f"img{i}_labels"]) for i in range(images)]
    counts = [len(one) for one in labels]
    room = max(*counts, 1) if counts else 1
    size = next(inputs[f"img{i}_masks"].shape[-2:] for i in range(images) if counts[i])
    segments = np.full((images, room, *size), -1, np.int16)
    classes = np.full((images, room), -1, np.int32)
    for i in range(images):
        for t in range(counts[i]):
            segments[i, t][inputs[f"img{i}_masks"][t] > 0] = t
            classes[i, t] = labels[i][t]
    batch = {
        "segments": jnp.asarray(segments),
        "segment_class": jnp.asarray(classes),
        "segment_is_crowd": jnp.zeros(classes.shape, bool),
    }
    return sets.targets_of(batch), counts


def masks_in(masks: np.ndarray) -> jax.Array:
    return jnp.asarray(masks).transpose(0, 2, 3, 1)


def rows_of(query_of_target: np.ndarray, image: int) -> list[tuple[int, int, int]]:
    """(image, query, target), queries ascending."""
    pairs = [(int(q), t) for t, q in enumerate(np.asarray(query_of_target)[image]) if q >= 0]
    return [(image, q, t) for q, t in sorted(pairs)]


def matcher(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    logits, masks = jnp.asarray(inputs["pred_logits"]), masks_in(inputs["pred_masks"])
    images = len(logits)
    targets, counts = targets_of(inputs, images)
    weights = [args[f"{name}_weight"] for name in ("class", "mask", "dice")]
    points = jnp.concatenate([jnp.asarray(inputs[f"img{i}_points"]) for i in range(images)])
    costs = mask2former.matching_costs(logits, masks, targets, points)
    whole = sum(weight * cost for weight, cost in zip(weights, costs))
    matched = mask2former.matching.match(whole, targets.count)
    found = {}
    for i in range(images):
        for name, cost in zip(("class", "mask", "dice"), costs):
            found[f"img{i}_cost_{name}"] = cost[i, :, : counts[i]]
        found[f"img{i}_cost"] = whole[i, :, : counts[i]]
        rows = np.array(rows_of(matched.query_of_target, i), np.int64).reshape(-1, 3)
        found[f"img{i}_rows"], found[f"img{i}_cols"] = rows[:, 1], rows[:, 2]
    return {name: np.asarray(value) for name, value in found.items()}


def predictions_of(inputs: Arrays, count: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    names = ("final", *(f"aux{i}" for i in range(count)))
    return {
        name: (jnp.asarray(inputs[f"{name}_logits"]), masks_in(inputs[f"{name}_masks"]))
        for name in names
    }


def suffix(name: str) -> str:
    return "" if name == "final" else f"_{name.removeprefix('aux')}"


def point_loss(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    predictions = predictions_of(inputs, args["num_aux"])
    images = len(predictions["final"][0])
    targets, _ = targets_of(inputs, images)
    settings = mask2former.LossSettings(
        args["class_weight"],
        args["mask_weight"],
        args["dice_weight"],
        args["no_object_weight"],
        args["num_points"],
        args["oversample_ratio"],
        args["importance_ratio"],
    )
    found: dict[str, Any] = {}

    def draws(name: str) -> mask2former.Points:
        """The case's draws at the places of the pairs they belong to."""
        match = jnp.asarray(inputs[f"{name}_match_points"])
        logits, masks = predictions[name]
        costs = mask2former.matching_costs(logits, masks, targets, match)
        weights = (settings.class_weight, settings.mask_weight, settings.dice_weight)
        whole = sum(weight * cost for weight, cost in zip(weights, costs))
        query = mask2former.matching.match(whole, targets.count).query_of_target
        pairs = [row for image in range(images) for row in rows_of(query, image)]
        found[f"{name}_pairs"] = np.array(pairs, np.int64).reshape(-1, 3)
        shape = targets.classes.shape
        kinds = [inputs[f"{name}_{kind}_points"] for kind in ("oversample", "random")]
        placed = [np.zeros((*shape, *kind.shape[1:]), np.float32) for kind in kinds]
        for n, (image, _, target) in enumerate(pairs):
            for into, kind in zip(placed, kinds):
                into[image, target] = kind[n]
        chosen = sets.paired_masks(masks, sets.Pairs(query, query))
        where = np.asarray(mask2former.loss_points(chosen, *placed, match.shape[1]))
        where = np.stack([where[image, target] for image, _, target in pairs])
        found[f"{name}_points"] = where
        size = mask2former.BLOCK
        beyond = ((0, 0), (0, -shape[1] % size), (0, 0), (0, 0))
        filled = [jnp.asarray(np.pad(part, beyond)) for part in placed]

        def own(k: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(
                jax.lax.dynamic_slice_in_dim(part, k * size, size, axis=1) for part in filled
            )

        return mask2former.Points(match, own)

    points = {name: draws(name) for name in predictions}

    def whole(predictions: Any) -> tuple[jax.Array, dict[str, sets.PredictionLoss]]:
        losses = {
            name: mask2former.prediction_loss(*said, targets, points[name], settings)
            for name, said in predictions.items()
        }
        totals = [total for total, _, _ in losses.values()]
        return sum(totals), {name: parts for name, (_, parts, _) in losses.items()}

    return found | losses_and_slopes(whole, predictions)


def losses_and_slopes(whole: Any, predictions: Any) -> Outputs:
    (total, losses), slopes = jax.jit(jax.value_and_grad(whole, has_aux=True))(predictions)
    found = {"total": total}
    for name, one in losses.items():
        found |= {
            f"loss_{part}{suffix(name)}": getattr(one, part) for part in ("ce", "mask", "dice")
        }
        found[f"d_{name}_logits"] = slopes[name][0]
        found[f"d_{name}_masks"] = nchw(slopes[name][1])
    return {name: np.asarray(value) for name, value in found.items()}


def full_loss(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    predictions = predictions_of(inputs, args["num_aux"])
    images = len(predictions["final"][0])
    targets, counts = targets_of(inputs, images)
    assert (args["focal_alpha"], args["focal_gamma"]) == (0.25, 2.0)
    settings = maskformer.LossSettings(
        args["class_weight"], args["mask_weight"], args["dice_weight"], args["no_object_weight"]
    )
    found = {}
    for name, (logits, masks) in predictions.items():
        _, pairs = maskformer.prediction_loss(logits, masks, targets, settings)
        rows = [row for image in range(images) for row in rows_of(pairs.query, image)]
        found[f"{name}_pairs"] = np.array(rows, np.int64).reshape(-1, 3)
    costs = maskformer.matching_costs(*predictions["final"], targets)
    for i in range(images):
        for part, cost in zip(("class", "mask", "dice"), costs):
            found[f"final_img{i}_cost_{part}"] = np.asarray(cost[i, :, : counts[i]])

    def whole(predictions: Any) -> tuple[jax.Array, dict[str, sets.PredictionLoss]]:
        losses = {
            name: maskformer.prediction_loss(*said, targets, settings)[0]
            for name, said in predictions.items()
        }
        return sum(sets.weighted(one, settings.weights) for one in losses.values()), losses

    return found | losses_and_slopes(whole, predictions)


# --------------------------------------------------------------------------------------------------
# The optimizer


def param_groups(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    system = make_system(args, args["system"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(system.init, jax.random.key(0), {"image": image})["params"]
    layout = args["system"]
    recipe = common.set_adamw(args["base_lr"], args["weight_decay"], args["backbone_lr_multiplier"])
    assert args["norm_weight_decay"] == args["embedding_weight_decay"] == 0
    rates = dict(
        zip(
            optimizer.paths(params),
            jax.tree.leaves(optimizer.rate_multipliers(params, 1.0, recipe["rates"])),
        )
    )
    decays = dict(
        zip(
            optimizer.paths(params),
            jax.tree.leaves(optimizer.decay_mask(params, recipe["no_decay"])),
        )
    )
    names = [str(name) for name in inputs["names"]]
    published = importers.published_names(layout, {"params": params})
    trained = sorted(name for several in published.values() for name in several)
    assert trained == sorted(names)
    ours = [importers.our_path(layout, name) for name in names]
    return {
        "lr": np.array([recipe["learning_rate"] * rates[path] for path in ours]),
        "weight_decay": np.array([recipe["weight_decay"] * decays[path] for path in ours]),
    }


def of(family: str) -> Any:
    return lambda args, tensors, inputs: forward(family, args, tensors, inputs)


RUNNERS = {
    "mask2former.forward": of("mask2former"),
    "maskformer.forward": of("maskformer"),
    "mask2former.semantic_tta": semantic_tta,
    "mask2former.msdeform_attention": deformable_module,
    "mask2former.sine_position": sine,
    "mask2former.matcher": matcher,
    "mask2former.loss": point_loss,
    "maskformer.loss": full_loss,
    "mask2former.param_groups": param_groups,
}


def pairs_equal(case: Any, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


def sorted_points(case: Any, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The points of each pair in any order."""

    def ordered(points: np.ndarray) -> np.ndarray:
        return np.stack([pair[np.lexsort(pair.T)] for pair in points]) if len(points) else points

    difference = np.linalg.norm(ordered(ours).astype(np.float64) - ordered(theirs))
    return float(difference / max(np.linalg.norm(theirs), 1e-30))


PREDICTIONS = ("final", *(f"aux{i}" for i in range(9)))

JUDGES = {
    **{
        (what, f"{name}_pairs"): pairs_equal
        for what in ("mask2former.loss", "maskformer.loss")
        for name in PREDICTIONS
    },
    **{("mask2former.loss", f"{name}_points"): sorted_points for name in PREDICTIONS},
    **{
        ("mask2former.matcher", f"img{i}_{kind}"): pairs_equal
        for i in range(8)
        for kind in ("rows", "cols")
    },
}
