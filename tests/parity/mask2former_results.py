"""What becomes of a network's masks, and how it is counted; see `tests.parity.regproxy` for the
conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.metrics import confusion
from segjax.metrics import panoptic as quality
from segjax.ops import panoptic
from segjax.structs import IGNORE
from tests.parity.weights import Case

Arrays = Mapping[str, np.ndarray]


def postprocess(
    args: dict[str, Any], _tensors: Arrays, inputs: Arrays, clip: bool = True
) -> dict[str, np.ndarray]:
    network = inputs["mask_cls"], np.moveaxis(inputs["mask_pred"], 0, -1)
    extent = np.array(args["output_size"], np.int32)
    classes = inputs["mask_cls"].shape[1] - 1
    is_thing = np.isin(np.arange(classes), inputs["thing_ids"])
    axes = list(zip(network[1].shape, args["padded_size"], args["image_size"], args["output_size"]))
    direct = [panoptic.placement(*axis, bucket=axis[-1]) for axis in axes]
    outputs = {}
    if args["semantic"]:
        view = panoptic.View(*network, *direct)
        if not args["resize_before_inference"]:
            first = [panoptic.placement(grid, size, size, size, size) for grid, size, _, _ in axes]
            then = [panoptic.placement(size, size, a, b, b) for _, size, a, b in axes]
            view = panoptic.View(*network, *first, *then)
        scores = jax.jit(panoptic.semantic_scores_of_views)([view], extent)
        outputs["sem_seg"] = np.moveaxis(np.asarray(scores), -1, 0)
        outputs["sem_seg_argmax"] = jax.jit(panoptic.semantic_views)([view], extent)
    if args["panoptic"]:
        found = jax.jit(panoptic.panoptic, static_argnames="clip")(
            *network,
            *direct,
            extent,
            is_thing,
            args["object_mask_threshold"],
            args["overlap_threshold"],
            clip=clip,
        )
        outputs["panoptic_seg"] = found.segment_map
        label = np.asarray(found.segment_class)
        label = label[label >= 0]
        outputs["segments"] = np.stack(
            [np.arange(len(label)) + 1, label, is_thing[label]], axis=-1
        ).astype(np.int64)
    if args.get("instance"):
        thing = is_thing if args["panoptic"] else None
        found = jax.jit(panoptic.instances, static_argnames="topk")(
            *network, *direct, extent, topk=args["topk"], thing=thing
        )
        found = jax.tree.map(np.asarray, found)
        kept = found.classes >= 0
        bits = np.unpackbits(found.masks[found.queries[kept]], axis=-1, count=int(extent[1]))
        outputs["inst_scores"] = found.scores[kept]
        outputs["inst_classes"] = found.classes[kept]
        outputs["inst_areas"] = found.areas[kept]
        outputs["inst_masks"] = bits
    return {name: np.asarray(output) for name, output in outputs.items()}


def maskformer_postprocess(
    args: dict[str, Any], tensors: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    return postprocess(args, tensors, inputs, clip=False)


def panoptic_quality(
    args: dict[str, Any], _tensors: Arrays, inputs: Arrays
) -> dict[str, np.ndarray]:
    categories, is_thing = inputs["categories"].T
    number = {int(category): k for k, category in enumerate(categories)}
    counts = quality.Counts.zeros(len(categories))
    image = 0
    while f"gt{image}_map" in inputs:
        maps, tables = [], []
        for side in ("gt", "pred"):
            table = inputs[f"{side}{image}_segments"].reshape(-1, 4 if side == "gt" else 2)
            maps.append(_index(inputs[f"{side}{image}_map"], table[:, 0], args["void_id"]))
            tables.append(table)
        true, found = tables
        shared = quality.intersections(
            jnp.asarray(maps[0]), jnp.asarray(maps[1] + 1), len(true), len(found)
        )
        counts += quality.from_image(
            np.asarray(shared),
            np.array([number[int(k)] for k in true[:, 1]], int),
            true[:, 3] == 1,
            np.array([number[int(k)] for k in found[:, 1]], int),
            len(categories),
            true_area=true[:, 2],
            threshold=args["iou_threshold"],
        )
        image += 1
    outputs = {}
    chosen = {"all": None, "things": is_thing == 1, "stuff": is_thing == 0}
    for name, flags in chosen.items():
        mean, count = quality.mean_quality(counts, flags)
        outputs[name] = np.array([*mean, count])
    outputs["per_class"] = np.column_stack([categories, quality.quality(counts)])
    outputs["counts"] = np.column_stack(
        [categories, counts.iou, counts.matched, counts.false, counts.missed]
    )
    return outputs


def _index(ids: np.ndarray, known: np.ndarray, void: int) -> np.ndarray:
    """Position in `known` of each id, -1 for `void`."""
    index = np.full(ids.shape, -1, np.int32)
    for row, number in enumerate(known):
        index[ids == number] = row
    assert ((index >= 0) | (ids == void)).all()
    return index


def miou(args: dict[str, Any], _tensors: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    """The means of detectron2, from the same areas: over classes with ground truth."""
    classes = args["num_classes"]
    areas = np.zeros((3, classes), np.int64)
    image = 0
    while f"gt{image}" in inputs:
        truth = inputs[f"gt{image}"].astype(np.int32)
        truth = np.where(truth == int(inputs["ignore_label"]), IGNORE, truth)
        predicted = inputs[f"pred{image}"].astype(np.int32)
        areas += np.asarray(
            confusion.image_areas(jnp.asarray(predicted)[None], jnp.asarray(truth)[None], classes)
        )[0]
        image += 1
    labelled = areas[confusion.LABELLED]
    present = labelled > 0
    iou, accuracy = confusion.iou(areas), confusion.accuracy(areas)
    return {
        "mIoU": 100 * iou[present].mean(),
        "fwIoU": 100 * (iou[present] * labelled[present]).sum() / labelled.sum(),
        "mACC": 100 * accuracy[present].mean(),
        "pACC": np.array(100 * confusion.pixel_accuracy(areas)),
        "IoU": np.where(present, 100 * iou, -1.0),
    }


# --------------------------------------------------------------------------------------------------
# Judges


def near(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    """0 where 99.9 % of the elements are equal: boundaries tie."""
    return 0.0 if (ours != theirs).sum() <= 0.001 * theirs.size else np.inf


def equal(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


def areas(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    """0 where the relative error is at most 1e-3."""
    error = np.linalg.norm(np.subtract(ours, theirs, dtype=float))
    return 0.0 if error <= 1e-3 * np.linalg.norm(theirs) else np.inf


RUNNERS = {
    "mask2former.postprocess": postprocess,
    "maskformer.postprocess": maskformer_postprocess,
    "mask2former.panoptic_quality": panoptic_quality,
    "mask2former.miou": miou,
}

_POSTPROCESS: dict[str, Callable[[Case, np.ndarray, np.ndarray], float]] = {
    "sem_seg_argmax": near,
    "panoptic_seg": near,
    "inst_masks": near,
    "segments": equal,
    "inst_classes": equal,
    "inst_areas": areas,
}

JUDGES = {
    (f"{method}.postprocess", output): judge
    for method in ("mask2former", "maskformer")
    for output, judge in _POSTPROCESS.items()
}
