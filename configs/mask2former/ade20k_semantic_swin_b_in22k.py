r"""Mask2Former, Swin-B (ImageNet-22k), on ADE20K: mIoU single/multi-scale 53.9/55.1 (model zoo).

    segjax train --config=configs/mask2former/ade20k_semantic_swin_b_in22k.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --checkpoint=OFFICIAL.pkl --workdir=W \
        --config=configs/mask2former/ade20k_semantic_swin_b_in22k.py
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 640)
    config.model = dict(
        system="mask2former",
        backbone="swin_b",
        classes=150,
    )
    return universal.trained(config)
