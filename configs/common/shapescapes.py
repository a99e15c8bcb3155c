"""What every small training on shapescapes shares, so that systems are compared on one budget."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

BACKBONE = dict(width=128, depth=4, heads=4, patch=16)

SWIN = dict(width=32, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4)


def tiny() -> ConfigDict:
    """128 x 128 scenes, a few minutes on two CPU cores, from scratch."""
    config = ConfigDict()
    config.data = dict(
        dataset=dict(name="shapescapes", size=(128, 128), train=2000, validation=100),
        batch=16,
        workers=0,
    )
    config.augment = dict(
        scale=(128, 128), ratio=(1.0, 1.5), crop=(128, 128), flip=0.5, photometric=False
    )
    # From scratch, not from a pretrained file: a high rate needs the clipping.
    config.optimizer = common.vit_adamw(learning_rate=3e-3) | dict(clip_norm=1.0)
    config.schedule = common.poly(warmup_steps=50)
    config.steps = 600
    config.eval = dict(
        mode="whole", scale=(128, 128), crop=(128, 128), stride=(128, 128), every=300
    )
    config.checkpoint = dict(every=300)
    config.log = dict(every=25)
    return config


def tiny_panoptic() -> ConfigDict:
    """The same scenes and budget for systems that answer with masks."""
    config = tiny()
    config.data.batch = 8
    config.steps = 500
    config.augment.segments = "panoptic"
    config.augment.max_segments = 30
    config.augment.keep_empty = "no"
    config.optimizer = common.set_adamw(1e-3, 0.05, 1.0) | dict(clip_norm=1.0)
    config.eval.every = config.checkpoint.every = 250
    config.eval.tasks = ("panoptic", "semantic")
    config.eval.metric = "PQ"
    # Trained for minutes, no query is ever as sure as 0.8.
    config.eval.object_threshold = 0.4
    return config
