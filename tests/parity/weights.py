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

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
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


@dataclasses.dataclass(frozen=True)
class Case:
    """A golden case: NAME.json + NAME.npz at `path` (without suffix)."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path.with_suffix(".npz")) as file:
            return dict(file)

    @property
    def what(self) -> str:
        return self.meta["run"]["what"]

    @property
    def args(self) -> dict[str, Any]:
        return self.meta["run"]["args"]

    @property
    def tolerance(self) -> float:
        return self.meta["tolerance"]

    def tensors(self) -> dict[str, np.ndarray]:
        return state_dict(self.meta, self.arrays)

    def inputs(self) -> dict[str, np.ndarray]:
        return self._under("input/")

    def expected(self) -> dict[str, np.ndarray]:
        return self._under("output/")

    def _under(self, prefix: str) -> dict[str, np.ndarray]:
        found = (name for name in self.arrays if name.startswith(prefix))
        return {name.removeprefix(prefix): self.arrays[name] for name in found}

    def stored_part(self, name: str, whole: np.ndarray) -> np.ndarray:
        """The part of a whole output that the case stores. ValueError: it has another shape."""
        output = self.meta["outputs"][name]
        if list(whole.shape) != output["shape"]:
            raise ValueError(f"{name} has shape {whole.shape}, not {output['shape']}")
        return whole[tuple(slice(None, None, step) for step in output["stride"])]

    def __str__(self) -> str:
        return self.name


def cases(paths: Iterable[str | Path]) -> list[Case]:
    """All cases among files and below folders, by name."""
    found = set()
    for path in map(Path, paths):
        files = path.rglob("*.json") if path.is_dir() else [path]
        found.update(file.with_suffix("") for file in files)
    return [Case(path) for path in sorted(found) if path.with_suffix(".npz").exists()]
