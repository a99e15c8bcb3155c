r"""The linear-head ViT on shapescapes, RegProxy's baseline: 55.5 mIoU (one run).

118 s on 2 shared CPU cores, evaluations included.

segjax train --config=configs/linear_vit/shapescapes_tiny.py --workdir=/tmp/linear
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="linear_vit",
        backbone=shapescapes.BACKBONE,
        classes=12,
        image_size=(128, 128),
        drop_path=0.0,
    )
    return config
