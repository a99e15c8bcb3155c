r"""CascadePSP on BIG: IoU 93.93, mBA 75.32 from PSPNet's coarse masks (CRM, Table 1).

segjax import --layout=cascade_psp --checkpoint=model --config=configs/cascade_psp/big_r50.py \
    --workdir=runs/cascade_psp/big_r50
segjax train --config=configs/cascade_psp/big_r50.py --workdir=gs://bucket/cascade_psp \
    --config.init.layout=resnet --config.init.checkpoint=resnet50-19c8e357.pth

A global step with the long side at 900, then crops of 900 x 900 every 418 pixels. The published
file was trained with kernels of other shapes in the perturbation of its masks:
--config.augment.shape_choice=published_bug. Its optimizer's settings are CRM's here; those behind
the paper's own file are not public.
"""

from ml_collections import ConfigDict

from configs.common import refinement


def get_config() -> ConfigDict:
    config = refinement.official()
    config.model = dict(system="cascade_psp", backbone="resnet50", side=900, stride=450)
    return config
