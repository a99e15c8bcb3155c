"""segjax: the CVPR'22 generation of segmentation in JAX.

model = segjax.load("/tmp/run")
result = model("photo.jpg")
result.draw().save("photo_seg.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segjax.errors import SegjaxError

if TYPE_CHECKING:
    from segjax.inference.mask_predictor import MaskPredictor
    from segjax.inference.predictor import Predictor
    from segjax.inference.refiner import Refiner

__all__ = ["SegjaxError", "load"]
__version__ = "0.1.0"


def load(workdir: str, **options: Any) -> Predictor | MaskPredictor | Refiner:
    """The trained or imported model of a workdir, ready to call on a path, a PIL image or an array;
    one that sharpens masks on an image and its coarse mask.

    See `segjax.inference.predictor.load` for the options.
    """
    from segjax.inference import predictor  # jax is imported when it is needed

    return predictor.load(workdir, **options)
