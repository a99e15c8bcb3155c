r"""Mask2Former, Swin-B (ImageNet-22k), on COCO panoptic: PQ/AP/mIoU 56.4/46.3/67.1 (model zoo).

    segjax train --config=configs/mask2former/coco_panoptic_swin_b_in22k.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_panoptic_swin_b_in22k.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 368750)
    config.model = dict(
        system="mask2former",
        backbone="swin_b",
        classes=133,
    )
    return universal.trained(config, milestones=(327778, 355092))
