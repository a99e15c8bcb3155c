r"""Mask2Former, R101, on ADE20K: mIoU single/multi-scale 47.8/50.1 (model zoo).

    segjax train --config=configs/mask2former/ade20k_semantic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/ade20k_semantic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 512)
    config.model = dict(
        system="mask2former",
        backbone="resnet101",
        classes=150,
        backbone_norm="batch_norm",
    )
    return universal.trained(config)
