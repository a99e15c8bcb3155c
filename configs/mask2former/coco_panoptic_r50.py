r"""Mask2Former, R50, on COCO panoptic: PQ/AP/mIoU 51.9/41.7/61.7 (model zoo).

    segjax train --config=configs/mask2former/coco_panoptic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_panoptic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 368750)
    config.model = dict(
        system="mask2former",
        backbone="resnet50",
        classes=133,
    )
    return universal.trained(config, milestones=(327778, 355092))
