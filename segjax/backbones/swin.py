"""The Swin Transformer (Liu et al., ICCV 2021) as a backbone of dense prediction.

Facts follow the authors' detection code, which Mask2Former and MaskFormer use: maps are padded to
whole windows, padding is attended to, and the shift stays even where the map is one window.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.backbones.layers import LayerNorm
from segjax.backbones.vit import Mlp, PatchEmbed, dense_init, token_init
from segjax.ops import resize
from segjax.structs import Array, Size

Dtype = Any

VARIANTS = {
    "swin_t": dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
    "swin_s": dict(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), window=7),
    "swin_b": dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12),
    "swin_l": dict(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
}

PATCH = 4
EPSILON = 1e-5
"""Of every layer norm."""

MASKED = -100.0
"""Added to the logits between regions that the shift brings into one window. Officially it is no
infinity."""


class Swin(nn.Module):
    """Image to maps at strides 4, 8, 16 and 32.

    Attributes:
        width: channels of the first stage, doubled from stage to stage.
        depths, heads: blocks and attention heads of each stage.
        window: side of the windows, in tokens.
        drop_path: rate of stochastic depth in the last block; block i of L has rate i / (L - 1) of
            it (see `vit.drop_path_scale`).
        remat: keep only each block's input for the backward pass.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array, branch_scale: Array | None = None) -> dict[str, Array]:
        """All levels of one batch.

        Args:
            image: [B, H, W, 3], normalised; zero-padded bottom/right to a multiple of 4.
            branch_scale: [sum(depths), 2, B] factor of each residual branch (see
                `vit.drop_path_scale`); None means 1.

        Returns:
            "res2".."res5": the normalised output of each stage, [B, H/4, W/4, C], ...,
            [B, H/32, W/32, 8C], every halving rounded up.
        """
        x = resize.pad_to_multiple(image.astype(self.dtype), PATCH)
        x = PatchEmbed(self.width, PATCH, dtype=self.dtype, name="patch_embed")(x)
        x = LayerNorm(EPSILON, dtype=self.dtype, name="patch_norm")(x)
        if branch_scale is None:
            branch_scale = jnp.ones((sum(self.depths), 2, image.shape[0]), self.dtype)
        chex.assert_shape(branch_scale, (sum(self.depths), 2, image.shape[0]))
        levels = {}
        start = 0
        for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            last = i == len(self.depths) - 1
            out, x = Stage(
                depth, heads, self.window, not last, self.dtype, self.remat, name=f"stage_{i}"
            )(x, branch_scale[start : start + depth])
            levels[f"res{i + 2}"] = LayerNorm(EPSILON, dtype=self.dtype, name=f"norm{i}")(out)
            start += depth
        return levels


class Stage(nn.Module):
    """`depth` blocks, every second one shifted, then perhaps patch merging.

    [B, H, W, C] and its branch scales [depth, 2, B] -> the blocks' output [B, H, W, C], and what
    goes on: [B, ceil(H/2), ceil(W/2), 2C], or the same without `downsample`.
    """

    depth: int
    heads: int
    window: int
    downsample: bool
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, branch_scale: Array) -> tuple[Array, Array]:
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            shift = self.window // 2 if i % 2 else 0
            x = block(self.heads, self.window, shift, self.dtype, name=f"block_{i}")(
                x, branch_scale[i]
            )
        if not self.downsample:
            return x, x
        return x, PatchMerging(self.dtype, name="downsample")(x)


