r"""Mask2Former, R50, on ADE20K panoptic: PQ/AP/mIoU 39.7/26.5/46.1 (model zoo).

    segjax train --config=configs/mask2former/ade20k_panoptic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/ade20k_panoptic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("panoptic", 640)
    config.model = dict(
        system="mask2former",
        backbone="resnet50",
        classes=150,
    )
    return universal.trained(config)
