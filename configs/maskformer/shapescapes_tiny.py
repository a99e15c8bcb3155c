r"""A small MaskFormer on the generated shapescapes: panoptic segmentation in minutes on CPU.

segjax train --config=configs/maskformer/shapescapes_tiny.py --workdir=/tmp/run
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny_panoptic()
    config.model = dict(
        system="maskformer",
        backbone=shapescapes.SWIN,
        drop_path=0.0,
        classes=12,
        queries=30,
        layers=3,
        features=64,
        hidden=256,
        dropout=0.0,
    )
    return config
