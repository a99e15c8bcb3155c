r"""Mask2Former, Swin-L, on COCO panoptic: PQ/AP/mIoU 57.8/48.6/67.4 (model zoo).

    segjax train --config=configs/mask2former/coco_panoptic_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_panoptic_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 737500)
    config.model = dict(
        system="mask2former",
        backbone="swin_l",
        classes=133,
        queries=200,
    )
    return universal.trained(config, milestones=(655556, 710184))
