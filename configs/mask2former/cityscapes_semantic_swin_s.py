r"""Mask2Former, Swin-S, on Cityscapes: mIoU single/multi-scale 82.6/83.6 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_semantic_swin_s.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_semantic_swin_s.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("semantic")
    config.model = dict(
        system="mask2former",
        backbone="swin_s",
        classes=19,
    )
    return universal.trained(config)
