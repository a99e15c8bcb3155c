r"""MaskFormer, R101, on ADE20K panoptic: PQ 35.7 (model zoo).

    segjax train --config=configs/maskformer/ade20k_panoptic_r101.py --workdir=W \
        --config.init.layout=resnet_detectron2 --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/ade20k_panoptic_r101.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("panoptic", 640, 720_000)
    config.eval.object_threshold = 0.7
    config.model = dict(
        system="maskformer",
        backbone="resnet101",
        classes=150,
        encoder_layers=6,
    )
    return universal.trained(config, weight_decay=0.0001)
