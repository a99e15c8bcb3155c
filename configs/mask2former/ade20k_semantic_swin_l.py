r"""Mask2Former, Swin-L, on ADE20K: mIoU single/multi-scale 56.1/57.3 (model zoo).

    segjax train --config=configs/mask2former/ade20k_semantic_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/ade20k_semantic_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 640)
    config.model = dict(
        system="mask2former",
        backbone="swin_l",
        classes=150,
    )
    return universal.trained(config)
