"""RegProxy's rows: what the official code was asked, asked of segjax.

Every function takes (args, tensors, inputs) of a case and gives its outputs. Maps are NCHW on both
sides; weights pass the library's importer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from segjax import importers
from segjax.backbones.vit import PatchEmbed, resize_position
from segjax.data import transforms
from segjax.inference import runner
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.metrics import confusion
from segjax.ops import painting, resize
from segjax.structs import IGNORE
from segjax.systems import regproxy
from segjax.systems.preprocess import normalised_image
from segjax.training import optimizer, schedules

Args = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


def nhwc(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def nchw(x: jax.Array) -> jax.Array:
    return x.transpose(0, 3, 1, 2)


def association_nchw(association: jax.Array) -> jax.Array:
    return association.transpose(0, 3, 4, 5, 1, 2)


def make_system(args: Args, tensors: Arrays) -> tuple[regproxy.System, Any]:
    """The system of the args, as deep as the checkpoint, and the checkpoint's variables."""
    system = regproxy.build(
        classes=args["num_classes"],
        backbone=args["backbone"].replace("vit_t16", "vit_ti16"),
        image_size=tuple(args["img_size"]),
        early_block=args["early_index"],
        region=tuple(args.get("region_res", (4, 4))),
        distilled=args.get("distilled", False),
    )
    backbone = system.module.backbone
    blocks = {m[1] for name in tensors if (m := re.search(r"backbone\.layers\.(\d+)\.", name))}
    stem = backbone.stem
    if stem is not None:
        stem = stem.clone(depths=stem_depths(tensors), parent=None)
    backbone = backbone.clone(depth=len(blocks), stem=stem, parent=None)
    system = regproxy.System(system.module.clone(backbone=backbone, parent=None))
    image = jax.ShapeDtypeStruct((1, *args["img_size"], 3), jnp.float32)
    expected = jax.eval_shape(system.init, jax.random.key(0), {"image": image})
    return system, importers.to_variables("regproxy", tensors, expected)


def stem_depths(tensors: Arrays) -> tuple[int, ...]:
    found = (re.search(r"\.stages\.(\d+)\.blocks\.(\d+)\.", name) for name in tensors)
    blocks = {(int(m[1]), int(m[2])) for m in found if m}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(one == stage for one, _ in blocks) for stage in stages)


# --------------------------------------------------------------------------------------------------
# The model


def forward(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    system, variables = make_system(args, tensors)
    image = nhwc(inputs["img"])
    out = jax.jit(system.module.apply)(variables, image)
    low = painting.paint(out.region_scores, out.association)
    return {
        "feat_mid": nchw(out.early),
        "feat_last": nchw(out.last),
        "affinity": association_nchw(out.association),
        "logits_low": nchw(low),
        "logits": nchw(resize.bilinear(low, image.shape[1:3])),
    }


def hybrid_stem(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    whole = regproxy.build(classes=2, backbone=args["backbone"]).module.backbone
    stem = whole.stem.clone(depths=stem_depths(tensors), parent=None)
    embed = PatchEmbed(whole.width, 1)
    image = nhwc(inputs["img"])
    features = jax.ShapeDtypeStruct((1, 1, 1, 2048), jnp.float32)
    parts = {
        "stem": jax.eval_shape(stem.init, jax.random.key(0), image),
        "patch_embed": jax.eval_shape(embed.init, jax.random.key(0), features),
    }
    expected = {"params": {"backbone": {name: part["params"] for name, part in parts.items()}}}
    params = importers.to_variables("regproxy", tensors, expected)["params"]["backbone"]

    @jax.jit
    def run(params: Any, image: jax.Array) -> tuple[jax.Array, Any]:
        x, sown = stem.apply({"params": params["stem"]}, image, mutable=["intermediates"])
        return embed.apply({"params": params["patch_embed"]}, x), sown["intermediates"]

    tokens, levels = run(params, image)
    outputs = {name.replace("_", ""): nchw(level[0]) for name, level in levels.items()}
    return outputs | {"tokens": tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])}


