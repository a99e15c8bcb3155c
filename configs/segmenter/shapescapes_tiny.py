r"""A small Segmenter with Mask Transformer on shapescapes, on the other small configs' budget.

segjax train --config=configs/segmenter/shapescapes_tiny.py --workdir=/tmp/segmenter
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="segmenter",
        backbone=shapescapes.BACKBONE,
        decoder="mask_transformer",
        classes=12,
        image_size=(128, 128),
        drop_path=0.0,
    )
    return config
