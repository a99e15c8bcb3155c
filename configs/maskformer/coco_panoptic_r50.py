r"""MaskFormer, R50, on COCO panoptic: PQ 46.5 (model zoo).

    segjax train --config=configs/maskformer/coco_panoptic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/coco_panoptic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 554_400, "detr")
    config.data.batch = 64
    config.model = dict(
        system="maskformer",
        backbone="resnet50",
        classes=133,
        divisible=0,
        encoder_layers=6,
    )
    return universal.trained(config, weight_decay=0.0001, milestones=(369600,))
