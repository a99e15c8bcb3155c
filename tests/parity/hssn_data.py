"""Rows of HSSN's data and metrics; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.data import hierarchies, transforms
from segjax.metrics import confusion, levels
from segjax.structs import IGNORE

Arrays = Mapping[str, np.ndarray]

TREES = {
    "cityscapes": "cityscapes",
    "person_part": "person_part",
    "lip": "lip",
    "mapillary": "mapillary_vistas_v2",
}
"""Names of the rows, and of segjax."""


def swap_flip(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    image, labels = inputs["image"], inputs["labels"]
    if args["flip"]:
        image, labels = transforms.mirror(image, labels, args["pairs"])
    return {"image": image, "labels": labels}


def metric(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, Any]:
    hierarchy = hierarchies.load(TREES[args["tree"]])
    assert hierarchy.sizes == tuple(args.get("level_sizes", hierarchy.sizes))
    truth = inputs["truth"].astype(np.int16)
    truth[inputs["truth"] == args.get("ignore", 255)] = IGNORE
    pairs = confusion.image_pairs(
        jnp.asarray(inputs["pred"]), jnp.asarray(truth), hierarchy.sizes[0]
    )
    outputs = {}
    summed = np.asarray(pairs).astype(np.int64).sum(0)
    for number, areas in enumerate(levels.areas(summed, hierarchy.ancestors), start=1):
        iou = confusion.iou(areas)
        outputs |= {
            f"level{number}_iou": np.nan_to_num(iou, nan=-1.0),
            f"level{number}_acc": np.nan_to_num(confusion.accuracy(areas), nan=-1.0),
            f"level{number}_aacc": confusion.pixel_accuracy(areas),
            f"level{number}_miou": confusion.percent_mean(iou),
        }
    return outputs


RUNNERS = {"hssn.swap_flip": swap_flip, "hssn.metric": metric}
