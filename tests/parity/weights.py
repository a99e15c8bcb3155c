"""Stand-in checkpoints for parity cases, and how a case lies on the disk.

A case does not ship weights: it lists name, shape and dtype of every tensor of the published
checkpoint, and the values follow from the name by the rule of `tensor_value`. So anybody can
rebuild the checkpoint that the official implementation was run on.

NAME.json has `source` and `notes` for people, `run` ({"what", "args"}), `tensors` ([name, shape,
dtype], in the checkpoint's order), `literals` (tensors stored as arrays instead), `inputs`,
`outputs` ({name: {"shape", "stride" of what was stored, per axis}}), `tolerance`, and perhaps
`zero_outputs`. NAME.npz has "input/...", "output/..." and "tensor/...".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def tensor_value(name: str, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """The tensor that a name and a shape stand for.

    The generator is seeded with the CRC-32 of the name, and normal noise is drawn from it in any
    case. Running variances are then uniform in 0.5..1.5; matrices and kernels are the noise over
    the square root of the fan-in; scales ("...weight" with one axis or none, and scalars) lie
    around 1, all other vectors around 0, a tenth of the noise away.
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    noise = generator.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1:
        fan_in = max(math.prod(shape[1:]), 1)
        return (noise / np.sqrt(fan_in)).astype(dtype)
    centre = 1.0 if name.endswith("weight") or not shape else 0.0
    return (centre + 0.1 * noise).astype(dtype)


def state_dict(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The whole checkpoint of a case, from its JSON and its arrays."""
    literal = set(meta.get("literals", ()))
    return {
        name: arrays[f"tensor/{name}"]
        if name in literal
        else tensor_value(name, tuple(shape), dtype)
        for name, shape, dtype in meta["tensors"]
    }


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """||ours - theirs|| / ||theirs||; NaN, which passes no tolerance, where either is NaN."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
