r"""RegProxy-S/16 on a folder of your own images and masks. Expected number: yours.

One GPU of 16 GB takes the batch of 16 in bfloat16; raise config.accumulate when it does not fit.

    segjax data check --config=configs/regproxy/folder.py \
        --config.data.dataset.root=MY/PHOTOS --config.model.classes=5
    segjax train --config=configs/regproxy/folder.py --workdir=W \
        --config.data.dataset.root=MY/PHOTOS --config.model.classes=5 \
        --config.init.layout=timm --config.init.checkpoint=vit_small_patch16_384.safetensors

MY/PHOTOS holds images/ and masks/ (each with train/ and validation/ below, or plain: then a tenth
is held back), matched by file name, and names.txt: one class a line, in the order of the mask
values. 255 in a mask is not counted.
Evaluation: whole images, short side 512.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = dict(
        system="regproxy",
        backbone="vit_s16",
        classes=2,
        image_size=(512, 512),
        early_block=4,
        region=(4, 4),
        drop_path=0.1,
        dtype="bfloat16",
    )
    config.data = dict(dataset=dict(name="folder", root=""), batch=16)
    config.augment = dict(scale=(2048, 512), crop=(512, 512))
    config.optimizer = common.vit_adamw()
    config.schedule = common.poly(warmup_steps=500)
    config.steps = 10_000
    config.eval = dict(
        mode="slide", scale=(2048, 512), crop=(512, 512), stride=(512, 512), every=1000
    )
    config.checkpoint = dict(every=1000)
    return config
