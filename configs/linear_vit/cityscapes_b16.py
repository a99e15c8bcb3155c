r"""Linear-head ViT-B/16 on Cityscapes: 78.5 mIoU single scale, 80.5 multi-scale + flip
(RegProxy paper, Table 3, baseline).

    segjax train --config=configs/linear_vit/cityscapes_b16.py --workdir=W \
        --config.init.layout=deit --config.init.checkpoint=PRETRAINED

Everything but the head is that of configs/regproxy/cityscapes_b16.py.
"""

from ml_collections import ConfigDict

from configs import common
from configs.regproxy import cityscapes_b16


def get_config() -> ConfigDict:
    return common.linear_baseline(cityscapes_b16.get_config())
