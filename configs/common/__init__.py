"""Parts that configs share: functions from a few numbers to plain values."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

# What RegProxy's and mmsegmentation's recipes exempt from weight decay, on segjax's parameter
# paths: position embedding and extra tokens, the ViT's layer norms, the hybrid stem's group norms.
# The batch norms of the proxy head and all other biases ARE decayed (methods: mmcv matches names
# with ".ln" and "norm"; the head calls its norms "bn").
VIT_NO_DECAY = (
    r"backbone/(pos_embed|cls_token|dist_token)$",
    r"backbone/(block_\d+/)?norm\d?/",
    r"backbone/stem/.*norm\d?/",
)


def vit_adamw(learning_rate: float = 6e-5) -> dict[str, Any]:
    """AdamW as mmsegmentation trains ViTs: decoupled weight decay 0.01, no clipping."""
    return dict(
        learning_rate=learning_rate,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=0.01,
        no_decay=VIT_NO_DECAY,
    )


# What detectron2's recipes of MaskFormer and Mask2Former exempt from weight decay: norms,
# embeddings, and Swin's position bias. Biases, and the pixel decoder's level embedding (a bare
# parameter), ARE decayed.
SET_NO_DECAY = (
    r"norm",
    r"predictor/(query_feat|query_embed|level_embed)$",
    r"relative_position_bias_table$",
)


def set_adamw(
    learning_rate: float = 1e-4, weight_decay: float = 0.05, backbone_rate: float = 0.1
) -> dict[str, Any]:
    """AdamW as MaskFormer and Mask2Former are trained: gradients clipped to a global norm of 0.01,
    the backbone at a rate of its own."""
    return dict(
        learning_rate=learning_rate,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=weight_decay,
        no_decay=SET_NO_DECAY,
        clip_norm=0.01,
        rates=((r"^backbone/", backbone_rate),),
    )


def poly(power: float = 1.0, warmup_steps: int = 1500) -> dict[str, Any]:
    return dict(
        name="poly", power=power, min_rate=0.0, warmup_steps=warmup_steps, warmup_ratio=1e-6
    )


def cosine_restart(periods: tuple[int, ...]) -> dict[str, Any]:
    """Restarts at half, then a quarter, of the peak."""
    return dict(
        name="cosine_restart",
        periods=periods,
        weights=(1.0, 0.5, 0.25),
        min_rate=0.0,
        warmup_steps=1500,
        warmup_ratio=1e-6,
    )


def ade20k(crop: int) -> ConfigDict:
    """ADE20K scene parsing, 150 classes, label 0 ignored: windows without overlap."""
    config = ConfigDict()
    config.data = dict(dataset=dict(name="ade20k"), batch=16)
    config.augment = dict(scale=(2048, crop), crop=(crop, crop))
    config.eval = dict(
        mode="slide", scale=(2048, crop), crop=(crop, crop), stride=(crop, crop), every=4000
    )
    config.checkpoint = dict(every=4000)
    config.steps = 160_000
    return config


def cityscapes(crop: int = 768, stride: int = 512) -> ConfigDict:
    """Cityscapes, 19 classes: windows of `crop` with `stride` on the full 1024 x 2048 image."""
    config = ConfigDict()
    config.data = dict(dataset=dict(name="cityscapes"), batch=16)
    config.augment = dict(scale=(2048, 1024), crop=(crop, crop))
    config.eval = dict(
        mode="slide", scale=(2048, 1024), crop=(crop, crop), stride=(stride, stride), every=2000
    )
    config.checkpoint = dict(every=2000)
    config.steps = 80_000
    return config


def segmenter(config: ConfigDict, learning_rate: float, epochs: int, images: int) -> ConfigDict:
    """Segmenter's recipe on top of a dataset: SGD, batches of 8, its own inference (windows
    overlap by 32 pixels, small images are enlarged)."""
    crop = config.augment.crop[0]
    config.data.batch = 8
    config.optimizer = dict(
        name="sgd", learning_rate=learning_rate, momentum=0.9, nesterov=True, weight_decay=0.0
    )
    config.schedule = dict(name="poly", power=0.9, min_rate=1e-5, warmup_steps=0)
    config.steps = epochs * -(-images // config.data.batch)
    config.eval.stride = (crop - 32, crop - 32)
    config.eval.enlarge = True
    return config


def setr(config: ConfigDict, learning_rate: float) -> ConfigDict:
    """mmsegmentation's SETR recipe on top of a dataset: SGD, heads (not MLA's neck) at ten times
    the rate, windows that overlap by a third and stay small at the border of a small image."""
    crop = config.augment.crop[0]
    config.optimizer = dict(
        name="sgd",
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=0.0,
        rates=((r"^(head|auxiliary_\d+)/", 10.0),),
    )
    config.schedule = dict(name="poly", power=0.9, min_rate=1e-4, warmup_steps=0)
    config.eval.stride = (crop * 2 // 3, crop * 2 // 3)
    config.eval.pad_windows = False
    return config


def linear_baseline(config: ConfigDict) -> ConfigDict:
    """RegProxy's config with a linear layer in place of the proxy head."""
    kept = {k: v for k, v in config.model.items() if k not in ("system", "early_block", "region")}
    config.model = dict(system="linear_vit", **kept)
    return config
