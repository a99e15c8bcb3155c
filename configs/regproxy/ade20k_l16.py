r"""RegProxy-L/16 on ADE20K: 52.9 mIoU single scale, 53.4 multi-scale + flip (paper, Table 4).

Official hardware: 8 GPUs of 2 images each, 160k steps.
Initialised from AugReg ViT-L/16 (timm vit_large_patch16_384).

    segjax train --config=configs/regproxy/ade20k_l16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=regproxy --config=configs/regproxy/ade20k_l16.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Regions come from M = 10.
Evaluation: short side 640, windows of 640 with stride 640, logits averaged; label 0 ignored.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.ade20k(crop=640)
    config.model = dict(
        system="regproxy",
        backbone="vit_l16",
        classes=150,
        image_size=(640, 640),
        early_block=9,
        region=(4, 4),
        drop_path=0.1,
    )
    config.optimizer = common.vit_adamw()
    config.schedule = common.cosine_restart((20_000, 40_000, 100_000))
    return config
