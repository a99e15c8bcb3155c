"""What the systems on a ViT share: from config values to the backbone, and running it in slices of
the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones import vit, vit_hybrid
from segjax.errors import SegjaxError
from segjax.structs import Array, Size


def make_vit(
    backbone: str | Mapping[str, int],
    image_size: Size,
    *,
    distilled: bool,
    drop_path: float,
    dtype: str,
    remat: bool,
    scan: bool,
    norm_epsilon: float = 1e-6,
    position_resize: str = "bicubic",
    final_norm: bool = True,
    drop_class_token: bool = False,
) -> vit.ViT:
    """A ViT by its name ("vit_ti16", "vit_r26_s32", ...) or by its numbers.

    Args:
        backbone: a name of `vit.VARIANTS` or `vit_hybrid.VARIANTS`, or {"width", "depth", "heads",
            "patch"}.
        image_size: (height, width) in pixels that the position embedding belongs to.
        distilled, drop_path, dtype, remat, scan, norm_epsilon, position_resize, final_norm,
        drop_class_token: see `vit.ViT`.

    Raises:
        SegjaxError: the name is unknown, or the numbers don't fit.
    """
    known = vit.VARIANTS | vit_hybrid.VARIANTS
    if isinstance(backbone, str):
        if backbone not in known:
            raise SegjaxError(
                f"config.model.backbone: '{backbone}' is not a known backbone; "
                f"take one of {', '.join(known)}, or width, depth, heads and patch."
            )
        shape = dict(known[backbone])
    else:
        shape = dict(backbone)
        if set(shape) != {"width", "depth", "heads", "patch"}:
            raise SegjaxError(
                f"config.model.backbone: {sorted(shape)} given, but a backbone of your own is "
                "described by exactly width, depth, heads and patch."
            )
    if shape["width"] % shape["heads"]:
        raise SegjaxError(
            f"config.model.backbone: width {shape['width']} is not divisible by heads "
            f"{shape['heads']}."
        )
    image_size = tuple(image_size)
    if any(side % shape["patch"] for side in image_size):
        raise SegjaxError(
            f"config.model.image_size: {image_size} is not a multiple of the patch, "
            f"{shape['patch']}."
        )
    compute = jnp.dtype(dtype)
    stem_depths = shape.pop("stem_depths", None)
    stem = vit_hybrid.ResNetStem(stem_depths, dtype=compute) if stem_depths else None
    return vit.ViT(
        **shape,
        image_size=image_size,
        distilled=distilled,
        stem=stem,
        drop_path=drop_path,
        dtype=compute,
        remat=remat,
        scan=scan,
        norm_epsilon=norm_epsilon,
        position_resize=position_resize,
        final_norm=final_norm,
        drop_class_token=drop_class_token,
    )


def in_slices(
    apply: Callable[[nn.Module, Array, Array | None], Any],
    backbone: nn.Module,
    image: Array,
    branch_scale: Array | None,
    slices: int,
) -> Any:
    """Runs a network that treats images one by one on slices of the batch, one after another.

    Only the results and the inputs are kept; the backward pass computes each slice again. So a
    batch of any size trains in the memory of one slice, and whatever follows (batch norm, loss)
    still sees the whole batch.

    Args:
        apply: (backbone, image, branch_scale) -> tree of arrays with a leading batch axis.
        image: [B, ...].
        branch_scale: [depth, 2, B] or None.
        slices: how many; divides B.

    Returns:
        What `apply` gives for the whole batch.
    """
    if slices == 1:
        return apply(backbone, image, branch_scale)
    batch = image.shape[0]
    if batch % slices:
        raise SegjaxError(
            f"config.accumulate: {slices} slices do not divide the batch of {batch}; change either."
        )

    def split(
        x: Array,
    ) -> Array:  # slice k takes images k, k+slices, ...: every device keeps its own images
        return x.reshape(batch // slices, slices, *x.shape[1:]).swapaxes(0, 1)

    def merge(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(batch, *x.shape[2:])

    def body(backbone: nn.Module, _: None, inputs: tuple[Array, Array | None]) -> tuple[None, Any]:
        image, scale = inputs
        return None, apply(backbone, image, None if scale is None else scale.transpose(1, 2, 0))

    run = nn.scan(
        nn.remat(body, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False}
    )
    scale = None if branch_scale is None else split(branch_scale.transpose(2, 0, 1))
    _, outputs = run(backbone, None, (split(image), scale))
    return jax.tree.map(merge, outputs)
