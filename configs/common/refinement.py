"""What CRM and CascadePSP share: data, augmentation, optimizer and length of their training, and
how they are judged (github.com/dvlab-research/Entity, High-Quality-Segmention, and
github.com/hkchengrex/CascadePSP)."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common


def official() -> ConfigDict:
    """45,705 steps of 12 crops of 224 x 224 from five datasets of single objects; judged on BIG.

    15 epochs of 3047 steps, the number of the published file. The learning rate falls by ten after
    22,500 and 37,500 steps. All parameters are decayed, norms and biases too, as part of the
    gradient.
    """
    config = ConfigDict()
    config.data = dict(dataset=dict(name="refinement_training"), eval_split="test", batch=12)
    config.augment = dict(recipe="refine", crop=(224, 224), flip=0.5)
    config.optimizer = dict(
        name="adam",
        learning_rate=2.25e-4,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=1e-4,
    )
    config.schedule = dict(name="multistep", milestones=(22_500, 37_500), gamma=0.1, warmup_steps=0)
    config.steps = 45_705
    config.eval = dict(every=45_705, metric="mBA")
    config.checkpoint = dict(every=5000)
    return config


def shapescapes_tiny() -> ConfigDict:
    """Objects of generated scenes, learned from windows of 128 x 128 and refined at 1024 x 1024."""
    config = official()
    config.data = dict(
        dataset=dict(name="shapescapes_masks", size=(128, 128), validation_size=(1024, 1024)),
        eval_split="validation",
        batch=8,
        workers=0,
    )
    config.augment.crop = (128, 128)
    config.augment.iou_target = (0.7, 1.0)  # what is to be refined here is coarser than usual
    config.optimizer.learning_rate = 2e-3
    config.schedule = common.poly(warmup_steps=50)
    config.steps = 1200
    config.eval.every = 1200
    config.checkpoint = dict(every=300)
    config.log = dict(every=25)
    return config
