"""Layer normalisation whose gradient is as fast as its value."""

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


def mean_of_last(x: Array) -> Array:
    """The mean over the last axis, kept as 1. float32.

    XLA is slow on CPU to sum over that axis what it computes on the way, so there it's a product.
    """

    def product(x: Array) -> Array:
        return x @ jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1], x.dtype)

    return jax.lax.platform_dependent(
        x, cpu=product, default=lambda x: x.mean(axis=-1, keepdims=True)
    )
