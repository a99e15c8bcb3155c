"""Random weights for benchmarks, drawn by NumPy: a network's hundreds of draws and the rest of its
start take XLA minutes to compile."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from segjax.structs import Batch, System, Variables


def drawn(system: System, batch: Batch, moved: float = 0.0) -> Variables:
    """Kernels that keep the size of what passes them (He et al., ICCV 2015), and norms that change
    next to nothing.

    Args:
        system: whose variables these are.
        batch: as of `System.init`; shapes (`jax.ShapeDtypeStruct`) are enough.
        moved: standard deviation of what is added to all that would be 0 or 1 otherwise.

    Returns:
        float32 arrays of NumPy.
    """
    rng = np.random.default_rng(0)

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if name == "kernel":
            return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return np.float32(name in ("scale", "var")) + np.float32(moved) * noise

    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    return jax.tree_util.tree_map_with_path(one, shapes)
