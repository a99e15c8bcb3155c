"""Rows of Mask2Former's data side; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data import set_transforms
from segjax.training import schedules
from tests.parity.weights import Case

Arrays = Mapping[str, np.ndarray]


def lsj_augment(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    channels = [inputs["pan_rgb"][..., channel] for channel in range(3)]
    outputs = {}
    for i, flip in enumerate(inputs["flip"]):
        image, maps = set_transforms.large_scale_jitter(
            inputs["image"],
            channels,
            tuple(args["target_size"]),
            bool(flip),
            float(inputs["scale_draw"][i]),
            float(inputs["crop_draw"][i]),
            args["image_pad"],
            args["map_pad"],
        )
        outputs |= {f"image{i}": image, f"pan{i}": np.stack(maps, axis=-1)}
    return outputs


def color_augment(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    return {
        f"image{i}": set_transforms.color_jitter_ssd(inputs["image"], **variant)
        for i, variant in enumerate(args["variants"])
    }


def resize_shape(_args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    sizes = [
        set_transforms.shortest_edge_size((h, w), short, longest)
        for h, w, short, longest in inputs["query"].tolist()
    ]
    return {"shape": np.array(sizes)}


def lr_schedule(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    outputs = {}
    for name, row in args["schedules"].items():
        schedule = {
            "name": row["kind"],
            "power": _given(row, "power", 0.9),
            "min_rate": 0.0,
            "milestones": _given(row, "milestones", ()),
            "gamma": _given(row, "gamma", 0.1),
            "warmup_steps": _given(row, "warmup_iters", 0),
            "warmup_ratio": _given(row, "warmup_factor", 1.0),
        }
        iterations = inputs[f"{name}_iters"]
        base, steps = row["base_lr"], row["max_iters"]
        outputs[name] = schedules.rate(schedule, base, steps, iterations)
    return outputs


def _given(row: dict[str, Any], name: str, default: Any) -> Any:
    """The argument, unless it is absent or null."""
    return default if row.get(name) is None else row[name]


def _exact(_case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


RUNNERS = {
    "mask2former.lsj_augment": lsj_augment,
    "mask2former.color_augment": color_augment,
    "mask2former.resize_shape": resize_shape,
    "mask2former.lr_schedule": lr_schedule,
}
JUDGES = {("mask2former.lsj_augment", f"pan{i}"): _exact for i in range(32)}
