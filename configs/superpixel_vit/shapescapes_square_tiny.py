r"""A small ViT that classifies whole patches of shapescapes: 46.5 mIoU (one run).

86 s on 2 shared CPU cores, evaluations included.

segjax train --config=configs/superpixel_vit/shapescapes_square_tiny.py --workdir=/tmp/square
"""

from ml_collections import ConfigDict

from configs.linear_vit import shapescapes_tiny


def get_config() -> ConfigDict:
    config = shapescapes_tiny.get_config()
    config.model.update(system="superpixel_vit", regions="square")
    return config
