"""ResNets with bottlenecks (He et al., CVPR 2016) as detectron2 and mmsegmentation build them: the
stride lies in the 3x3 convolution, all padding is symmetric.

Facts follow facebookresearch/detectron2, "R101c" also the DeepLab stem of its projects, and
open-mmlab/mmsegmentation for "v1c" and "v1d" (He et al., "Bag of Tricks", CVPR 2019).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import Conv, FrozenBatchNorm, relu
from segjax.structs import Array

Dtype = Any
NormDef = Callable[..., nn.Module]

VARIANTS = {
    "resnet50": dict(width=64, depths=(3, 4, 6, 3)),
    "resnet101": dict(width=64, depths=(3, 4, 23, 3)),
    "resnet101c": dict(
        width=64, depths=(3, 4, 23, 3), deep_stem=True, last_stage_dilations=(1, 2, 4)
    ),
} | {
    f"{name}_{version}": dict(
        width=64, depths=depths, deep_stem=True, stem_width=32, pool_shortcut=version == "v1d"
    )
    for name, depths in (("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3)))
    for version in ("v1c", "v1d")
}

OUTPUT_STRIDE_8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
"""What makes a ResNet keep stride 8 from its second stage on (mmsegmentation's "d8")."""


class ResNet(nn.Module):
    """Image to maps at strides 4, 8, 16 and 32, or as `strides` says.

    Attributes:
        width: inner channels of the first stage, doubled from stage to stage; a stage gives four
            times its inner channels.
        depths: bottlenecks of each stage.
        norm: the normalisation after every convolution, called (dtype, name) and then
            (map, train): `FrozenBatchNorm` or `BatchNorm`.
        deep_stem: three 3x3 convolutions (DeepLab) instead of the one 7x7.
        stem_width: channels of a deep stem's first two convolutions, the third has twice as many;
            None means `width`.
        strides: of the first bottleneck of each stage.
        dilations: of the 3x3 convolutions of each stage; the first bottleneck of a dilated stage
            has half of it (mmsegmentation's contracted dilation).
        first_dilation: of the first bottleneck of every dilated stage, instead of half (1 in
            CascadePSP's and CRM's encoders, github.com/hkchengrex/CascadePSP).
        last_stage_dilations: of each bottleneck of the last stage, instead of the above (DeepLab's
            multi-grid).
        pool_shortcut: a shortcut with a stride takes means before its convolution ("v1d") instead
            of every other position.
        stem_levels: give the stem's maps too.
        remat: keep only each bottleneck's input for the backward pass.
    """

    width: int
    depths: tuple[int, ...]
    norm: NormDef = FrozenBatchNorm
    deep_stem: bool = False
    stem_width: int | None = None
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    first_dilation: int | None = None
    last_stage_dilations: tuple[int, ...] | None = None
    pool_shortcut: bool = False
    stem_levels: bool = False
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """All levels of one batch.

        Args:
            image: [B, H, W, 3], normalised; or with further channels.
            train: for `norm`.

        Returns:
            "res2".."res5" (as many as there are `depths`): [B, H/4, W/4, 4 * width], ...,
            [B, H/32, W/32, 32 * width] with the default strides, every halving rounded up; and at
            stride 2 "stem_conv" and "stem": the stem's last convolution before and after its norm
            and ReLU.
        """
        stem_conv, stem = self.stem(image.astype(self.dtype), train)
        x = nn.max_pool(stem, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pads with -infinity
        bottleneck = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        levels = {"stem_conv": stem_conv, "stem": stem} if self.stem_levels else {}
        for stage, depth in enumerate(self.depths):
            most = self.dilations[stage]
            first = max(most // 2, 1)
            if most > 1 and self.first_dilation is not None:
                first = self.first_dilation
            dilations = (first,) + (most,) * (depth - 1)
            if self.last_stage_dilations is not None and stage == len(self.depths) - 1:
                dilations = self.last_stage_dilations
            for block, dilation in zip(range(depth), dilations, strict=True):
                x = bottleneck(
                    inner=self.width * 2**stage,
                    stride=self.strides[stage] if block == 0 else 1,
                    dilation=dilation,
                    project=block == 0,
                    pool_shortcut=self.pool_shortcut,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"res{stage + 2}_{block}",
                )(x, train)
            levels[f"res{stage + 2}"] = x
        return levels

    def stem(self, x: Array, train: bool) -> tuple[Array, Array]:
        """[B, H, W, 3] -> [B, ceil(H/2), ceil(W/2), width], or twice `stem_width`: before and after
        the last norm and ReLU."""
        if self.deep_stem:
            width = self.stem_width or self.width
            layers = [
                ("stem_conv1", "stem_norm1", width, 3, 2),
                ("stem_conv2", "stem_norm2", width, 3, 1),
                ("stem_conv3", "stem_norm3", 2 * width, 3, 1),
            ]
        else:
            layers = [("stem_conv", "stem_norm", self.width, 7, 2)]
        for conv, norm, features, size, stride in layers:
            raw = Conv(features, size, False, dtype=self.dtype, stride=stride, name=conv)(x)
            x = relu(self.norm(dtype=self.dtype, name=norm)(raw, train))
        return raw, x


class Bottleneck(nn.Module):
    """1x1, 3x3 (with stride and dilation), 1x1 to four times `inner` channels, plus the shortcut;
    a norm after each convolution. `project` puts a 1x1 convolution with the stride into the
    shortcut; with `pool_shortcut` a mean over stride x stride positions has the stride there (at an
    odd border over those that exist)."""

    inner: int
    stride: int
    dilation: int
    project: bool
    norm: NormDef
    pool_shortcut: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(self.norm, dtype=self.dtype)
        inner, outer = self.inner, 4 * self.inner
        shortcut = x
        if self.project:
            # Other names for other places in the published files.
            name = "pooled_shortcut" if self.pool_shortcut else "shortcut"
            stride = self.stride
            if self.pool_shortcut:
                shortcut, stride = block_means(x, stride), 1
            shortcut = conv(outer, 1, stride=stride, name=name)(shortcut)
            shortcut = norm(name=f"{name}_norm")(shortcut, train)
        x = relu(norm(name="norm1")(conv(inner, 1, name="conv1")(x), train))
        x = conv(inner, 3, stride=self.stride, dilation=self.dilation, name="conv2")(x)
        x = relu(norm(name="norm2")(x, train))
        x = norm(name="norm3")(conv(outer, 1, name="conv3")(x), train)
        return relu(x + shortcut)


def block_means(x: Array, stride: int) -> Array:
    """torch's average pooling with kernel = stride, ceil mode, and a true count at the border.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C].
    """
    if stride == 1:
        return x
    window = (stride, stride)
    beyond = tuple((0, -side % stride) for side in x.shape[1:3])
    return nn.avg_pool(x, window, window, beyond, count_include_pad=False)
