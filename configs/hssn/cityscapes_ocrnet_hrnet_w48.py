r"""HSSN on OCRNet, HRNet-W48, on Cityscapes: mIoU of groups / of classes 93.92 / 83.37 (paper,
Table 2).

There is no public code and no file of it: the loss is the paper's, the rest as in the baseline
(configs/ocrnet/cityscapes_hrnet_w48.py).

    segjax train --config=configs/hssn/cityscapes_ocrnet_hrnet_w48.py --workdir=W \
        --config.init.layout=hrnet --config.init.checkpoint=PRETRAINED
"""

from ml_collections import ConfigDict

from configs.common import hierarchy
from configs.ocrnet import cityscapes_hrnet_w48


def get_config() -> ConfigDict:
    config = cityscapes_hrnet_w48.get_config()
    config.hierarchy = hierarchy.paper("dataset", ramp=80_000)
    return config