class Block(nn.Module):
    """x + attention(norm1(x)) in windows, then x + mlp(norm2(x)). [B, H, W, C] -> [B, H, W, C].

    Attributes:
        shift: how far the windows are moved down and right, in tokens.
    """

    heads: int
    window: int
    shift: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, branch_scale: Array) -> Array:
        norm = functools.partial(LayerNorm, EPSILON, dtype=self.dtype)
        keep = branch_scale.astype(x.dtype)[:, :, None, None, None]
        x = x + keep[0] * self.attend(norm(name="norm1")(x))
        mlp = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")
        return x + keep[1] * mlp(norm(name="norm2")(x))

    def attend(self, x: Array) -> Array:
        """Attention within windows of the padded, shifted map."""
        height, width = x.shape[1:3]
        # Padding follows the norm: its tokens are zeros, whose keys and values are the biases.
        padded = resize.pad_to_multiple(x, self.window)
        size = padded.shape[1:3]
        if self.shift:
            padded = jnp.roll(padded, (-self.shift, -self.shift), (1, 2))
        regions = shift_regions(size, self.window, self.shift) if self.shift else None
        windows = WindowAttention(self.heads, self.window, self.dtype, name="attention")(
            to_windows(padded, self.window), regions
        )
        x = from_windows(windows, size, self.window)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, with a learned bias per relative position.

    [B, windows, window*window, C] -> the same. `regions` [windows, window*window]: tokens of
    different numbers don't see each other; None lets all see each other.
    """

    heads: int
    window: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, regions: np.ndarray | None) -> Array:
        head_size = x.shape[-1] // self.heads
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=dense_init)
        table = self.param(
            "relative_position_bias_table",
            token_init,
            ((2 * self.window - 1) ** 2, self.heads),
            jnp.float32,
        )
        bias = jnp.moveaxis(table[relative_positions(self.window)], -1, 0)  # [heads, N, N]
        qkv = dense((3, self.heads, head_size), name="qkv")(x)
        query, key, value = (qkv[:, :, :, i] for i in range(3))
        logits = jnp.einsum(
            "bwnhd,bwmhd->bwhnm",
            query * head_size**-0.5,
            key,
            preferred_element_type=jnp.float32,
        )
        logits = logits + bias
        if regions is not None:
            # Compared on the device: the mask itself would be a large constant.
            regions = jnp.asarray(regions)[:, None]
            apart = regions[..., :, None] != regions[..., None, :]
            logits = logits + jnp.where(apart, MASKED, 0.0)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bwhnm,bwmhd->bwnhd", weights, value)
        return dense(x.shape[-1], axis=(-2, -1), name="proj")(mixed)


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens become one of twice the channels. [B, H, W, C] -> [B, ceil(H/2),
    ceil(W/2), 2C]."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = resize.pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Officially the row changes faster: (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=dense_init)
        return dense(2 * channels, use_bias=False, name="reduction")(x)


def to_windows(x: Array, window: int) -> Array:
    """[B, H, W, C] -> [B, windows, window*window, C], both row-major; H and W are multiples."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, channels)


def from_windows(x: Array, size: Size, window: int) -> Array:
    """The map [B, *size, C] that `to_windows` took apart."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, size[0] // window, size[1] // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, *size, channels)


# --------------------------------------------------------------------------------------------------
# Host: what depends on sizes alone


def relative_positions(window: int) -> np.ndarray:
    """Which row of the bias table a query (axis 0) and a key (axis 1) of a window share.

    [window*window, window*window] int32, row-major tokens: (dy + window - 1) * (2 window - 1) +
    (dx + window - 1) of dy, dx = query - key.
    """
    row, col = np.divmod(np.arange(window * window, dtype=np.int32), window)
    dy, dx = (axis[:, None] - axis[None, :] + window - 1 for axis in (row, col))
    return dy * (2 * window - 1) + dx


def shift_regions(size: Size, window: int, shift: int) -> np.ndarray:
    """Which of nine regions each token of a shifted map belongs to: [windows, window*window] int8.

    Only tokens of one region were neighbours before the shift.
    """
    row, col = (
        (np.arange(n) >= n - window).astype(np.int8) + (np.arange(n) >= n - shift) for n in size
    )
    regions = 3 * row[:, None] + col[None, :]
    return to_windows(regions[None, :, :, None], window)[0, :, :, 0]
