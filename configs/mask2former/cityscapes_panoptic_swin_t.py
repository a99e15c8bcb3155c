r"""Mask2Former, Swin-T, on Cityscapes panoptic: PQ/AP/mIoU 63.9/39.1/80.5 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_panoptic_swin_t.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_panoptic_swin_t.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("panoptic")
    config.model = dict(
        system="mask2former",
        backbone="swin_t",
        classes=19,
    )
    return universal.trained(config)
