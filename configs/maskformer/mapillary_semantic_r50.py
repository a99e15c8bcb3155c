r"""MaskFormer, R50, on Mapillary Vistas: mIoU single/multi-scale 53.1/55.4 (model zoo).

    segjax train --config=configs/maskformer/mapillary_semantic_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/mapillary_semantic_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.mapillary("semantic", 1280)
    config.model = dict(
        system="maskformer",
        backbone="resnet50",
        classes=65,
    )
    return universal.trained(config, weight_decay=0.0001)
