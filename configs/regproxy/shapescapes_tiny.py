r"""A small RegProxy on the generated shapescapes: 59.7 mIoU on 100 held-back scenes (one run).

95 s on 2 shared CPU cores, evaluations included.
Untrained: 1.3; the linear head on the same budget: 55.5.

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
