r"""MaskFormer, Swin-S, on COCO panoptic: PQ 49.7 (model zoo).

    segjax train --config=configs/maskformer/coco_panoptic_swin_s.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/coco_panoptic_swin_s.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 554_400, "detr")
    config.data.batch = 64
    config.model = dict(
        system="maskformer",
        backbone="swin_s",
        classes=133,
        divisible=0,
    )
    return universal.trained(
        config,
        weight_decay=0.01,
        learning_rate=6e-05,
        backbone_rate=1.0,
        warmup_steps=1500,
        milestones=(369600,),
    )
