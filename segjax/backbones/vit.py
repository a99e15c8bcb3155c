"""The vision transformer (Dosovitskiy et al., ICLR 2021; DeiT, Touvron et al., ICML 2021),
pre-norm, with class token.

Facts of the released segmentation models (norm epsilon, resize flavour, token order) follow
YiF-Zhang/RegionProxy on mmsegmentation 0.17; what differs between code bases is a field.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import LayerNorm
from segjax.ops import resize
from segjax.ops.attention import attention, attention_with_dropout
from segjax.structs import Array, Size

Dtype = Any

VARIANTS = {
    "vit_ti16": dict(width=192, depth=12, heads=3, patch=16),
    "vit_s16": dict(width=384, depth=12, heads=6, patch=16),
    "vit_b16": dict(width=768, depth=12, heads=12, patch=16),
    "vit_l16": dict(width=1024, depth=24, heads=16, patch=16),
}

dense_init = nn.initializers.xavier_uniform()
token_init = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
    """Image to tokens to maps.

    Attributes:
        width, depth, heads: C, number of blocks, attention heads (head size C / heads).
        patch: side of the square of pixels that one token stands for.
        image_size: (height, width) in pixels that the position embedding belongs to.
        distilled: a second extra token after the class token (DeiT).
        norm_epsilon: 1e-6 in timm, mmsegmentation and RegProxy; 1e-5 in Segmenter.
        position_resize: "bicubic" (RegProxy) or "bilinear" (Segmenter, SETR).
        final_norm: normalise the last block's output; False (SETR) leaves that to the heads.
        drop_class_token: the extra tokens leave after the position embedding, before block 0
            (SETR-MLA).
        stem: a convolution network applied to the image before the patch embedding (hybrids); its
            stride times the embedding's 1x1 kernel makes `patch`.
        drop_path: rate of stochastic depth in the last block; block i of L has rate * i / (L - 1).
        scan: run the blocks as one `lax.scan` (shorter compile). Parameters keep their layout and
            are stacked on the fly, which costs one copy of them.
        remat: keep only each block's input for the backward pass.
    """

    width: int
    depth: int
    heads: int
    patch: int
    image_size: Size
    distilled: bool = False
    norm_epsilon: float = 1e-6
    position_resize: str = "bicubic"
    final_norm: bool = True
    drop_class_token: bool = False
    stem: nn.Module | None = None
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32
    scan: bool = False
    remat: bool = False

    @property
    def extra_tokens(self) -> int:
        return 2 if self.distilled else 1

    @property
    def grid(self) -> Size:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @nn.compact
    def __call__(self, image: Array, branch_scale: Array | None = None) -> dict[str, Array]:
        """All levels of one batch.

        Args:
            image: [B, H, W, 3], normalised. A plain ViT zero-pads it bottom/right to a multiple of
                the patch.
            branch_scale: [depth, 2, B] factor of each residual branch (see `drop_path_scale`); None
                means 1.

        Returns:
            "tokens" [B, extra + N, C]: the last tokens, after the final norm if there is one. All
            else are maps [B, Ht, Wt, C] without the extra tokens: "embedded" (after the position
            embedding), "block_i" (the un-normalised residual stream after block i) and, with a
            final norm, "norm".
        """
        x = image.astype(self.dtype)
        if self.stem is None:
            x = resize.pad_to_multiple(x, self.patch)
            kernel = self.patch
        else:
            x = self.stem(x)
            kernel = 1
        x = PatchEmbed(self.width, kernel, dtype=self.dtype, name="patch_embed")(x)
        batch, rows, cols, channels = x.shape
        x = x.reshape(batch, rows * cols, channels)

        extra = [self.param("cls_token", token_init, (1, 1, channels), jnp.float32)]
        if self.distilled:
            extra.append(self.param("dist_token", token_init, (1, 1, channels), jnp.float32))
        position = self.param(
            "pos_embed",
            token_init,
            (1, len(extra) + self.grid[0] * self.grid[1], channels),
            jnp.float32,
        )
        # Officially only a different token COUNT triggers the resize: 256x1024 in a 512x512 model
        # does not.
        if position.shape[1] != len(extra) + rows * cols:
            position = resize_position(
                position, self.grid, (rows, cols), len(extra), method=self.position_resize
            )
        tokens = [jnp.broadcast_to(t.astype(self.dtype), (batch, 1, channels)) for t in extra]
        x = jnp.concatenate([*tokens, x], axis=1) + position.astype(self.dtype)
        if self.drop_class_token:
            x = x[:, len(extra) :]

        def as_map(tokens: Array) -> Array:
            return tokens[:, -rows * cols :].reshape(batch, rows, cols, channels)

        levels = {"embedded": as_map(x)}
        if branch_scale is None:
            branch_scale = jnp.ones((self.depth, 2, batch), self.dtype)
        if self.scan and not self.is_initializing():
            x, streams = self.scan_blocks(x, branch_scale)
            levels |= {f"block_{i}": as_map(streams[i]) for i in range(self.depth)}
        else:
            block = nn.remat(Block) if self.remat else Block
            for i in range(self.depth):
                x = block(**self.block_fields, name=f"block_{i}")(x, branch_scale[i])
                levels[f"block_{i}"] = as_map(x)
        if not self.final_norm:
            return levels | {"tokens": x}
        x = LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm")(x)
        return levels | {"norm": as_map(x), "tokens": x}

    @property
    def block_fields(self) -> dict[str, Any]:
        return dict(heads=self.heads, norm_epsilon=self.norm_epsilon, dtype=self.dtype)

    def scan_blocks(self, x: Array, branch_scale: Array) -> tuple[Array, Array]:
        params = self.variables["params"]
        stacked = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(params[f"block_{i}"] for i in range(self.depth))
        )
        block = Block(**self.block_fields, parent=None)

        def step(x: Array, inputs: tuple[Any, Array]) -> tuple[Array, Array]:
            x = block.apply({"params": inputs[0]}, x, inputs[1])
            return x, x

        return jax.lax.scan(
            jax.checkpoint(step) if self.remat else step, x, (stacked, branch_scale)
        )


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map. [B, H, W, c] -> [B, H/patch, W/patch, C]."""

    features: int
    patch: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p, (batch, height, width, channels) = self.patch, x.shape
        fan_in = p * p * channels
        kernel = self.param(
            "kernel",
            nn.initializers.truncated_normal(fan_in**-0.5),
            (p, p, channels, self.features),
            jnp.float32,
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.reshape(batch, height // p, p, width // p, p, channels)
        return jnp.einsum("bhpwqc,pqcf->bhwf", x, kernel.astype(self.dtype)) + bias.astype(
            self.dtype
        )


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)). [B, N, C] -> [B, N, C].

    `dropout` acts on the attention weights and after each linear layer but the first of the
    attention (timm), and only where an rng named "dropout" is given.
    """

    heads: int
    norm_epsilon: float
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, branch_scale: Array) -> Array:
        chex.assert_shape(branch_scale, (2, x.shape[0]))
        norm = functools.partial(LayerNorm, self.norm_epsilon, dtype=self.dtype)
        keep = branch_scale.astype(x.dtype)[:, :, None, None]
        attend = Attention(self.heads, self.dropout, dtype=self.dtype, name="attention")
        x = x + keep[0] * attend(norm(name="norm1")(x))
        mlp = Mlp(4 * x.shape[-1], self.dropout, dtype=self.dtype, name="mlp")
        return x + keep[1] * mlp(norm(name="norm2")(x))


class Attention(nn.Module):
    """Multi-head self-attention with one fused, biased projection to queries, keys and values."""

    heads: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        head_size = x.shape[-1] // self.heads
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=dense_init)
        qkv = dense((3, self.heads, head_size), name="qkv")(x)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.dropout and self.has_rng("dropout"):
            mixed = attention_with_dropout(
                query, key, value, self.dropout, self.make_rng("dropout")
            )
        else:
            mixed = attention(query, key, value)
        return drop(self, dense(x.shape[-1], axis=(-2, -1), name="proj")(mixed))


class Mlp(nn.Module):
    hidden: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=dense_init)
        hidden = drop(self, nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False))
        return drop(self, dense(x.shape[-1], name="fc2")(hidden))


def drop(module: nn.Module, x: Array) -> Array:
    """Dropout at the rate `module.dropout` where an rng named "dropout" is given, else x."""
    if not module.dropout or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - module.dropout, x.shape)
    return jnp.where(keep, x / (1.0 - module.dropout), 0).astype(x.dtype)


def drop_path_scale(rng: Array, rate: float, depth: int, batch: int) -> Array:
    """Stochastic depth (Huang et al., ECCV 2016) drawn for the whole batch at once: [depth, 2, B].

    Branch j of block i is kept with probability 1 - rate * i / (depth - 1) and then scaled by its
    inverse. Drawing ahead makes the result independent of how the batch is later sliced or sharded.
    """
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None, None]
    return jax.random.bernoulli(rng, keep, (depth, 2, batch)) / keep


def resize_position(
    position: Array, old_grid: Size, new_grid: Size, extra_tokens: int, method: str = "bicubic"
) -> Array:
    """A position embedding for another token grid: [1, extra + h*w, C] -> [1, extra + h'*w', C].

    Extra tokens pass through; the grid part is resized as torch does (align_corners False, no
    antialias).
    """
    extra, grid = position[:, :extra_tokens], position[:, extra_tokens:]
    chex.assert_axis_dimension(grid, 1, old_grid[0] * old_grid[1])
    interpolate = {"bicubic": resize.bicubic, "bilinear": resize.bilinear}[method]
    grid = interpolate(grid.reshape(1, *old_grid, -1), new_grid)
    return jnp.concatenate([extra, grid.reshape(1, new_grid[0] * new_grid[1], -1)], axis=1)
