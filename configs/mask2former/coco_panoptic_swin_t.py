r"""Mask2Former, Swin-T, on COCO panoptic: PQ/AP/mIoU 53.2/43.3/63.2 (model zoo).

    segjax train --config=configs/mask2former/coco_panoptic_swin_t.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_panoptic_swin_t.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("panoptic", 368750)
    config.model = dict(
        system="mask2former",
        backbone="swin_t",
        classes=133,
    )
    return universal.trained(config, milestones=(327778, 355092))
