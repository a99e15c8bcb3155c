r"""CascadePSP as the pip package segmentation-refinement runs it: masks cut at 127, small images
enlarged to 900 first.

segjax import --layout=cascade_psp --checkpoint=model --config=configs/cascade_psp/package.py \
    --workdir=runs/cascade_psp/package
segjax refine --workdir=runs/cascade_psp/package --image=photo.jpg --mask=coarse.png --out=fine.png

--config.model.steps=global is the package's `fast`.
"""

from ml_collections import ConfigDict

from configs.common import refinement


def get_config() -> ConfigDict:
    config = refinement.official()
    config.model = dict(system="cascade_psp", backbone="resnet50", side=900, variant="package")
    return config
