r"""Linear-head ViT-Ti/16 on Cityscapes: 72.3 mIoU single scale, 74.1 multi-scale + flip
(RegProxy paper, Table 3, baseline).

    segjax train --config=configs/linear_vit/cityscapes_ti16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED

Everything but the head is that of configs/regproxy/cityscapes_ti16.py.
"""

from ml_collections import ConfigDict

from configs import common
from configs.regproxy import cityscapes_ti16


def get_config() -> ConfigDict:
    return common.linear_baseline(cityscapes_ti16.get_config())
