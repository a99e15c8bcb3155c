r"""Segmenter-S/16 with Mask Transformer on ADE20K: 45.3 mIoU single scale, 46.9 multi-scale + flip
(RegProxy paper, Table 3).

64 epochs of 20,210 images in batches of 8. Initialised from AugReg's ViT at 384.

    segjax train --config=configs/segmenter/ade20k_s16_mask.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=segmenter --config=configs/segmenter/ade20k_s16_mask.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Evaluation: short side 512, windows of 512 with stride 480; an image with a shorter side is enlarged
to the window; label 0 ignored.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.ade20k(crop=512)
    config.model = dict(
        system="segmenter",
        backbone="vit_s16",
        decoder="mask_transformer",
        classes=150,
        image_size=(512, 512),
        drop_path=0.1,
    )
    return common.segmenter(config, learning_rate=0.001, epochs=64, images=20_210)
