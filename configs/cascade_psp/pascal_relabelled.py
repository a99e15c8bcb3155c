r"""CascadePSP on the relabelled PASCAL VOC 2012: the global step alone, as published.

segjax import --layout=cascade_psp --checkpoint=model \
    --config=configs/cascade_psp/pascal_relabelled.py --workdir=runs/cascade_psp/pascal

Every image is brought to a long side of 900.
"""

from ml_collections import ConfigDict

from configs.common import refinement


def get_config() -> ConfigDict:
    config = refinement.official()
    config.data.dataset = dict(name="pascal_relabelled")
    config.data.eval_split = "validation"
    config.model = dict(system="cascade_psp", backbone="resnet50", side=900, steps="global")
    return config
