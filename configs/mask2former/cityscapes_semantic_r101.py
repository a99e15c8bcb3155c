r"""Mask2Former, R101, on Cityscapes: mIoU single/multi-scale 80.1/81.9 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_semantic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_semantic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("semantic")
    config.model = dict(
        system="mask2former",
        backbone="resnet101",
        classes=19,
        backbone_norm="batch_norm",
    )
    return universal.trained(config)
