r"""Mask2Former, R50, on ADE20K instances: AP 26.4 (model zoo).

    segjax train --config=configs/mask2former/ade20k_instance_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/ade20k_instance_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("instance", 640)
    config.model = dict(
        system="mask2former",
        backbone="resnet50",
        classes=100,
    )
    return universal.trained(config)
