"""Positions as sinusoids (Vaswani et al., NeurIPS 2017, in DETR's form for maps)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from segjax.structs import Array, Size


def sine_position(
    size: Size,
    features: int = 128,
    temperature: float = 10_000.0,
    normalize: bool = True,
    epsilon: float = 1e-6,
) -> Array:
    """The sine position embedding of a map (DETR, Carion et al., ECCV 2020, Sec. A.4).

    Args:
        size: (H, W).
        features: channels per axis, even.
        temperature: wave lengths go from 2 pi to this times 2 pi.
        normalize: positions are divided by the last one and multiplied by 2 pi.
        epsilon: added to the last position.

    Returns:
        float32 [H, W, 2 * features]: sines and cosines of y by turns, then those of x.
    """
    rows, columns = (_waves(n, features, temperature, normalize, epsilon) for n in size)
    shape = (*size, features)
    return jnp.concatenate(
        [
            jnp.broadcast_to(jnp.asarray(rows)[:, None], shape),
            jnp.broadcast_to(jnp.asarray(columns)[None], shape),
        ],
        axis=-1,
    )


def _waves(
    count: int, features: int, temperature: float, normalize: bool, epsilon: float
) -> np.ndarray:
    """[count, features] of one axis, positions 1, 2, ..., in float32 as torch computes them."""
    where = np.arange(1, count + 1, dtype=np.float32)
    if normalize:
        where = where / np.float32(count + epsilon) * np.float32(2 * math.pi)
    exponents = 2 * (np.arange(features) // 2) / features
    angles = where[:, None] / (temperature**exponents).astype(np.float32)
    return np.where(np.arange(features) % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
