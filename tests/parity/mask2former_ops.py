"""The row of deformable sampling; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import deformable


def msdeform_core(
    _args: dict[str, Any], _tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    shapes = tuple((int(height), int(width)) for height, width in inputs["spatial_shapes"])
    given = [
        jnp.asarray(inputs[name]) for name in ("value", "sampling_locations", "attention_weights")
    ]

    @jax.jit
    def both(value, locations, weights, slope):
        mixed, pull = jax.vjp(
            lambda value, *rest: deformable.sample(value, shapes, *rest), value, locations, weights
        )
        return mixed, *pull(slope)

    names = ("output", "d_value", "d_sampling_locations", "d_attention_weights")
    found = both(*given, jnp.asarray(inputs["cotangent"]))
    return dict(zip(names, map(np.asarray, found), strict=True))


RUNNERS = {"mask2former.msdeform_core": msdeform_core}
