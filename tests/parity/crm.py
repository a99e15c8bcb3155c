"""CRM's own rows: the network and its parts, the schedule, and the loss.

Every function takes (args, tensors, inputs) of a case and gives its outputs. Maps are NCHW on both
sides; weights pass the library's importer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import importers
from segjax.losses import refinement
from segjax.ops import implicit
from segjax.systems import crm
from tests.parity.regproxy import Args, Arrays, Outputs, nchw, nhwc
from tests.parity.weights import Case


def system_of(args: Args, tensors: Arrays, **fields: Any) -> tuple[crm.System, Any]:
    """The system and its variables."""
    system = crm.build(backbone=args["backbone"], **fields)
    expected = jax.eval_shape(lambda: system.init(jax.random.key(0), {}))
    return system, importers.to_variables("crm", tensors, expected)


def part_of(name: str, tensors: Arrays) -> tuple[crm.CRM, Any]:
    """The module and the variables of one of its parts."""
    system = crm.build()
    whole = jax.eval_shape(lambda: system.init(jax.random.key(0), {}))
    expected = {key: {name: tree[name]} for key, tree in whole.items() if name in tree}
    return system.module, importers.to_variables("crm", tensors, expected)


def points(coord: np.ndarray, cell: np.ndarray, size: tuple[int, int]) -> list[implicit.Axis]:
    """Queries [B, Q, 2] over a map of `size`."""
    return [implicit.axis_at(coord[..., i], cell[..., i], size[i]) for i in (0, 1)]


def forward(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    system, variables = system_of(args, tensors)
    x = jnp.concatenate([nhwc(inputs["im"]), nhwc(inputs["seg"])], axis=-1)
    encoded = jax.jit(lambda v, x: system.module.apply(v, x, method=crm.CRM.encoded))
    levels, features = encoded(variables, x)
    network = system.module.apply(variables, method=lambda module: module.implicit())
    axes = points(inputs["coord"], inputs["cell"], features.shape[1:3])
    projected = implicit.project(features, network)
    logits = implicit.point_answers(projected, network, *axes).logits[..., None]
    maps = dict(zip(("x1_feat", "x2_feat", "x3_feat"), crm.levels_of(levels)))
    found = {name: nchw(x) for name, x in {**maps, "feat": features}.items()}
    return found | {"out_224": logits, "pred_224": jax.nn.sigmoid(logits)}


def alignment(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    module, variables = part_of("alignment", tensors)
    levels = tuple(nhwc(inputs[f"x{i}_feat"]) for i in (1, 2, 3))
    apply = jax.jit(module.apply, static_argnames="method")

    def both(module: crm.CRM, levels: Any) -> Any:
        return module.alignment.side_by_side(levels), module.alignment(levels, False)

    concat, feat = apply(variables, levels, method=both)
    return {"concat": nchw(concat), "feat": nchw(feat)}


def query(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    module, variables = part_of("implicit", tensors)
    network = module.apply(variables, method=lambda module: module.implicit())
    features = nhwc(inputs["feat"])
    axes = points(inputs["coord"], inputs["cell"], features.shape[1:3])
    projected = implicit.project(features, network)
    answers = jax.jit(implicit.point_answers)(projected, network, *axes)
    return {
        "out": answers.logits[..., None],
        "pred": jax.nn.sigmoid(answers.logits)[..., None],
        "corner_logits": answers.by_cell,
        "corner_position_inputs": answers.positions,
    }


def schedule(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    scales = tuple(args["scales"])
    assert np.array_equal(scales, inputs["scales"])
    system, variables = system_of(args, tensors, scales=scales, pad=args["pad"])
    pad, (height, width) = args["pad"], inputs["mask"].shape
    cut = np.s_[pad : pad + height, pad : pad + width]
    found: dict[str, Any] = {}
    padded = system.padded_turns(variables, inputs["image"], inputs["mask"])
    for k, (scale, chance) in enumerate(zip(scales, padded, strict=True)):
        scaled = crm.scaled_size(chance.shape, scale)
        found[f"turn{k}_size"] = np.array([*scaled, *(-(-n // 2) for n in scaled)])
        maps = {
            "prob": chance,
            "mask_u8": (chance[cut] * np.float32(255)).astype(np.uint8),
            "binary_u8": (chance[cut] > 0.5) * np.uint8(255),
        }
        for name, x in maps.items():
            if args["plus_one"]:
                found[f"turn{k}_{name}_plus_one"] = x.astype(np.float32) + 1
            else:
                found[f"turn{k}_{name}"] = x
    return found


def losses(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    names = ("ce", "l1", "l2", "grad")
    weights = crm.Weights(*(args[f"{name}_weight"] for name in names))
    logits, truth, coarse = (jnp.asarray(inputs[name])[:, 0] for name in ("logits", "gt", "seg"))

    def total(logits: jax.Array) -> Any:
        return crm.loss(logits, truth, weights)

    (value, terms), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    counts = refinement.counts(logits, truth, coarse)
    ours = ("loss_ce", "loss_l1", "loss_l2", "loss_gradient")
    return {f"{name}_loss": terms[our] for name, our in zip(names, ours)} | {
        "loss": value,
        "total_loss": value,
        "d_logits": slope[:, None],
        "gt_sobel": refinement.smooth_sobel(truth)[:, None],
        "pred_sobel": refinement.smooth_sobel(jax.nn.sigmoid(logits))[:, None],
        "iou_orig_i": counts["coarse_intersection"],
        "iou_orig_u": counts["coarse_union"],
        "iou_new_i_224": counts["intersection"],
        "iou_new_u_224": counts["union"],
    }


# --------------------------------------------------------------------------------------------------
# How turns are judged


def exact(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


def one_level(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    """0 where no grey level is off by more than 1."""
    apart = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
    return 0.0 if apart.max(initial=0) <= 1 else np.inf


def clear_pixels(k: int) -> Any:
    """0 where all pixels are equal whose probability, where it is stored, is 1e-3 or more from one
    half."""

    def judge(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
        outputs, pad = case.meta["outputs"], case.args["pad"]
        stored, mask = outputs[f"turn{k}_prob"], outputs[f"turn{k}_binary_u8"]
        chance = np.full(stored["shape"], 0.5)
        chance[tuple(slice(None, None, n) for n in stored["stride"])] = case.expected()[
            f"turn{k}_prob"
        ]
        inner = tuple(slice(pad, pad + n, step) for n, step in zip(mask["shape"], mask["stride"]))
        clear = np.abs(chance[inner] - 0.5) >= 1e-3
        return 0.0 if np.array_equal(ours[clear], theirs[clear]) else np.inf

    return judge


RUNNERS = {
    "crm.forward": forward,
    "crm.cam": alignment,
    "crm.query": query,
    "crm.schedule": schedule,
    "crm.loss": losses,
}
MOST_TURNS = 32
JUDGES = {
    ("crm.schedule", f"turn{k}_{name}"): judge
    for k in range(MOST_TURNS)
    for name, judge in (
        ("size", exact),
        ("mask_u8", one_level),
        ("binary_u8", clear_pixels(k)),
    )
}
