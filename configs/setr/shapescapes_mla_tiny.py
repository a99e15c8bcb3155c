r"""A small SETR-MLA on the generated shapescapes.

segjax train --config=configs/setr/shapescapes_mla_tiny.py --workdir=/tmp/setr_mla
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="setr",
        decoder="mla",
        backbone=shapescapes.BACKBONE,
        classes=12,
        image_size=(128, 128),
        levels=(0, 1, 2, 3),
        features=32,
    )
    return config
