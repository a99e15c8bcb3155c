r"""SETR-PUP with ViT-L/16 on ADE20K: 48.24 mIoU single scale, 49.99 multi-scale + flip
(mmsegmentation's run; 8 GPUs of 2 images each, 160k steps).

Initialised from ImageNet-21k's ViT-L/16 (timm vit_large_patch16_384).

    segjax train --config=configs/setr/ade20k_pup.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=setr --config=configs/setr/ade20k_pup.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Evaluation: short side 512, windows of 512 with stride 341, logits averaged; label 0 ignored.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.ade20k(crop=512)
    config.model = dict(
        system="setr",
        decoder="pup",
        backbone="vit_l16",
        classes=150,
        image_size=(512, 512),
        levels=(9, 14, 19, 23),
    )
    return common.setr(config, learning_rate=0.001)
