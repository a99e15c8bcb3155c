r"""Mask2Former, R50, on Cityscapes panoptic: PQ/AP/mIoU 62.1/37.3/77.5 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_panoptic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_panoptic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("panoptic")
    config.model = dict(
        system="mask2former",
        backbone="resnet50",
        classes=19,
        backbone_norm="batch_norm",
    )
    return universal.trained(config)
