r"""CRM on BIG: IoU 94.18, mBA 76.09 from PSPNet's coarse masks (paper, Table 1; model_45705).

segjax import --layout=crm --checkpoint=model_45705 --config=configs/crm/big_r50.py \
    --workdir=runs/crm/big_r50
segjax train --config=configs/crm/big_r50.py --workdir=gs://bucket/crm \
    --config.init.layout=resnet --config.init.checkpoint=resnet50-19c8e357.pth

Four turns at an eighth to the whole of the image's size, each asked at every pixel of the image;
the published file is the last of its training.
"""

from ml_collections import ConfigDict

from configs.common import refinement


def get_config() -> ConfigDict:
    config = refinement.official()
    config.model = dict(system="crm", backbone="resnet50", scales=(0.125, 0.25, 0.5, 1.0), pad=32)
    return config
