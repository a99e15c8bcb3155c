r"""CRM on the relabelled PASCAL VOC 2012, 500 objects with exact boundaries.

segjax import --layout=crm --checkpoint=model_45705 --config=configs/crm/pascal_relabelled.py \
    --workdir=runs/crm/pascal
"""

from ml_collections import ConfigDict

from configs.crm import big_r50


def get_config() -> ConfigDict:
    config = big_r50.get_config()
    config.data.dataset = dict(name="pascal_relabelled")
    config.data.eval_split = "validation"
    return config
