r"""HSSN on MaskFormer, Swin-S, on Cityscapes: mIoU of the groups / of the classes 94.39 / 83.74
(paper, Table 2).

There is no public code and no file of it, and how a set of masks scores nodes is segjax's choice
(`segjax.systems.hssn.mask_scores`): experimental. The recipe is MaskFormer's on Cityscapes.

    segjax train --config=configs/hssn/cityscapes_maskformer_swin_s.py --workdir=W \
        --config.init.layout=swin --config.init.checkpoint=PRETRAINED
"""

from ml_collections import ConfigDict

from configs.common import hierarchy, universal


def get_config() -> ConfigDict:
    config = universal.cityscapes("semantic")
    config.model = dict(system="maskformer", backbone="swin_s", classes=19)
    config.hierarchy = hierarchy.paper("dataset", ramp=90_000)
    return universal.trained(config, weight_decay=0.0001)
