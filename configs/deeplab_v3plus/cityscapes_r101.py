r"""DeepLabV3+, R101, on Cityscapes without a class tree: 82.08 mIoU of the classes, 92.16 of their
groups (HSSN paper, Table 2, baseline).

The recipe is that of HSSN's released code (4 GPUs of 2 images each, 80k steps): rates by stage,
weight decay on all parameters. Initialised from mmcv's `resnet101_v1d` on ImageNet.

    segjax train --config=configs/deeplab_v3plus/cityscapes_r101.py --workdir=W \
        --config.init.layout=resnet --config.init.checkpoint=PRETRAINED
    segjax import --layout=deeplab_v3plus --config=configs/deeplab_v3plus/cityscapes_r101.py \
        --config.model.backbone=resnet101_v1c --checkpoint=OFFICIAL.pth --workdir=W

The second one is for mmsegmentation's own files, whose ResNet is the "v1c".

Evaluation: the full 1024 x 2048 image in one piece.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)"
"""

from ml_collections import ConfigDict

from configs.common import convolutional


def get_config() -> ConfigDict:
    config = convolutional.cityscapes()
    config.model = dict(system="deeplab_v3plus", backbone="resnet101_v1d", classes=19)
    config.optimizer = convolutional.hssn_sgd()
    config.schedule = convolutional.poly(min_rate=5e-5)
    return config
