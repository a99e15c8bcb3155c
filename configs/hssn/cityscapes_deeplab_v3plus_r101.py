r"""HSSN on DeepLabV3+, R101, on Cityscapes: mIoU of groups / of classes 93.31 / 83.02 (paper,
Table 2); the released file has 81.62 of the classes at a single scale.

The recipe is the released code's. Initialised from mmcv's `resnet101_v1d` on ImageNet.

    segjax train --config=configs/hssn/cityscapes_deeplab_v3plus_r101.py --workdir=W \
        --config.init.layout=resnet --config.init.checkpoint=PRETRAINED
    segjax import --layout=hssn --config=configs/hssn/cityscapes_deeplab_v3plus_r101.py \
        --checkpoint=deeplabv3plus_r101-d8_512x1024_80k_cityscapes_hiera_triplet.pth --workdir=W

Evaluation: the full 1024 x 2048 image in one piece.
Multi-scale + flip: --config.eval.flip=True \
    --config.eval.ratios="(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)"
"""

from ml_collections import ConfigDict

from configs.common import convolutional, hierarchy


def get_config() -> ConfigDict:
    config = convolutional.cityscapes()
    config.model = dict(system="deeplab_v3plus", backbone="resnet101_v1d", classes=19)
    config.hierarchy = hierarchy.published_two_levels("dataset", ramp=80_000)
    config.optimizer = convolutional.hssn_sgd()
    config.schedule = convolutional.poly(min_rate=5e-5)
    return config
