r"""OCRNet, HRNet-W48, on Cityscapes without a class tree: 82.33 mIoU of the classes, 92.57 of their
groups (HSSN paper, Table 2, baseline).

What that baseline was trained with is not public; this is mmsegmentation's recipe of
`ocrnet_hr48_512x1024` (4 GPUs of 2 images each) in 80k steps. Initialised from HRNetV2-W48 on
ImageNet (mmcv's `msra/hrnetv2_w48`).

    segjax train --config=configs/ocrnet/cityscapes_hrnet_w48.py --workdir=W \
        --config.init.layout=hrnet --config.init.checkpoint=PRETRAINED
    segjax import --layout=ocrnet --config=configs/ocrnet/cityscapes_hrnet_w48.py \
        --checkpoint=OFFICIAL.pth --workdir=W

Evaluation: the full 1024 x 2048 image in one piece.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)"
"""

from ml_collections import ConfigDict

from configs.common import convolutional


def get_config() -> ConfigDict:
    config = convolutional.cityscapes()
    config.model = dict(system="ocrnet", backbone="hrnet_w48", classes=19)
    config.optimizer = convolutional.sgd()
    config.schedule = convolutional.poly()
    return config
