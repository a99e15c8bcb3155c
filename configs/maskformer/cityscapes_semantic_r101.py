r"""MaskFormer, R101, on Cityscapes: mIoU single/multi-scale 78.5/80.3 (model zoo).

    segjax train --config=configs/maskformer/cityscapes_semantic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/cityscapes_semantic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("semantic")
    config.model = dict(
        system="maskformer",
        backbone="resnet101",
        classes=19,
    )
    return universal.trained(config, weight_decay=0.0001)
