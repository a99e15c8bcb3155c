"""Layer and batch normalisation whose gradients are as fast as their values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from segjax.structs import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al., 2016).

    The gradient that JAX derives took 10 ms on a CPU (1025 x 768), this one takes 0.6 ms.

    Args:
        x: [..., C] of any float dtype; computed in float32.
        scale, bias: float32 [C].
        epsilon: added to the (biased) variance.

    Returns:
        float32 [..., C].
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, ...]]:
    exact = x.astype(jnp.float32)
    mean = exact.mean(axis=-1, keepdims=True)
    variance = jnp.square(exact - mean).mean(axis=-1, keepdims=True)
    gain = jax.lax.rsqrt(variance + epsilon)
    return (exact - mean) * gain * scale + bias, (x, mean, gain, scale)


def _backward(epsilon: float, kept: tuple[Array, ...], slope: Array) -> tuple[Array, Array, Array]:
    x, mean, gain, scale = kept
    normal = (x.astype(jnp.float32) - mean) * gain
    direct = slope * scale
    of_x = gain * (direct - mean_of_last(direct) - normal * mean_of_last(direct * normal))
    batch = tuple(range(x.ndim - 1))
    return of_x.astype(x.dtype), (slope * normal).sum(batch), slope.sum(batch)


layer_norm.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, the statistics over all axes but the
    last (Ioffe and Szegedy, 2015).

    Its gradient reads x and the slope twice; the one that JAX derives sums four maps.

    Args:
        x: [..., C] of any float dtype; computed in float32.
        scale, bias: float32 [C].
        epsilon: added to the (biased) variance.

    Returns:
        Normalised float32 [..., C]; mean and biased variance, float32 [C], through which no
        gradient flows.
    """
    return _batch_forward(x, scale, bias, epsilon)[0]


def _batch_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    batch = tuple(range(x.ndim - 1))
    exact = x.astype(jnp.float32)
    mean = exact.mean(batch)
    variance = jnp.square(exact - mean).mean(batch)
    gain = jax.lax.rsqrt(variance + epsilon)
    y = (exact - mean) * (scale * gain) + bias
    return (y, mean, variance), (x, mean, gain, scale)


def _batch_backward(
    epsilon: float, kept: tuple[Array, ...], slopes: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x, mean, gain, scale = kept
    slope = slopes[0]
    batch, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    normal = (x.astype(jnp.float32) - mean) * gain
    of_scale, of_bias = (slope * normal).sum(batch), slope.sum(batch)
    of_x = (scale * gain) * (slope - of_bias / count - normal * (of_scale / count))
    return of_x.astype(x.dtype), of_scale, of_bias


batch_norm.defvjp(_batch_forward, _batch_backward)


def mean_of_last(x: Array) -> Array:
    """The mean over the last axis, kept as 1. float32.

    XLA is slow on CPU to sum over that axis what it computes on the way, so there it's a product.
    """

    def product(x: Array) -> Array:
        return x @ jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1], x.dtype)

    return jax.lax.platform_dependent(
        x, cpu=product, default=lambda x: x.mean(axis=-1, keepdims=True)
    )
