r"""ViT-Ti/16 on superpixels of ADE20K: 40.9 mIoU single scale (RegProxy, pilot experiment).

    segjax train --config=configs/superpixel_vit/ade20k_ti16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED

A re-design, see segjax/systems/superpixel_vit.py. With --config.model.regions=square, whole patches
instead: 37.8, if we read the paper's second baseline number right. Everything else is that of
configs/linear_vit/ade20k_ti16.py.
"""

from ml_collections import ConfigDict

from configs.linear_vit import ade20k_ti16


def get_config() -> ConfigDict:
    config = ade20k_ti16.get_config()
    config.model.update(system="superpixel_vit", regions="slic", compactness=10.0, iterations=10)
    return config
