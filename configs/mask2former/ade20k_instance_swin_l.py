r"""Mask2Former, Swin-L, on ADE20K instances: AP 34.9 (model zoo).

    segjax train --config=configs/mask2former/ade20k_instance_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/ade20k_instance_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("instance", 640)
    config.model = dict(
        system="mask2former",
        backbone="swin_l",
        classes=100,
        queries=200,
    )
    return universal.trained(config)
