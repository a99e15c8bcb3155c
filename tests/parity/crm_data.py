"""Rows of CRM's masks, kernels and metrics; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from segjax.data import perturb
from segjax.metrics import boundary
from segjax.ops import morphology
from tests.parity.weights import Case

Arrays = Mapping[str, np.ndarray]

DRAWS = 2000
"""Of the statistics, which then carry little noise of our own."""


def metrics(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, Any]:
    assert args["threshold"] == boundary.THRESHOLD
    scores = boundary.Scores()
    both, either, accuracies, outputs = [], [], [], {}
    count = sum(name.startswith("gt") for name in inputs)
    for k in range(count):
        masks = [inputs[f"{name}{k}"] for name in ("gt", "seg", "mask")]
        scores.update(*masks)
        truth, *compared = (boundary.foreground(mask) for mask in masks)
        compared = np.stack(compared)
        pixels, right = boundary.counts(truth, compared)
        accuracies.append(boundary.accuracy(truth, compared))
        both.append((compared & truth).sum((1, 2)))
        either.append((compared | truth).sum((1, 2)))
        outputs |= {
            f"radii{k}": np.array(boundary.radii(truth.shape)),
            f"band_pixels{k}": pixels,
            f"acc_mask_per_radius{k}": right[1] / pixels,
            f"mba_seg{k}": accuracies[k][0],
            f"mba_mask{k}": accuracies[k][1],
            f"iou_mask{k}": both[k][1] / either[k][1],
        }
    old_iou, new_iou = np.sum(both, axis=0) / np.sum(either, axis=0)
    old_mba, new_mba = np.mean(accuracies, axis=0)
    whole = {"new_iou": new_iou, "old_iou": old_iou, "new_mba": new_mba, "old_mba": old_mba}
    # The accumulator rounds to what is printed, so it is compared here.
    ours = scores.result()
    names = {"new_iou": "iou", "old_iou": "coarse_iou", "new_mba": "mba", "old_mba": "coarse_mba"}
    assert all(ours[names[name]] == np.round(100 * value, 2) for name, value in whole.items())
    return outputs | whole


def metrics_multiclass(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, Any]:
    predictions = np.stack([inputs["seg"], inputs["mask"]])
    seg, mask = boundary.accuracy(inputs["gt"], predictions, args["void"])
    return {"mba_seg": seg, "mba_mask": mask}


def structuring_elements(
    args: dict[str, Any], _tensors: Arrays, _inputs: Arrays
) -> dict[str, np.ndarray]:
    sides = range(1, args["max_size"] + 1)
    ellipses = {f"ellipse_w{w}_h{h}": morphology.ellipse(w, h) for w in sides for h in sides}
    disks = {f"disk_r{r}": morphology.disk(r) for r in range(1, args["max_radius"] + 1)}
    return ellipses | disks


def perturb_exact(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, Any]:
    outputs = {}
    for k in range(sum(name.startswith("gt") for name in inputs)):
        draws = perturb.PublishedDraws(int(inputs[f"seed{k}"]))
        coarse = perturb.coarse_polygon(inputs[f"gt{k}"], draws)
        target = float(inputs[f"iou_target{k}"])
        outputs[f"coarse{k}"] = coarse
        outputs[f"seg{k}"] = perturb.distort(coarse, target, draws, args["shape_choice"])
    return outputs


def perturb_statistics(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, Any]:
    mask = inputs["gt"]
    truth = mask > 0
    rng = np.random.default_rng(0)
    cv2.setNumThreads(0)
    ious, coarse_ious, results = [], [], []
    for _ in range(DRAWS):
        draws = perturb.GeneratorDraws(rng)
        coarse = perturb.coarse_polygon(mask, draws)
        target = rng.uniform(*args["iou_target"])
        result = perturb.distort(coarse, target, draws, args["shape_choice"]) > 0
        ious.append(_iou(result, truth))
        coarse_ious.append(_iou(coarse > 0, truth))
        results.append(result)
    found = {
        "iou": np.array(ious),
        "coarse_iou": np.array(coarse_ious),
        "mba": boundary.accuracy(truth, np.stack(results)),
    }
    outputs = {"area_ratio_mean": np.mean(results) / truth.mean()}
    for name, values in found.items():
        outputs[f"{name}_mean"] = values.mean()
        outputs[f"{name}_quantiles"] = np.percentile(values, args["quantiles"])
    return outputs


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def _exact(_case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


RUNNERS = {
    "crm.metrics": metrics,
    "crm.metrics_multiclass": metrics_multiclass,
    "crm.structuring_elements": structuring_elements,
    "crm.perturb.exact": perturb_exact,
    "crm.perturb.statistics": perturb_statistics,
}
JUDGES = {
    **{
        ("crm.metrics", f"{name}{k}"): _exact
        for name in ("radii", "band_pixels")
        for k in range(64)
    },
    **{
        ("crm.perturb.exact", f"{name}{k}"): _exact for name in ("coarse", "seg") for k in range(64)
    },
    **{
        ("crm.structuring_elements", f"ellipse_w{w}_h{h}"): _exact
        for w in range(1, 33)
        for h in range(1, 33)
    },
    **{("crm.structuring_elements", f"disk_r{r}"): _exact for r in range(1, 129)},
}
