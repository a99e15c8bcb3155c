r"""MaskFormer, R101, on COCO panoptic: PQ 47.6 (model zoo).

    segjax train --config=configs/maskformer/coco_panoptic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/coco_panoptic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 554_400, "detr")
    config.data.batch = 64
    config.model = dict(
        system="maskformer",
        backbone="resnet101",
        classes=133,
        divisible=0,
        encoder_layers=6,
    )
    return universal.trained(config, weight_decay=0.0001, milestones=(369600,))