def head_train_step(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    head = regproxy.ProxyHead(args["num_classes"], tuple(args["region_res"]))
    early, last = nhwc(inputs["early"]), nhwc(inputs["last"])
    # The momentum of the library's batch norm is torch's 0.1; cases ask for no other.
    assert args["bn_momentum"] == 0.1
    labels = given_labels(inputs["label"], args["ignore_label"])
    expected = jax.eval_shape(lambda: head.init(jax.random.key(0), early, last, False))
    expected = {collection: {"head": tree} for collection, tree in expected.items()}
    variables = importers.to_variables("regproxy", tensors, expected)

    @jax.jit
    def step(params: Any, early: jax.Array, last: jax.Array) -> Any:
        def objective(params: Any, early: jax.Array, last: jax.Array) -> Any:
            given = {"params": params["head"], "batch_stats": variables["batch_stats"]["head"]}
            (association, scores), after = head.apply(
                given, early, last, True, mutable=["batch_stats"]
            )
            out = regproxy.RegProxyOutput(early, last, association, scores)
            value, _ = regproxy.loss(out, labels)
            return value, (painting.paint(scores, association), after["batch_stats"])

        return jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)(params, early, last)

    (value, (logits, after)), (gradient, grad_early, grad_last) = step(
        variables["params"], early, last
    )
    outputs = {
        "loss": value,
        "logits": nchw(logits),
        "grad_early": nchw(grad_early),
        "grad_last": nchw(grad_last),
    }
    for prefix, tree in (
        ("grad", {"params": gradient}),
        ("after", {"batch_stats": {"head": after}}),
    ):
        published = importers.to_published("regproxy", tree)
        outputs |= {f"{prefix}/{name}": array for name, array in published.items()}
    return outputs


def given_labels(label: np.ndarray, ignore: int) -> jax.Array:
    """[B, 1, H, W] with the files' ignore value -> [B, H, W] with ours."""
    label = label[:, 0].astype(np.int16)
    return jnp.asarray(np.where(label == ignore, IGNORE, label))


# --------------------------------------------------------------------------------------------------
# Inference


