r"""A small ViT that classifies superpixels of shapescapes: 60.9 mIoU (one run).

About 210 s on 2 shared CPU cores, evaluations included.

segjax train --config=configs/superpixel_vit/shapescapes_slic_tiny.py --workdir=/tmp/slic
"""

from ml_collections import ConfigDict

from configs.linear_vit import shapescapes_tiny


def get_config() -> ConfigDict:
    config = shapescapes_tiny.get_config()
    config.model.update(system="superpixel_vit", regions="slic")
    return config
