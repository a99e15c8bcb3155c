r"""Mask2Former, R50, on Mapillary Vistas: mIoU single/multi-scale 57.4/59.0 (model zoo).

    segjax train --config=configs/mask2former/mapillary_semantic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/mapillary_semantic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.mapillary("semantic")
    config.model = dict(
        system="mask2former",
        backbone="resnet50",
        classes=65,
    )
    return universal.trained(config)
