r"""HSSN on DeepLabV3+, R101, on PASCAL-Person-Part: mIoU of the levels, top first, 97.69 / 88.20 /
75.44 (paper, Table 5); the released file has 73.44 of the parts at a single scale.

The recipe is the released code's. Initialised from mmcv's `resnet101_v1d` on ImageNet.

    segjax train --config=configs/hssn/person_part_deeplab_v3plus_r101.py --workdir=W \
        --config.init.layout=resnet --config.init.checkpoint=PRETRAINED
    segjax import --layout=hssn --config=configs/hssn/person_part_deeplab_v3plus_r101.py \
        --checkpoint=OFFICIAL.pth --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import hierarchy


def get_config() -> ConfigDict:
    return hierarchy.people("pascal_person_part", classes=7, steps=60_000)
