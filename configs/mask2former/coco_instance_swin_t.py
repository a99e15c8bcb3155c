r"""Mask2Former, Swin-T, on COCO instances: AP 45.0 (model zoo).

    segjax train --config=configs/mask2former/coco_instance_swin_t.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_instance_swin_t.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("instance", 368750)
    config.model = dict(
        system="mask2former",
        backbone="swin_t",
        classes=80,
    )
    return universal.trained(config, milestones=(327778, 355092))
