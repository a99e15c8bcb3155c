r"""MaskFormer, R50, on ADE20K, per-pixel baseline: mIoU 39.2/40.9 (model zoo).

    segjax train --config=configs/maskformer/ade20k_per_pixel_r50.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/ade20k_per_pixel_r50.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 512)
    config.model = dict(
        system="maskformer",
        backbone="resnet50",
        classes=150,
        predictor="per_pixel",
    )
    return universal.trained(config, weight_decay=0.0001)
