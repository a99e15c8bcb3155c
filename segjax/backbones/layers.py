"""Layers that several backbones and heads share and that Flax has in another form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.ops import convolution, normalisation, winograd
from segjax.structs import Array

Dtype = Any

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""mmcv's `kaiming_init`, what it starts convolutions with."""


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0), in a form that XLA computes once.

    A maximum with a constant has one operand, and such operations XLA's CPU compiler repeats in
    each of their uses. Through the sums of a residual network every use then began again at the
    stem: of a training step of HRNet-W18 that was half. A choice between two maps it keeps. For the
    same reason the slope is told from the output, not the input.
    """
    return jnp.where(x < 0, 0, x)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = relu(*primals)
    return y, jnp.where(y > 0, *tangents, 0)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with torch's running variance.

    Flax's own keeps the biased batch variance; torch (and so every published checkpoint of this
    field) keeps the unbiased one, n/(n-1) times as large. Statistics are float32. Under `jax.jit`
    on a mesh the batch is one global array, so they are global too (what the official recipes call
    SyncBN).

    Attributes:
        momentum: share of the old running statistics that is kept (torch's momentum is 1 minus
            this).
        epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if not train:
            gain = scale * jax.lax.rsqrt(var.value + self.epsilon)
            return ((x.astype(jnp.float32) - mean.value) * gain + bias).astype(self.dtype)
        y, batch_mean, batch_var = normalisation.batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // channels
            unbiased = batch_var * (count / max(count - 1, 1))
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * unbiased
        return y.astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine map are constants: no gradient, no update
    (detectron2's default in backbones).

    All four vectors are in the collection "constants", so that no optimizer meets them. Called like
    `BatchNorm`; `train` changes nothing.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        channels = x.shape[-1:]
        scale, bias, mean, var = (
            jax.lax.stop_gradient(
                self.variable("constants", name, start, channels, jnp.float32).value
            )
            for name, start in (
                ("scale", jnp.ones),
                ("bias", jnp.zeros),
                ("mean", jnp.zeros),
                ("var", jnp.ones),
            )
        )
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Flax's LayerNorm with a faster gradient; see `normalisation.layer_norm`."""

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        return normalisation.layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)


class DepthwiseConv(nn.Module):
    """One k x k filter per channel, zero padding, stride 1, no bias. [B, H, W, C] -> [B, H, W,
    C]."""

    kernel_size: int = 3
    dilation: int = 1
    dtype: Dtype = jnp.float32
    # torch's fan_out ignores groups: He normal over k*k*C outputs (mmcv's kaiming_init).
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, channels = self.kernel_size, x.shape[-1]
        init = self.kernel_init or nn.initializers.normal((2 / (k * k * channels)) ** 0.5)
        kernel = self.param("kernel", init, (k, k, 1, channels), jnp.float32)
        return convolution.depthwise(x, kernel.astype(self.dtype), dilation=self.dilation)


class Conv(nn.Module):
    """k x k convolution with dilation * (k // 2) zeros on every side of the map.

    [B, H, W, c] -> [B, ceil(H / stride), ceil(W / stride), features] for odd k. For CPUs a 1x1 one
    is a matrix product and a 3x3 one may be `winograd.conv3x3`.

    Attributes:
        stride: the padding stays symmetric; XLA's "SAME" would pad an even size only at its end.
        dilation: pixels between taps.
    """

    features: int
    kernel_size: int = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = he_fan_out
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, s, d = self.kernel_size, self.stride, self.dilation
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if k == 1:
            x = convolution.pointwise(x[:, ::s, ::s], kernel[0, 0])
        elif k == 3 and s == 1:
            x = winograd.conv3x3(x, kernel, d)
        else:
            pad = (d * (k // 2), d * (k // 2))
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (s, s),
                (pad, pad),
                rhs_dilation=(d, d),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x + bias.astype(self.dtype)


class ConvNormRelu(nn.Module):
    """k x k convolution without bias, batch norm, ReLU. [B, H, W, c] -> [B, H, W, features]."""

    features: int
    kernel_size: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = Conv(self.features, self.kernel_size, False, dtype=self.dtype, name="conv")
        return relu(BatchNorm(dtype=self.dtype, name="norm")(conv(x), train))
