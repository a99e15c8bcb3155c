"""What the systems that sharpen a coarse mask share: from the bytes of masks to numbers, and when a
mask counts as empty."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError
from segjax.structs import Array, Batch


def normalised_mask(batch: Batch) -> Array:
    """The coarse mask in float32 [B, H, W], -1 where there is nothing and 1 inside the object.

    Args:
        batch: `coarse_mask` uint8 [B, H, W], or float, taken as normalised already; `image_size`
            int32 [B, 2] (height, width) of the real pixels in the top left corner, optional;
            outside there is nothing.
    """
    mask = batch["coarse_mask"]
    if not jnp.issubdtype(mask.dtype, jnp.floating):
        mask = (mask.astype(jnp.float32) / 255.0 - 0.5) / 0.5
    if "image_size" not in batch:
        return mask
    size = batch["image_size"]
    rows = jnp.arange(mask.shape[1])[None, :] < size[:, :1]
    cols = jnp.arange(mask.shape[2])[None, :] < size[:, 1:]
    return jnp.where(rows[:, :, None] & cols[:, None, :], mask, -1.0)


def truth(batch: Batch) -> Array:
    """`mask` in float32 [B, H, W], 0..1 and grey where it was grey.

    Args:
        batch: `mask` uint8 [B, H, W], or float, taken as 0..1 already.
    """
    mask = batch["mask"]
    if jnp.issubdtype(mask.dtype, jnp.floating):
        return mask
    return mask.astype(jnp.float32) / 255.0


def is_empty(mask: np.ndarray) -> bool:
    """Whether the official scripts answer a mask with nothing: all its pixels together are less
    than one of the object. `mask`: uint8 [H, W]."""
    return int(mask.sum(dtype=np.int64)) < 255


def check_whole_batch(microbatches: int) -> None:
    """Raises:
    SegjaxError: `microbatches` is above 1: batch norm in every layer couples all images.
    """
    if microbatches > 1:
        raise SegjaxError(
            f"config.accumulate is {microbatches}, but batch norm in every layer of this network"
            " needs the whole batch at once; set it to 1, and to save memory"
            " config.model.remat=True, or take more devices."
        )


def part_of(
    progress: Callable[[int, int], None] | None, before: int, part: int, total: int
) -> Callable[[int, int], None] | None:
    """What a part of a work calls, so that `progress` hears of the whole: `before` of `total` units
    are done, and this is `part` of them."""
    if progress is None:
        return None
    return lambda done, of: progress(before + part * done // max(of, 1), total)
