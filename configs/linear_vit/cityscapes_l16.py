r"""Linear-head ViT-L/16 on Cityscapes: 78.4 mIoU single scale, 80.7 multi-scale + flip
(RegProxy paper, Table 3, baseline).

    segjax train --config=configs/linear_vit/cityscapes_l16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED

Everything but the head is that of configs/regproxy/cityscapes_l16.py.
"""

from ml_collections import ConfigDict

from configs import common
from configs.regproxy import cityscapes_l16


def get_config() -> ConfigDict:
    return common.linear_baseline(cityscapes_l16.get_config())
