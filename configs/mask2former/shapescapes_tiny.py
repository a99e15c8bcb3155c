r"""A small Mask2Former on the generated shapescapes: PQ 53.6 on 100 held-back scenes (one run).

Nine minutes on 2 shared CPU cores, evaluations included. Untrained: 0.0.

segjax train --config=configs/mask2former/shapescapes_tiny.py --workdir=/tmp/run
"""

from ml_collections import ConfigDict

from configs.common import shapescapes


def get_config() -> ConfigDict:
    config = shapescapes.tiny_panoptic()
    config.model = dict(
        system="mask2former",
        backbone=shapescapes.SWIN,
        drop_path=0.0,
        classes=12,
        queries=30,
        layers=3,
        encoder_layers=2,
        features=64,
        hidden=256,
        encoder_hidden=128,
        points=1024,
    )
    return config
