r"""HSSN on DeepLabV3+, R101, on LIP: 58.71 mIoU of the parts at a single scale (released file).

The recipe is the released code's; mirrored images have left and right exchanged. Initialised from
mmcv's `resnet101_v1d` on ImageNet.

    segjax train --config=configs/hssn/lip_deeplab_v3plus_r101.py --workdir=W \
        --config.init.layout=resnet --config.init.checkpoint=PRETRAINED
    segjax import --layout=hssn --config=configs/hssn/lip_deeplab_v3plus_r101.py \
        --checkpoint=OFFICIAL.pth --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import hierarchy


def get_config() -> ConfigDict:
    config = hierarchy.people("lip", classes=20, steps=160_000)
    config.augment.flip_pairs = ((14, 15), (16, 17), (18, 19))  # arms, legs, shoes
    return config
