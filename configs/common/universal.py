"""What the recipes of MaskFormer and Mask2Former share, by dataset and task."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import common

COCO_SHORTS = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def _shorts(base: int) -> tuple[int, ...]:
    """Half to twice the short side in steps of a tenth, as detectron2's configs list them."""
    return tuple(int(x * 0.1 * base) for x in range(5, 21))


def _task(config: ConfigDict, task: str, measured: tuple[str, ...]) -> ConfigDict:
    config.augment.segments = "classes" if task == "semantic" else task
    config.eval.tasks = measured
    config.eval.metric = {"semantic": "mIoU", "panoptic": "PQ", "instance": "AP"}[task]
    config.eval.resize_masks_first = task != "semantic"
    return config


def coco(task: str, steps: int, recipe: str = "large_scale_jitter") -> ConfigDict:
    """COCO, "panoptic" or "instance"; whole images of short side 800."""
    config = ConfigDict()
    dataset = dict(name=f"coco_{task}")
    if task == "instance":
        dataset["skip_empty"] = True
    config.data = dict(dataset=dataset, batch=16)
    config.augment = dict(recipe=recipe, crop=(1024, 1024), photometric=False, max_segments=100)
    if task == "instance":
        config.augment.layers = 4
    if recipe == "detr":
        config.augment.update(shorts=COCO_SHORTS, longest=1333, crop=(1333, 1333))
    config.eval = dict(mode="whole", scale=(1333, 800), every=5000)
    config.checkpoint = dict(every=5000)
    config.steps = steps
    measured = ("panoptic", "instance", "semantic") if task == "panoptic" else ("instance",)
    return _task(config, task, measured)


def cropped(
    dataset: dict[str, Any],
    task: str,
    short: int,
    crop: tuple[int, int],
    steps: int,
    longest: int,
    base: int = 0,
) -> ConfigDict:
    """Crops of images whose short side is drawn from half to twice `base`: ADE20K, Cityscapes and
    Mapillary Vistas."""
    config = ConfigDict()
    config.data = dict(dataset=dataset, batch=16)
    base = base or short
    config.augment = dict(
        recipe="shortest_edge",
        shorts=_shorts(base),
        longest=4 * base,
        crop=crop,
        photometric=True,
        cat_max_ratio=1.0,
        max_segments=100,
    )
    config.eval = dict(mode="whole", scale=(longest, short), every=5000)
    config.checkpoint = dict(every=5000)
    config.steps = steps
    measured = {
        "semantic": ("semantic",),
        "panoptic": ("panoptic", "instance", "semantic"),
        "instance": ("instance",),
    }
    return _task(config, task, measured[task])


def ade20k(task: str, side: int, steps: int = 160_000) -> ConfigDict:
    """ADE20K at crops of `side`, the short side of evaluation."""
    name = "ade20k" if task == "semantic" else f"ade20k_{task}"
    return cropped(dict(name=name), task, side, (side, side), steps, 4 * side)


def cityscapes(task: str, steps: int = 90_000) -> ConfigDict:
    name = "cityscapes" if task == "semantic" else f"cityscapes_{task}"
    return cropped(dict(name=name), task, 1024, (512, 1024), steps, 2048)


def mapillary(task: str, side: int = 1024, steps: int = 300_000) -> ConfigDict:
    """Mapillary Vistas 1.2, short side 2048; its panoptic models keep every query."""
    dataset = dict(name="mapillary_vistas", panoptic=task == "panoptic")
    config = cropped(dataset, task, 2048, (side, side), steps, 2048)
    config.eval.object_threshold = 0.0 if task == "panoptic" else 0.8
    return config


def trained(
    config: ConfigDict,
    weight_decay: float = 0.05,
    learning_rate: float = 1e-4,
    backbone_rate: float = 0.1,
    milestones: tuple[int, ...] = (),
    warmup_steps: int = 0,
) -> ConfigDict:
    """The optimizer, with steps at `milestones` or else the poly schedule."""
    config.optimizer = common.set_adamw(learning_rate, weight_decay, backbone_rate)
    config.schedule = (
        dict(name="multistep", milestones=milestones, gamma=0.1)
        if milestones
        else dict(name="poly", power=0.9)
    )
    config.schedule.update(warmup_steps=warmup_steps, warmup_ratio=1e-6)
    return config
