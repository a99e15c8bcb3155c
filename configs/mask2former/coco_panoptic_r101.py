r"""Mask2Former, R101, on COCO panoptic: PQ/AP/mIoU 52.6/42.6/62.4 (model zoo).

    segjax train --config=configs/mask2former/coco_panoptic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_panoptic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 368750)
    config.model = dict(
        system="mask2former",
        backbone="resnet101",
        classes=133,
    )
    return universal.trained(config, milestones=(327778, 355092))
