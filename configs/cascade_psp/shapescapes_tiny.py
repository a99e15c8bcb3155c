r"""A small CascadePSP on the generated shapescapes: windows of 128 x 128, refined at 1024 x 1024.

segjax train --config=configs/cascade_psp/shapescapes_tiny.py --workdir=/tmp/run

Reaches, after a quarter of an hour on two busy CPU cores and from coarse masks of IoU 73.5 and mBA
56.7, IoU 87.2 and mBA 75.8 on 20 scenes (one seed).
"""

from ml_collections import ConfigDict

from configs.common import refinement


def get_config() -> ConfigDict:
    config = refinement.shapescapes_tiny()
    config.model = dict(
        system="cascade_psp",
        backbone=dict(width=8, depths=(1, 1, 1, 1)),
        features=64,
        up_features=(32, 16, 8),
        head_features=8,
        side=224,
    )
    return config
