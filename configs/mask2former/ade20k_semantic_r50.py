r"""Mask2Former, R50, on ADE20K: mIoU single/multi-scale 47.2/49.2 (model zoo).

    segjax train --config=configs/mask2former/ade20k_semantic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/ade20k_semantic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 512)
    config.model = dict(
        system="mask2former",
        backbone="resnet50",
        classes=150,
    )
    return universal.trained(config)
