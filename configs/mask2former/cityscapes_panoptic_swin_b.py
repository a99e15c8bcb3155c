r"""Mask2Former, Swin-B, on Cityscapes panoptic: PQ/AP/mIoU 66.1/42.8/82.7 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_panoptic_swin_b.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_panoptic_swin_b.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("panoptic")
    config.model = dict(
        system="mask2former",
        backbone="swin_b",
        classes=19,
    )
    return universal.trained(config)
