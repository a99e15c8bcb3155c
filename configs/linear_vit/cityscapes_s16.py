r"""Linear-head ViT-S/16 on Cityscapes: 76.1 mIoU single scale, 78.0 multi-scale + flip
(RegProxy paper, Table 3, baseline).

    segjax train --config=configs/linear_vit/cityscapes_s16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED

Everything but the head is that of configs/regproxy/cityscapes_s16.py.
"""

from ml_collections import ConfigDict

from configs import common
from configs.regproxy import cityscapes_s16


def get_config() -> ConfigDict:
    return common.linear_baseline(cityscapes_s16.get_config())
