r"""A small SETR-Naive on the generated shapescapes.

segjax train --config=configs/setr/shapescapes_naive_tiny.py --workdir=/tmp/setr_naive
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="setr",
        decoder="naive",
        backbone=shapescapes.BACKBONE,
        classes=12,
        image_size=(128, 128),
        levels=(0, 1, 2, 3),
        features=32,
    )
    return config
