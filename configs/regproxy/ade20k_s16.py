r"""RegProxy-S/16 on ADE20K: 47.6 mIoU single scale, 48.5 multi-scale + flip (paper, Table 4).

Official hardware: 8 GPUs of 2 images each, 160k steps.
Initialised from AugReg ViT-S/16 (timm vit_small_patch16_384).

    segjax train --config=configs/regproxy/ade20k_s16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=regproxy --config=configs/regproxy/ade20k_s16.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Regions come from M = 5.
Evaluation: short side 512, windows of 512 with stride 512, logits averaged; label 0 ignored.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.ade20k(crop=512)
    config.model = dict(
        system="regproxy",
        backbone="vit_s16",
        classes=150,
        image_size=(512, 512),
        early_block=4,
        region=(4, 4),
        drop_path=0.1,
    )
    config.optimizer = common.vit_adamw()
    config.schedule = common.poly()
    return config
