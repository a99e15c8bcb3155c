"""What the recipes of convolutional networks on Cityscapes share: crops of 512 x 1024, whole images
in evaluation, SGD."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import common


def cityscapes() -> ConfigDict:
    """80k steps of 8 images; evaluation at 1024 x 2048 in one piece."""
    config = common.cityscapes()
    config.data.batch = 8
    config.augment.crop = (512, 1024)
    config.eval.mode = "whole"
    return config


def sgd(learning_rate: float = 0.01, weight_decay: float = 5e-4) -> dict[str, Any]:
    """mmsegmentation's SGD; decay is on all parameters, norms and biases too."""
    return dict(name="sgd", learning_rate=learning_rate, momentum=0.9, weight_decay=weight_decay)


def poly(min_rate: float = 1e-4) -> dict[str, Any]:
    """mmsegmentation's schedule of SGD: without warm-up, to a floor."""
    return dict(name="poly", power=0.9, min_rate=min_rate, warmup_steps=0)


# HSSN's code trains the stages of a ResNet at rates of their own, heads at the full one.
HSSN_RESNET_RATES = (
    (r"^backbone/(stem|res2)_", 0.1),
    (r"^backbone/res[34]_", 0.15),
    (r"^backbone/res5_", 0.2),
)


def hssn_sgd(learning_rate: float = 0.01) -> dict[str, Any]:
    """SGD as HSSN's code trains DeepLabV3+."""
    return sgd(learning_rate, weight_decay=5e-5) | dict(rates=HSSN_RESNET_RATES)
