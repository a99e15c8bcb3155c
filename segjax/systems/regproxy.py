"""RegProxy: Semantic Segmentation by Early Region Proxy (Zhang, Pang, Lu; CVPR 2022).

Every token of a plain ViT stands for one learnable region. A small convolutional head on an EARLY
layer says, for each cell of a fine grid, with which probability it belongs to each of the 3x3
tokens around it (class-agnostic); one linear layer classifies the tokens of the LAST layer; the
token scores are painted onto the fine grid with those probabilities.

Facts follow the released code and checkpoints (github.com/YiF-Zhang/RegionProxy). The association
is per output cell and is not an aggregation of token features, although the code's `unfold` reads
like one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import BatchNorm, DepthwiseConv, relu
from segjax.backbones.vit import ViT, drop_path_scale
from segjax.errors import SegjaxError
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.ops import painting
from segjax.structs import Array, Batch, Scalars, Semantic, Size, Variables
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image
from segjax.systems.vit_backbone import in_slices, make_vit

Dtype = Any

# --------------------------------------------------------------------------------------------------
# The model (Sec. 3)


@flax.struct.dataclass
class RegProxyOutput:
    """Attributes:
    early: [B, Ht, Wt, C], the un-normalised tokens that the regions are made from.
    last: [B, Ht, Wt, C], the last tokens after the final norm.
    association: [B, Ht, Wt, 9, h, w], probability of each cell over the 3x3 tokens around it.
    region_scores: [B, Ht, Wt, K] logits of the regions.
    """

    early: Array
    last: Array
    association: Array
    region_scores: Array

    @property
    def scores(self) -> Array:
        """The painted scores, [B, Ht*h, Wt*w, K]."""
        return painting.paint(self.region_scores, self.association)

    @property
    def auxiliary(self) -> tuple[Array, ...]:
        """There are no further heads."""
        return ()

    @property
    def features(self) -> Array:
        """What an embedding of positions would be made from."""
        return self.last


class RegProxy(nn.Module):
    """Attributes:
    backbone: the ViT; its position embedding fixes the size it was made for.
    classes: K.
    early_block: block whose output makes the regions, -1 for the embedded tokens. The paper's depth
        M is this + 1.
    region: (h, w), cells per token.
    """

    backbone: ViT
    classes: int
    early_block: int
    region: Size = (4, 4)
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.head = ProxyHead(self.classes, self.region, dtype=self.dtype)

    def __call__(
        self,
        image: Array,
        train: bool = False,
        branch_scale: Array | None = None,
        slices: int = 1,
    ) -> RegProxyOutput:
        """Normalised image [B, H, W, 3] -> RegProxyOutput. `slices`: see
        # `vit_backbone.in_slices`."""
        # With M = L the early map is the normalised one, as in the released code.
        early_level = (
            "norm"
            if self.early_block == self.backbone.depth - 1
            else ("embedded" if self.early_block < 0 else f"block_{self.early_block}")
        )

        def two_levels(backbone: ViT, image: Array, scale: Array | None) -> tuple[Array, Array]:
            levels = backbone(image, scale)
            return levels[early_level], levels["norm"]

        early, last = in_slices(two_levels, self.backbone, image, branch_scale, slices)
        association, region_scores = self.head(early, last, train)
        return RegProxyOutput(early, last, association, region_scores)


class ProxyHead(nn.Module):
    """Association from the early map, class scores from the last one (Sec. 3.2 and 3.3)."""

    classes: int
    region: Size
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, early: Array, last: Array, train: bool) -> tuple[Array, Array]:
        """Two maps [B, Ht, Wt, C] -> association [B, Ht, Wt, 9, h, w], region scores [B, Ht, Wt,
        K]."""
        affinity = AffinityHead(
            9 * self.region[0] * self.region[1], dtype=self.dtype, name="affinity"
        )
        association = painting.associate(affinity(early, train).astype(jnp.float32), self.region)
        classifier = nn.Dense(
            self.classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            name="classifier",
        )
        return association, classifier(last).astype(jnp.float32)


