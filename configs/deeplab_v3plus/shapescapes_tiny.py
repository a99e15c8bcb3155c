r"""A small DeepLabV3+ on the generated shapescapes.

segjax train --config=configs/deeplab_v3plus/shapescapes_tiny.py --workdir=/tmp/deeplab_v3plus
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny()
    config.model = dict(
        system="deeplab_v3plus",
        backbone=dict(
            width=16, depths=(1, 1, 1, 1), deep_stem=True, stem_width=8, pool_shortcut=True
        ),
        classes=12,
        features=64,
        early_features=16,
        # As far as 12, 24 and 36 reach at the stride 8 of a crop of 512 x 1024.
        dilations=(2, 4, 6),
        auxiliary_features=32,
    )
    return config
