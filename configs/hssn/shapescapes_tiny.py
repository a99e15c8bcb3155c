r"""A small DeepLabV3+ under the three-level tree of the generated shapescapes.

mIoU 29.8 on the leaves, 48.4 and 73.5 above them (mean of two seeds on 200 scenes,
experiments/hssn/results/table6.json, row Full). Scenes of 64 x 64:
minutes on two CPU cores.

segjax train --config=configs/hssn/shapescapes_tiny.py --workdir=/tmp/hssn
"""

from ml_collections import ConfigDict

from configs.common import hierarchy
from configs.deeplab_v3plus import shapescapes_tiny

SIZE = (64, 64)


def get_config() -> ConfigDict:
    config = shapescapes_tiny.get_config()
    config.hierarchy = hierarchy.paper("dataset", ramp=250)
    config.data.dataset.size = config.augment.scale = config.augment.crop = SIZE
    config.eval.scale = config.eval.crop = config.eval.stride = SIZE
    config.data.batch = 8
    config.steps = config.eval.every = config.checkpoint.every = 250
    return config
