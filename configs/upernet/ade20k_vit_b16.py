r"""UPerNet on ViT-B/16 on ADE20K: 47.9 mIoU single scale, 49.5 multi-scale + flip (RegProxy paper,
Table 3; mmsegmentation's own run: 47.73 and 49.95).

8 GPUs of 2 images each, 160k steps. Initialised from a ViT-B/16 of timm.

    segjax train --config=configs/upernet/ade20k_vit_b16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED
    segjax import --layout=upernet_vit --config=configs/upernet/ade20k_vit_b16.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Evaluation: the whole image, short side 512; label 0 ignored. Every shape of image is compiled;
--config.eval.pad_windows=True fills images up with mean colour to fewer shapes.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.ade20k(crop=512)
    config.model = dict(
        system="upernet",
        backbone="vit_b16",
        classes=150,
        image_size=(512, 512),
        levels=(2, 5, 8, 11),
        neck_features=768,
        features=512,
        drop_path=0.1,
    )
    config.optimizer = common.vit_adamw()
    # mmsegmentation names layer norms "ln1" and "ln2" and batch norms "bn" but exempts "norm".
    config.optimizer.no_decay = (r"backbone/(pos_embed|cls_token)$",)
    config.schedule = common.poly()
    config.eval.mode = "whole"
    config.eval.pad_windows = False
    return config
