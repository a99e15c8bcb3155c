r"""Mask2Former, Swin-L, on Mapillary Vistas panoptic: PQ/mIoU 45.5/60.8 (model zoo).

    segjax train --config=configs/mask2former/mapillary_panoptic_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/mapillary_panoptic_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.mapillary("panoptic")
    config.model = dict(
        system="mask2former",
        backbone="swin_l",
        classes=65,
        queries=200,
    )
    return universal.trained(config)
