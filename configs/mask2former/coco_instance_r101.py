r"""Mask2Former, R101, on COCO instances: AP 44.2 (model zoo).

    segjax train --config=configs/mask2former/coco_instance_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_instance_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("instance", 368750)
    config.model = dict(
        system="mask2former",
        backbone="resnet101",
        classes=80,
    )
    return universal.trained(config, milestones=(327778, 355092))