def slide(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    image = np.asarray(nhwc(inputs["img"]))[0]

    def infer(size: tuple[int, int], what: str, mirrored: bool = False) -> np.ndarray:
        return infer_copies(args, tensors, [image], [mirrored], size, what)

    return {
        "logits_window": infer(image.shape[:2], "scores"),
        "logits": infer(args["ori_size"], "scores"),
        "prob": infer(args["ori_size"], "probabilities", args["flip"]),
    }


def multiscale_flip(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    flips = [bool(flip) for flip in inputs["flip"]]
    images = [np.asarray(nhwc(inputs[f"img{i}"]))[0] for i in range(len(flips))]
    size = args["ori_size"]
    return {"prob": infer_copies(args, tensors, images, flips, size, "probabilities")}


def infer_copies(
    args: Args,
    tensors: Arrays,
    images: list[np.ndarray],
    flips: list[bool],
    size: Sequence[int],
    what: str,
) -> np.ndarray:
    """`runner.infer_ready` on normalised images [h, w, 3] -> [1, K, *size]."""
    system, variables = make_system(args, tensors)
    settings = dict(crop=tuple(args["crop"]), stride=tuple(args["stride"]))
    out = runner.infer_ready(system, variables, images, flips, tuple(size), settings, what)
    return nchw(out[None])


# --------------------------------------------------------------------------------------------------
# Parts without weights


def paint(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    region = tuple(args["region_res"])
    logits, scores = nhwc(inputs["affinity_logits"]), nhwc(inputs["token_logits"])

    def run(logits: jax.Array, scores: jax.Array) -> jax.Array:
        return painting.paint(scores, painting.associate(logits, region))

    painted, pullback = jax.vjp(run, logits, scores)
    grad_affinity, grad_token = pullback(nhwc(inputs["cotangent"]))
    return {
        "affinity": association_nchw(painting.associate(logits, region)),
        "painted": nchw(painted),
        "grad_affinity": nchw(grad_affinity),
        "grad_token": nchw(grad_token),
    }


def loss(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    labels = given_labels(inputs["label"], args["ignore_label"])
    outputs = {}
    for over, value_name, gradient_name in (
        ("all", "loss_seg", "grad_logits"),
        ("valid", "segmenter_loss", "segmenter_grad"),
    ):
        (value, scalars), gradient = jax.value_and_grad(pixel_cross_entropy, has_aux=True)(
            nhwc(inputs["logits"]), labels, over
        )
        outputs |= {value_name: value, gradient_name: nchw(gradient)}
    return outputs | {"acc_seg": scalars["accuracy"]}


def one_pixel(case: Any, ours: np.ndarray, theirs: np.ndarray) -> float:
    """0 within one pixel's share of the percentage, else the difference."""
    share = 100.0 / case.inputs()["label"].size
    difference = abs(float(ours) - float(theirs))
    return 0.0 if difference <= share * (1 + 1e-5) else difference


def pos_embed(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    return {
        name: resize_position(
            jnp.asarray(inputs[name]),
            tuple(item["old_grid"]),
            tuple(item["new_grid"]),
            item["extra_tokens"],
            method=item["method"],
        )
        for name, item in args["items"].items()
    }


# --------------------------------------------------------------------------------------------------
# The recipe


def lr_schedule(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    base = args["base_lr"]
    warmup = dict(warmup_steps=args["warmup_iters"], warmup_ratio=args["warmup_ratio"])
    poly = dict(name="poly", power=args["poly_power"], min_rate=args["poly_min_lr"], **warmup)
    restart = dict(
        name="cosine_restart",
        periods=tuple(args["cr_periods"]),
        weights=tuple(args["cr_weights"]),
        min_rate=base * args["cr_min_lr_ratio"],
        **warmup,
    )
    total = args["total_iters"]
    return {
        "lr_poly": schedules.rate(poly, base, total, inputs["iter_poly"]),
        "lr_cr": schedules.rate(restart, base, total, inputs["iter_cr"]),
    }


OFFICIAL_NO_DECAY = ["pos_embed", "cls_token", "dist_token", ".ln", "norm"]


def weight_decay(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    tokens = tensors["backbone.pos_embed"].shape[1] - 1 - args["distilled"]
    patch = 32 if "_r" in args["backbone"] else 16
    model = dict(
        num_classes=tensors["decode_head.mlp.0.0.weight"].shape[0],
        img_size=(patch * tokens, patch),
        early_index=-1,
        region_res=(tensors["decode_head.affinity_head.1.conv.weight"].shape[0] // 9, 1),
    )
    _, variables = make_system(args | model, tensors)
    params = variables["params"]
    if args["no_decay"] == OFFICIAL_NO_DECAY:
        patterns = common.VIT_NO_DECAY
    else:  # what these substrings exempt, path by path
        names = importers.published_names("regproxy", {"params": params})
        patterns = [
            f"^{path.removeprefix('params/')}$"
            for path, published in names.items()
            if any(part in name for name in published for part in args["no_decay"])
        ]

    def by_name(values: Any) -> dict[str, float]:
        full = jax.tree.map(lambda x, v: np.broadcast_to(np.float64(v), x.shape), params, values)
        published = importers.to_published("regproxy", {"params": full})
        return {name: x.flat[0] for name, x in published.items()}

    decays = by_name(optimizer.decay_mask(params, patterns))
    multipliers = by_name(optimizer.rate_multipliers(params, 1.0))
    return {
        "weight_decay": np.array(
            [args["weight_decay"] * decays[n] if n in decays else -1.0 for n in tensors]
        ),
        "lr": np.array([args["base_lr"] * multipliers[n] if n in decays else -1 for n in tensors]),
    }


def augment(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    image = np.ascontiguousarray(inputs["img"][..., ::-1])
    scale = tuple(args["resize_scale"])
    resized, labels = transforms.resize_keep_ratio(image, inputs["seg"], scale)
    outputs = {
        "brightness": transforms.brightness(image, args["brightness"]),
        "contrast": transforms.contrast(image, args["contrast"]),
        "saturation": transforms.saturation(image, args["saturation"]),
        "hue": transforms.hue(image, args["hue"]),
        "resized_img": resized,
    }
    bgr = {name: x[..., ::-1] for name, x in outputs.items()}
    return bgr | {"resized_seg": labels}


def test_pipeline(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    image = inputs["img"][..., ::-1] if args["to_rgb"] else inputs["img"]
    image = np.ascontiguousarray(image)
    scale, mean, std = (tuple(args[name]) for name in ("img_scale", "mean", "std"))
    outputs, flips, sizes = {}, [], []
    for ratio in args["ratios"]:
        size = transforms.rescaled_size(image.shape[:2], scale, ratio)
        resized = transforms.resize_image(image, size)
        for flip in (False, True) if args["flip"] else (False,):
            copy = resized[:, ::-1] if flip else resized
            batch = {"image": jnp.asarray(copy)[None]}
            outputs[f"img{len(flips)}"] = nchw(normalised_image(batch, mean, std))
            flips.append(flip)
            sizes.append(size)
    return outputs | {"flip": np.array(flips), "sizes": np.array(sizes)}


def miou(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    total = confusion.zeros(args["num_classes"])
    for i in range(sum(name.startswith("pred") for name in inputs)):
        truth = inputs[f"gt{i}"].astype(np.int32)
        if args["reduce_zero_label"]:
            truth = np.where(truth == 0, args["ignore_label"], truth - (truth != 255))
        truth = jnp.asarray(np.where(truth == args["ignore_label"], IGNORE, truth))
        predicted = jnp.asarray(inputs[f"pred{i}"])
        areas = confusion.image_areas(predicted[None], truth[None], args["num_classes"])
        total = confusion.add(total, areas)
    areas = confusion.to_host(total)
    summary = confusion.summary(areas, [str(k) for k in range(args["num_classes"])])
    outputs = {
        "area_intersect": areas[confusion.INTERSECTION],
        "area_union": confusion.union(areas),
        "area_pred": areas[confusion.PREDICTED],
        "area_label": areas[confusion.LABELLED],
        "IoU": confusion.iou(areas),
        "Acc": confusion.accuracy(areas),
        "aAcc": confusion.pixel_accuracy(areas),
        "mIoU": summary["mIoU"],
        "mAcc": summary["mAcc"],
    }
    return {name: np.nan_to_num(x, nan=-1.0) for name, x in outputs.items()}


def exact(case: Any, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


RUNNERS = {
    "regproxy.forward": forward,
    "regproxy.hybrid_stem": hybrid_stem,
    "regproxy.head_train_step": head_train_step,
    "regproxy.slide": slide,
    "regproxy.multiscale_flip": multiscale_flip,
    "regproxy.paint": paint,
    "regproxy.loss": loss,
    "regproxy.pos_embed": pos_embed,
    "regproxy.lr_schedule": lr_schedule,
    "regproxy.weight_decay": weight_decay,
    "regproxy.augment": augment,
    "regproxy.test_pipeline": test_pipeline,
    "regproxy.miou": miou,
}

JUDGES = {
    ("regproxy.loss", "acc_seg"): one_pixel,
    ("regproxy.augment", "resized_seg"): exact,
    ("regproxy.test_pipeline", "flip"): exact,
    ("regproxy.test_pipeline", "sizes"): exact,
}
