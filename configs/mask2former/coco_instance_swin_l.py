r"""Mask2Former, Swin-L, on COCO instances: AP 50.1 (model zoo).

    segjax train --config=configs/mask2former/coco_instance_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/coco_instance_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.coco("instance", 737500)
    config.model = dict(
        system="mask2former",
        backbone="swin_l",
        classes=80,
        queries=200,
    )
    return universal.trained(config, milestones=(655556, 710184))
