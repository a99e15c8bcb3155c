"""From the bytes of a batch to what a network sees; runs on the device, inside the compiled
step."""

from __future__ import annotations

import jax.numpy as jnp

from segjax.structs import Array, Batch

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalised_image(batch: Batch, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(image - mean) / std in float32, exactly 0 outside `image_size`.

    Args:
        batch: `image` uint8 [B, H, W, 3] RGB, or float, taken as normalised already; `image_size`
            int32 [B, 2] (height, width) of the real pixels in the top left corner, optional.
        mean: per channel, on 0..255.
        std: per channel, on 0..255.

    Returns:
        [B, H, W, 3] float32.
    """
    image = batch["image"]
    if not jnp.issubdtype(image.dtype, jnp.floating):
        # The official pipelines multiply by the reciprocal.
        image = (image.astype(jnp.float32) - jnp.asarray(mean)) * (1.0 / jnp.asarray(std))
    if "image_size" not in batch:
        return image
    size = batch["image_size"]
    rows = jnp.arange(image.shape[1])[None, :] < size[:, :1]
    cols = jnp.arange(image.shape[2])[None, :] < size[:, 1:]
    return jnp.where((rows[:, :, None] & cols[:, None, :])[..., None], image, 0.0)
