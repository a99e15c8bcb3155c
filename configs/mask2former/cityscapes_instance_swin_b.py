r"""Mask2Former, Swin-B, on Cityscapes instances: AP 42.0 (model zoo).

    segjax train --config=configs/mask2former/cityscapes_instance_swin_b.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/cityscapes_instance_swin_b.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("instance")
    config.model = dict(
        system="mask2former",
        backbone="swin_b",
        classes=8,
    )
    return universal.trained(config)
