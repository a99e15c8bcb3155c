r"""HSSN on DeepLabV3+, R101, on Mapillary Vistas 2.0: mIoU of the levels, top first, 85.27 /
71.40 / 40.16 (paper, Table 5).

Neither code nor file of it is public; see `configs.common.hierarchy.mapillary` for the recipe. The
classes of the two upper levels are those of later code of the authors.

    segjax train --config=configs/hssn/mapillary_deeplab_v3plus_r101.py --workdir=W \
        --config.init.layout=resnet --config.init.checkpoint=PRETRAINED
"""

from ml_collections import ConfigDict

from configs.common import hierarchy


def get_config() -> ConfigDict:
    config = hierarchy.mapillary()
    config.hierarchy = hierarchy.paper("dataset", ramp=240_000)
    return config
