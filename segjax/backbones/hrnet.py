"""HRNetV2 (Wang, Sun, Cheng et al., TPAMI 2020): branches of several resolutions side by side that
tell each other what they see.

Facts follow open-mmlab/mmsegmentation; openseg-group/openseg.pytorch differs in how branches are
enlarged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import BatchNorm, Conv, relu
from segjax.backbones.resnet import Bottleneck
from segjax.ops import resize
from segjax.structs import Array

Dtype = Any

VARIANTS = {
    "hrnet_w18": dict(width=18),
    "hrnet_w48": dict(width=48),
}


class HRNet(nn.Module):
    """Image to maps at strides 4, 8, 16 and 32.

    Attributes:
        width: channels of the finest branch, doubled from branch to branch.
        stem: channels of the stem, and inner channels of the first stage's bottlenecks.
        modules: of each stage after the first; stage i + 2 has i + 2 branches.
        blocks: of each branch of a module, and bottlenecks of the first stage.
        fuse_align_corners: a branch is enlarged to the size of a finer one with corner pixels kept
            (openseg), instead of by its power of two with pixels as squares, and where that misses
            an odd size resized once more (mmsegmentation).
        remat: keep only each module's input for the backward pass.
    """

    width: int
    stem: int = 64
    modules: tuple[int, ...] = (1, 4, 3)
    blocks: int = 4
    fuse_align_corners: bool = False
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        """All branches of the last stage.

        Args:
            image: [B, H, W, 3], normalised.
            train: batch statistics.

        Returns:
            "branch_0".."branch_3": [B, H/4, W/4, width], ..., [B, H/32, W/32, 8 * width], every
            halving rounded up.
        """
        x = image.astype(self.dtype)
        for i in range(2):
            x = ConvNorm(self.stem, stride=2, dtype=self.dtype, name=f"stem_{i}")(x, train)
        for block in range(self.blocks):
            x = Bottleneck(
                inner=self.stem,
                stride=1,
                dilation=1,
                project=block == 0,
                norm=BatchNorm,
                dtype=self.dtype,
                name=f"layer1_{block}",
            )(x, train)
        module = nn.remat(Exchange, static_argnums=(2,)) if self.remat else Exchange
        branches = [x]
        for transition, count in enumerate(self.modules, 1):
            branches = self.with_coarser_branch(transition, branches, train)
            for m in range(count):
                branches = module(
                    self.blocks,
                    self.fuse_align_corners,
                    self.dtype,
                    name=f"stage{transition + 1}_{m}",
                )(branches, train)
        return {f"branch_{i}": branch for i, branch in enumerate(branches)}

    def with_coarser_branch(
        self, transition: int, branches: Sequence[Array], train: bool
    ) -> list[Array]:
        """The branches with the channels they need, and a new one from the coarsest."""
        result = []
        for i in range(len(branches) + 1):
            source = branches[min(i, len(branches) - 1)]
            features = self.width * 2**i
            if i == len(branches):
                conv = ConvNorm(
                    features, stride=2, dtype=self.dtype, name=f"new_branch{transition}_{i}"
                )
                result.append(conv(source, train))
            elif source.shape[-1] == features:
                result.append(source)
            else:
                conv = ConvNorm(features, dtype=self.dtype, name=f"transition{transition}_{i}")
                result.append(conv(source, train))
        return result


class Exchange(nn.Module):
    """Residual blocks on every branch by itself, then each branch becomes the sum of all.

    [B, h, w, c], [B, h/2, w/2, 2c], ... -> maps of the same shapes.
    """

    blocks: int
    fuse_align_corners: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, branches: Sequence[Array], train: bool) -> list[Array]:
        branches = list(branches)
        for i, k in itertools.product(range(len(branches)), range(self.blocks)):
            block = BasicBlock(self.dtype, name=f"branch_{i}_{k}")
            branches[i] = block(branches[i], train)
        fused = []
        for i, branch in enumerate(branches):
            terms = []
            for j, other in enumerate(branches):
                if j > i:
                    terms.append(self.enlarged(i, j, other, branch, train))
                else:
                    terms.append(self.shrunk(i, j, other, branch, train))
            fused.append(relu(sum(terms[1:], start=terms[0])))
        return fused

    def enlarged(self, i: int, j: int, coarse: Array, fine: Array, train: bool) -> Array:
        """Branch j with the shape of the finer branch i."""
        conv = ConvNorm(fine.shape[-1], 1, relu=False, dtype=self.dtype, name=f"fuse_{i}_{j}")
        x = conv(coarse, train)
        if not self.fuse_align_corners:
            x = resize.bilinear(x, (x.shape[1] * 2 ** (j - i), x.shape[2] * 2 ** (j - i)))
        return resize.bilinear(x, fine.shape[1:3], align_corners=self.fuse_align_corners)

    def shrunk(self, i: int, j: int, fine: Array, coarse: Array, train: bool) -> Array:
        """Branch j with the shape of the branch i, which is coarser or itself."""
        x = fine
        for k in range(i - j):
            last = k == i - j - 1
            features = coarse.shape[-1] if last else fine.shape[-1]
            conv = ConvNorm(
                features, stride=2, relu=not last, dtype=self.dtype, name=f"fuse_{i}_{j}_{k}"
            )
            x = conv(x, train)
        return x


class BasicBlock(nn.Module):
    """x + two 3x3 convolutions with batch norm, a ReLU after the first and after the sum.
    [B, H, W, C] -> [B, H, W, C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]
        y = ConvNorm(channels, dtype=self.dtype, name="conv_0")(x, train)
        y = ConvNorm(channels, relu=False, dtype=self.dtype, name="conv_1")(y, train)
        return relu(x + y)


class ConvNorm(nn.Module):
    """k x k convolution without bias, batch norm, perhaps ReLU. [B, H, W, c] ->
    [B, ceil(H / stride), ceil(W / stride), features]."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    relu: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        size, stride = self.kernel_size, self.stride
        conv = Conv(self.features, size, False, dtype=self.dtype, stride=stride, name="conv")
        x = BatchNorm(dtype=self.dtype, name="norm")(conv(x), train)
        return relu(x) if self.relu else x
