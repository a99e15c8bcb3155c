"""The linear baseline of RegProxy's Table 3: a ViT, one linear layer on its last tokens, bilinear
resize.

Same backbone, recipe and loss as RegProxy (Zhang et al., CVPR 2022, Sec. 4;
github.com/YiF-Zhang/RegionProxy), without regions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.vit import ViT, drop_path_scale
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.ops import dense
from segjax.structs import Array, Batch, Scalars, Semantic, Size, Variables
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image
from segjax.systems.vit_backbone import in_slices, make_vit

Dtype = Any


class LinearViT(nn.Module):
    """Normalised image [B, H, W, 3] -> scores [B, Ht, Wt, K], one per token."""

    backbone: ViT
    classes: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.head = LinearHead(self.classes, dtype=self.dtype)

    def __call__(
        self, image: Array, train: bool = False, branch_scale: Array | None = None, slices: int = 1
    ) -> Array:
        def last(backbone: ViT, image: Array, scale: Array | None) -> Array:
            return backbone(image, scale)["norm"]

        return self.head(in_slices(last, self.backbone, image, branch_scale, slices))


class LinearHead(nn.Module):
    classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(0.02)
        x = nn.Dense(self.classes, dtype=self.dtype, kernel_init=init, name="classifier")(x)
        return x.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`."""

    module: LinearViT
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    loss_over: str = "all"

    @property
    def classes(self) -> int:
        return self.module.classes

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, normalised_image(batch, self.mean, self.std))

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        image = normalised_image(batch, self.mean, self.std)
        backbone = self.module.backbone
        scale = drop_path_scale(rng, backbone.drop_path, backbone.depth, image.shape[0])
        scores = self.module.apply(variables, image, True, scale, microbatches)
        value, scalars = pixel_cross_entropy(scores, batch["semantic"], self.loss_over)
        return value, (scalars, {})

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        image = normalised_image(batch, self.mean, self.std)
        scores = self.module.apply(variables, image)
        return Semantic(labels=dense.resize_argmax(scores, image.shape[1:3]), scores=scores)


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, int] = "vit_ti16",
    image_size: Size = (512, 512),
    distilled: bool = False,
    drop_path: float = 0.1,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    scan: bool = False,
    loss_over: str = "all",
) -> System:
    """The linear-head ViT from plain values; the fields mean what they mean in `regproxy.build`."""
    vit = make_vit(
        backbone,
        image_size,
        distilled=distilled,
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
        scan=scan,
    )
    return System(
        LinearViT(vit, classes, dtype=jnp.dtype(dtype)), tuple(mean), tuple(std), loss_over
    )
