r"""MaskFormer, Swin-L, on ADE20K: mIoU single/multi-scale 54.1/55.6 (model zoo).

    segjax train --config=configs/maskformer/ade20k_semantic_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/ade20k_semantic_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 640)
    config.model = dict(
        system="maskformer",
        backbone="swin_l",
        classes=150,
    )
    return universal.trained(
        config, weight_decay=0.01, learning_rate=6e-05, backbone_rate=1.0, warmup_steps=1500
    )
