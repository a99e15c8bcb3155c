"""The pilot experiment of RegProxy: a ViT that classifies off-line superpixels instead of patches.

An image is cut into regions by a method that knows nothing of classes: SLIC, or plain squares to
compare with. A region is described by the mean of the last tokens over its pixels and classified by
one linear layer; its target is the shares of its pixels per class (Zhang et al., CVPR 2022, Eq. 1),
and all its pixels get its scores.

This is a re-design, not a reproduction: the paper gives Eq. 1 and two rows of numbers, and no code
was published. The number of superpixels (one per token), their compactness, how tokens become
region embeddings, the loss and the treatment of unlabelled pixels are ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.vit import ViT, drop_path_scale
from segjax.errors import SegjaxError
from segjax.ops import dense, superpixels
from segjax.structs import Array, Batch, Scalars, Semantic, Size, Variables
from segjax.systems.linear_vit import LinearHead
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image
from segjax.systems.vit_backbone import in_slices, make_vit

Dtype = Any

# --------------------------------------------------------------------------------------------------
# The regions


@dataclasses.dataclass(frozen=True)
class Cut:
    """How an image is cut into regions, one for each cell of a grid.

    Attributes:
        method: "slic" or "square".
        side: pixels of a cell's side.
        compactness, iterations: see `superpixels.slic`.
        mean, std: that the image was normalised with.
    """

    method: str
    side: int
    compactness: float
    iterations: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def grid(self, size: Size) -> Size:
        return -(-size[0] // self.side), -(-size[1] // self.side)

    def regions(self, image: Array) -> Array:
        """Normalised image [B, H, W, 3] -> int32 [B, H, W] in 0..N-1, N the cells of the grid."""
        batch, *size, _ = image.shape
        grid = self.grid(size)
        if self.method == "square":
            return jnp.broadcast_to(superpixels.square_regions(size, grid), (batch, *size))
        # An off-line method sees the grey levels of a file.
        levels = jnp.round(image * jnp.asarray(self.std) + jnp.asarray(self.mean))
        return superpixels.slic(
            levels, grid, compactness=self.compactness, iterations=self.iterations
        )


# --------------------------------------------------------------------------------------------------
# The model


@flax.struct.dataclass
class SuperpixelOutput:
    """Attributes:
    regions: int32 [B, H, W] in 0..N-1.
    region_scores: [B, N, K] float32 logits; those of an empty region mean nothing.
    """

    regions: Array
    region_scores: Array


class SuperpixelViT(nn.Module):
    """The linear baseline on regions; it has the same parameters."""

    backbone: ViT
    classes: int
    cut: Cut
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.head = LinearHead(self.classes, dtype=self.dtype)

    def __call__(
        self, image: Array, train: bool = False, branch_scale: Array | None = None, slices: int = 1
    ) -> SuperpixelOutput:
        """Normalised image [B, H, W, 3] -> SuperpixelOutput. `slices`: see
        `vit_backbone.in_slices`."""

        def regions_of(_: ViT, image: Array, __: None) -> Array:
            return self.cut.regions(image)

        def last(backbone: ViT, image: Array, scale: Array | None) -> Array:
            return backbone(image, scale)["norm"]

        regions = in_slices(regions_of, self.backbone, image, None, slices)
        tokens = in_slices(last, self.backbone, image, branch_scale, slices)
        count = math.prod(self.cut.grid(image.shape[1:3]))
        return SuperpixelOutput(regions, self.head(superpixels.region_mean(tokens, regions, count)))


# --------------------------------------------------------------------------------------------------
# The loss and the prediction


def loss(outputs: SuperpixelOutput, labels: Array, over: str = "all") -> tuple[Array, Scalars]:
    """Cross entropy of every region with the shares of its pixels per class, weighted by how many
    of them are labelled; a region without any drops out.

    It equals the cross entropy of the painted scores pixel by pixel, so `over` and `accuracy` mean
    what they mean in `pixel_cross_entropy`, and no tensor of pixels and classes is made.

    Args:
        labels: [B, H, W], IGNORE where unlabelled.
        over: "all" or "valid", the denominator.
    """
    scores = outputs.region_scores
    shares, labelled = superpixels.region_distribution(outputs.regions, labels, *scores.shape[1:])
    losses = -(shares * jax.nn.log_softmax(scores)).sum(axis=-1)
    right = jnp.take_along_axis(shares, scores.argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    pixels = float(labels.size)
    count = {"all": pixels, "valid": labelled.sum().clip(1)}[over]
    accuracy = 100.0 * (labelled * right).sum() / pixels
    return (labelled * losses).sum() / count, {"accuracy": accuracy}


def predict(outputs: SuperpixelOutput, stride: int = 1) -> Semantic:
    """Paints every region with its scores.

    Args:
        stride: pixels along the side of a square that shares one score, their mean. Only 1 keeps
            regions whole; more take less memory by its square.
    """
    scores, regions = outputs.region_scores, outputs.regions
    if stride == 1:
        labels = superpixels.paint_regions(dense.best_class(scores)[1], regions)
        return Semantic(labels, superpixels.paint_regions(scores, regions), regions)
    height, width = regions.shape[1:]
    beyond = ((0, 0), (0, -height % stride), (0, -width % stride))
    regions = jnp.pad(regions, beyond, mode="edge")
    covers = regions.shape[1:]
    offsets = [(i, j) for i in range(stride) for j in range(stride)]
    painted = (
        superpixels.paint_regions(scores, regions[:, i::stride, j::stride]) for i, j in offsets
    )
    scores = sum(painted) / len(offsets)
    labels = dense.resize_argmax(scores, covers)[:, :height, :width]
    middle = regions[:, stride // 2 :: stride, stride // 2 :: stride]
    return Semantic(labels, scores, middle, covers)


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`."""

    module: SuperpixelViT
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    loss_over: str = "all"
    score_stride: int = 1

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
        outputs = self.module.apply(variables, image, True, scale, microbatches)
        value, scalars = loss(outputs, batch["semantic"], self.loss_over)
        return value, (scalars, {})

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        image = normalised_image(batch, self.mean, self.std)
        return predict(self.module.apply(variables, image), self.score_stride)


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, int] = "vit_ti16",
    image_size: Size = (512, 512),
    regions: str = "slic",
    region_side: int | None = None,
    compactness: float = 10.0,
    iterations: int = 10,
    distilled: bool = False,
    drop_path: float = 0.1,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    scan: bool = False,
    loss_over: str = "all",
    score_stride: int = 1,
) -> System:
    """The pilot's model from plain values; other fields mean what they mean in `regproxy.build`.

    Args:
        classes: K.
        backbone: see `vit_backbone.make_vit`.
        image_size: pixels that the position embedding belongs to: the training crop.
        regions: "slic" or "square".
        region_side: there is one region for every square of so many pixels a side, by default
            for every token.
        compactness, iterations: of SLIC, see `superpixels.slic`.
        score_stride: pixels per predicted score along each axis. With 1 a window has full-size
            scores (157 MB of 512 x 512 pixels and 150 classes), and labels are those of the
            regions. With s the memory is s * s times smaller, for labels that follow the edges of
            regions less closely: for evaluation at many scales.

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
    if regions not in ("slic", "square"):
        raise SegjaxError(f"config.model.regions: there are no '{regions}'; take slic or square.")
    side = vit.patch if region_side is None else region_side
    for name, value, least in (
        ("region_side", side, 1),
        ("iterations", iterations, 0),
        ("score_stride", score_stride, 1),
    ):
        if value < least:
            raise SegjaxError(f"config.model.{name}: it is {value}; take {least} or more.")
    if score_stride > side:
        raise SegjaxError(
            f"config.model.score_stride: {score_stride} is more than a region's {side} pixels; take"
            " less."
        )
    cut = Cut(regions, side, compactness, iterations, tuple(mean), tuple(std))
    module = SuperpixelViT(vit, classes, cut, dtype=jnp.dtype(dtype))
    return System(module, tuple(mean), tuple(std), loss_over, score_stride)
