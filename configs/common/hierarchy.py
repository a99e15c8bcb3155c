"""What the recipes of HSSN share: which losses a class tree brings, as paper and code have them."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.common import convolutional


def paper(tree: str, ramp: int) -> dict[str, Any]:
    """The paper's loss (Eq. 8): focal tree-min, and triplets whose factor grows to 0.5 over `ramp`
    steps, drawn at random with the margin of the tree."""
    return dict(
        tree=tree,
        tree_loss="ftm",
        gamma=2.0,
        triplet_weight=0.5,
        triplet_ramp=ramp,
        triplet_sampling="random",
        margin=0.0,
        scores="sigmoid",
    )


def published_two_levels(tree: str, ramp: int) -> dict[str, Any]:
    """The released code on Cityscapes: five times the tree-min loss, not its focal form, a cross
    entropy per level, and unlabelled pixels that train as class 0."""
    return dict(
        tree=tree,
        tree_loss="tm",
        tree_weight=5.0,
        ce_weight=1.0,
        triplet_weight=0.5,
        triplet_ramp=ramp,
        void="as_published",
    )


def published_three_levels(tree: str, ramp: int) -> dict[str, Any]:
    """The released code on people: half the focal tree-min loss, half the region mutual
    information, a cross entropy per level; the background is in no triplet."""
    return dict(
        tree=tree,
        tree_loss="ftm",
        gamma=2.0,
        tree_weight=0.5,
        ce_weight=1.0,
        rmi_weight=0.5,
        triplet_weight=0.5,
        triplet_ramp=ramp,
        skip_background=True,
        void="as_published",
    )


def people(dataset: str, classes: int, steps: int) -> ConfigDict:
    """DeepLabV3+, R101, on Person-Part or LIP as the released code trains it: crops of 480 x 480,
    16 images."""
    config = ConfigDict()
    config.data = dict(dataset=dict(name=dataset), batch=16)
    config.augment = dict(scale=(1920, 480), crop=(480, 480))
    config.model = dict(system="deeplab_v3plus", backbone="resnet101_v1d", classes=classes)
    config.hierarchy = published_three_levels("dataset", ramp=steps)
    config.optimizer = convolutional.hssn_sgd(0.007)
    config.schedule = convolutional.poly(min_rate=5e-5)
    config.steps = steps
    config.eval = dict(mode="whole", scale=(1920, 480), every=4000)
    config.checkpoint = dict(every=4000)
    return config


def mapillary() -> ConfigDict:
    """DeepLabV3+, R101, on Mapillary Vistas 2.0. The paper's recipe is not public; the stand-in is
    that of later code of its authors: 240k steps of 8 images (github.com/lingorX/LogicSeg)."""
    config = convolutional.cityscapes()
    config.data.dataset = dict(name="mapillary_vistas", version="2.0")
    config.augment.scale = (2048, 1024)
    config.model = dict(system="deeplab_v3plus", backbone="resnet101_v1d", classes=124)
    config.optimizer = convolutional.hssn_sgd()
    config.schedule = convolutional.poly()
    config.steps = 240_000
    return config
