r"""A small UPerNet on the generated shapescapes.

segjax train --config=configs/upernet/shapescapes_tiny.py --workdir=/tmp/upernet
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="upernet",
        backbone=shapescapes.BACKBONE,
        classes=12,
        image_size=(128, 128),
        levels=(0, 1, 2, 3),
        neck_features=32,
        features=32,
        auxiliary_features=32,
        drop_path=0.0,
    )
    return config
