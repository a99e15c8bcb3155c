r"""A small CRM on the generated shapescapes: windows of 128 x 128, refined at 1024 x 1024.

segjax train --config=configs/crm/shapescapes_tiny.py --workdir=/tmp/run

Reaches, after a quarter of an hour on two busy CPU cores and from coarse masks of IoU 73.5 and mBA
56.7, IoU 77.7 and mBA 80.5 on 20 scenes (one seed; the recipe was chosen on these same scenes).
"""

from ml_collections import ConfigDict

from configs.common import refinement


def get_config() -> ConfigDict:
    config = refinement.shapescapes_tiny()
    config.model = dict(
        system="crm",
        backbone=dict(width=16, depths=(1, 1, 3)),
        projected=(16, 16, 32),
        features=32,
        hidden=16,
        layers=4,
        dropout=0.1,
        scales=(0.125, 0.25, 0.5, 1.0),
    )
    return config
