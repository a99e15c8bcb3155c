r"""Segmenter-L/16 with Mask Transformer on Cityscapes: 81.3 mIoU multi-scale + flip (RegProxy
paper, Table 3).

216 epochs of 2,975 images in batches of 8. Initialised from AugReg's ViT at 384.

    segjax train --config=configs/segmenter/cityscapes_l16_mask.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=segmenter --config=configs/segmenter/cityscapes_l16_mask.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Evaluation: the full 1024 x 2048 image in windows of 768 with stride 736.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.cityscapes()
    config.model = dict(
        system="segmenter",
        backbone="vit_l16",
        decoder="mask_transformer",
        classes=19,
        image_size=(768, 768),
        drop_path=0.1,
    )
    return common.segmenter(config, learning_rate=0.01, epochs=216, images=2_975)
