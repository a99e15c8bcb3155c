r"""MaskFormer, Swin-T, on ADE20K: mIoU single/multi-scale 46.7/48.8 (model zoo).

    segjax train --config=configs/maskformer/ade20k_semantic_swin_t.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=maskformer --config=configs/maskformer/ade20k_semantic_swin_t.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.ade20k("semantic", 512)
    config.model = dict(
        system="maskformer",
        backbone="swin_t",
        classes=150,
    )
    return universal.trained(
        config, weight_decay=0.01, learning_rate=6e-05, backbone_rate=1.0, warmup_steps=1500
    )
