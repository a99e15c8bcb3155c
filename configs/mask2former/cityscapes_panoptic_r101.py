r"""Mask2Former, R101, on Cityscapes panoptic: PQ/AP/mIoU 62.4/37.7/78.6 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_panoptic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_panoptic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("panoptic")
    config.model = dict(
        system="mask2former",
        backbone="resnet101",
        classes=19,
        backbone_norm="batch_norm",
    )
    return universal.trained(config)
