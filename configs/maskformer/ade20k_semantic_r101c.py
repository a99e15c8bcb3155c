r"""MaskFormer, R101c, on ADE20K: mIoU single/multi-scale 46.0/48.1 (model zoo).

    segjax train --config=configs/maskformer/ade20k_semantic_r101c.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/ade20k_semantic_r101c.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 512)
    config.model = dict(
        system="maskformer",
        backbone="resnet101c",
        classes=150,
    )
    return universal.trained(config, weight_decay=0.0001)
