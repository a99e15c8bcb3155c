r"""A small RegProxy on the generated shapescapes. Expected: see the README; minutes on 2 CPU cores.

segjax train --config=configs/regproxy/shapescapes_tiny.py --workdir=/tmp/run
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="regproxy",
        backbone=shapescapes.BACKBONE,
        classes=12,
        image_size=(128, 128),
        early_block=1,
        region=(4, 4),
        drop_path=0.0,
    )
    return config
