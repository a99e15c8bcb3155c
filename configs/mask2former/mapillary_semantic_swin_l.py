r"""Mask2Former, Swin-L, on Mapillary Vistas: mIoU single/multi-scale 63.2/64.7 (model zoo).

    segjax train --config=configs/mask2former/mapillary_semantic_swin_l.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
    segjax import --layout=mask2former --config=configs/mask2former/mapillary_semantic_swin_l.py \
        --checkpoint=OFFICIAL.pkl --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import universal


def get_config() -> ConfigDict:
    config = universal.mapillary("semantic")
    config.model = dict(
        system="mask2former",
        backbone="swin_l",
        classes=65,
    )
    return universal.trained(config)
