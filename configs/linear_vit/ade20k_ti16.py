r"""Linear-head ViT-Ti/16 on ADE20K: 39.0 mIoU single scale, 39.8 multi-scale + flip
(RegProxy paper, Table 3, baseline).

    segjax train --config=configs/linear_vit/ade20k_ti16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED

Everything but the head is that of configs/regproxy/ade20k_ti16.py.
"""

from ml_collections import ConfigDict

from configs import common
from configs.regproxy import ade20k_ti16


def get_config() -> ConfigDict:
    return common.linear_baseline(ade20k_ti16.get_config())
