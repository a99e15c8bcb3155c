r"""RegProxy-Ti/16 on Cityscapes: 76.5 mIoU single scale, 77.7 multi-scale + flip (paper, Table 5).

Official hardware: 8 GPUs of 2 images each, 80k steps.
Initialised from AugReg ViT-Ti/16 (timm vit_tiny_patch16_384).

    segjax train --config=configs/regproxy/cityscapes_ti16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=regproxy --config=configs/regproxy/cityscapes_ti16.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Regions come from M = 3.
Evaluation: 1024 x 2048, windows of 768 with stride 512, logits averaged.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.cityscapes()
    config.model = dict(
        system="regproxy",
        backbone="vit_ti16",
        classes=19,
        image_size=(768, 768),
        early_block=2,
        region=(4, 4),
        drop_path=0.1,
    )
    config.optimizer = common.vit_adamw()
    config.schedule = common.poly()
    return config
