"""The ways in which published files store a tensor, each in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any
Shape = tuple[int, ...]


class How(NamedTuple):
    """Attributes:
    leaves: what `{w}` reads in the file -> what it reads in our path.
    to_ours: (leaf in the file, tensor, our shape) -> our array.
    to_published: (leaf in the file, our array) -> tensor. Works on arrays and on tracers.
    """

    leaves: Mapping[str, str]
    to_ours: Callable[[str, Array, Shape], Array]
    to_published: Callable[[str, Array], Array]


def _as_is(leaves: Mapping[str, str]) -> How:
    return How(leaves, lambda leaf, x, shape: x, lambda leaf, x: x)


def _kernel(to_ours: Callable[[Array], Array], to_published: Callable[[Array], Array]) -> How:
    """`weight` as the two functions say; `bias` is a vector there and may have more axes here."""
    return How(
        {"weight": "kernel", "bias": "bias"},
        lambda leaf, x, shape: (to_ours(x) if leaf == "weight" else x).reshape(shape),
        lambda leaf, x: to_published(x) if leaf == "weight" else x.reshape(-1),
    )


IMAGE_CHANNELS = 3


def _with_zero_channels(x: Array, shape: Shape) -> Array:
    """OIHW of IMAGE_CHANNELS inputs -> HWIO of as many as `shape` says, the further ones 0."""
    x = x.transpose(2, 3, 1, 0)
    return np.pad(x, [(0, 0), (0, 0), (0, shape[2] - x.shape[2]), (0, 0)])


# The tensor itself.
same = _as_is({})
# Layer and group norm.
norm = _as_is({"weight": "scale", "bias": "bias"})
# Batch norm with its running statistics.
batch_norm = _as_is(
    {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
)
# Convolutions: OIHW <-> HWIO. A depthwise one is (C, 1, h, w) <-> (h, w, 1, C).
conv = _kernel(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# The first convolution of a network of images where ours sees further channels, masks and such:
# they begin at zero, and the file never has them.
image_conv = How(
    {"weight": "kernel"},
    lambda leaf, x, shape: _with_zero_channels(x, shape),
    lambda leaf, x: x[:, :, :IMAGE_CHANNELS].transpose(3, 2, 0, 1),
)
# 1x1 convolutions that are matrices here: (out, in, 1, 1) <-> (in, out).
pointwise = _kernel(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
# Linear layers: (out, in) <-> (in, out), or (in, 3, heads, size) for fused queries, keys, values.
dense = _kernel(lambda x: x.T, lambda x: x.reshape(x.shape[0], -1).T)
# Linear layers on attention heads: (out, in) <-> (heads, size, out).
heads = _kernel(lambda x: x.T, lambda x: x.reshape(-1, x.shape[-1]).T)
