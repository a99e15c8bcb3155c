r"""ViT-S/16 on superpixels of ADE20K: 46.0 mIoU single scale (RegProxy, pilot experiment).

    segjax train --config=configs/superpixel_vit/ade20k_s16.py --workdir=W \
        --config.init.layout=timm --config.init.checkpoint=PRETRAINED

A re-design, see segjax/systems/superpixel_vit.py. With --config.model.regions=square, whole patches
instead: 44.2, if we read the paper's second baseline number right. Everything else is that of
configs/linear_vit/ade20k_s16.py.
"""

from ml_collections import ConfigDict

from configs.linear_vit import ade20k_s16


def get_config() -> ConfigDict:
    config = ade20k_s16.get_config()
    config.model.update(system="superpixel_vit", regions="slic", compactness=10.0, iterations=10)
    return config