class AffinityHead(nn.Module):
    """Depthwise 3x3, pointwise, 1x1; batch norm and ReLU after the first two. [B, Ht, Wt, C] -> [B,
    Ht, Wt, features]."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        x = x.astype(self.dtype)
        x = DepthwiseConv(3, dtype=self.dtype, name="depthwise")(x)
        x = relu(BatchNorm(dtype=self.dtype, name="depthwise_norm")(x, train))
        x = nn.Dense(
            x.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=he_fan_out, name="pointwise"
        )(x)
        x = relu(BatchNorm(dtype=self.dtype, name="pointwise_norm")(x, train))
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=he_fan_out, name="logits")(x)


# --------------------------------------------------------------------------------------------------
# The loss (Sec. 3.4) and the prediction


def loss(outputs: RegProxyOutput, labels: Array, over: str = "all") -> tuple[Array, Scalars]:
    """Cross entropy of the painted scores at label resolution. There is none on the association: it
    learns through painting.

    Args:
        labels: [B, H, W], IGNORE where unlabelled.
        over: see `pixel_cross_entropy`.
    """
    return pixel_cross_entropy(outputs.scores, labels, over)


def predict(outputs: RegProxyOutput, image_size: Size) -> Semantic:
    """Labels at (height, width), painted scores [B, Ht*h, Wt*w, K] and, per cell, the token it
    belongs to most."""
    return Semantic(
        labels=painting.painted_labels(outputs.region_scores, outputs.association, image_size),
        scores=outputs.scores,
        regions=painting.owner_regions(outputs.association),
    )


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`."""

    module: RegProxy
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    loss_over: str = "all"

    @property
    def classes(self) -> int:
        return self.module.classes

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, normalised_image(batch, self.mean, self.std))

    def outputs(
        self, variables: Variables, batch: Batch, rng: Array | None = None, microbatches: int = 1
    ) -> tuple[RegProxyOutput, Variables]:
        """All that the network says; in training mode if there is an rng. Also the new
        non-parameter variables."""
        image = normalised_image(batch, self.mean, self.std)
        if rng is None:
            return self.module.apply(variables, image), {}
        backbone = self.module.backbone
        scale = drop_path_scale(rng, backbone.drop_path, backbone.depth, image.shape[0])
        return self.module.apply(
            variables, image, True, scale, microbatches, mutable=["batch_stats"]
        )

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        outputs, mutated = self.outputs(variables, batch, rng, microbatches)
        value, scalars = loss(outputs, batch["semantic"], self.loss_over)
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        outputs, _ = self.outputs(variables, batch)
        return predict(outputs, batch["image"].shape[1:3])


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, int] = "vit_ti16",
    image_size: Size = (512, 512),
    early_block: int = 4,
    region: Size = (4, 4),
    distilled: bool = False,
    drop_path: float = 0.1,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    scan: bool = False,
    loss_over: str = "all",
) -> System:
    """RegProxy from plain values.

    Args:
        classes: K.
        backbone: see `vit_backbone.make_vit`.
        image_size: pixels that the position embedding belongs to: the training crop.
        early_block: -1 .. depth - 1.
        region: cells per token.
        distilled: DeiT weights with their second extra token.
        drop_path: rate of stochastic depth in the last block.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the computation; parameters, statistics, softmax and loss stay float32.
        remat: recompute each block in the backward pass; scan: compile the blocks once.
        loss_over: "all" or "valid", the loss denominator.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    vit = make_vit(
        backbone,
        image_size,
        distilled=distilled,
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
        scan=scan,
    )
    if not -1 <= early_block < vit.depth:
        raise SegjaxError(
            f"config.model.early_block: {early_block} is not a block of {vit.depth}; take -1 .. "
            f"{vit.depth - 1}."
        )
    module = RegProxy(vit, classes, early_block, tuple(region), dtype=jnp.dtype(dtype))
    return System(module, tuple(mean), tuple(std), loss_over)
