"""Checkpoint files as named NumPy arrays. Nothing in a file is ever executed."""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.errors import SegjaxError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
NESTED = ("state_dict", "model")
"""Keys under which training frameworks put the tensors, beside optimizer state and the like."""


class Checkpoint(NamedTuple):
    """Attributes:
    tensors: published name -> array.
    meta: plain values that the file tells about itself; {} where it tells none.
    """

    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]


def read(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a published file by their names. See `load`."""
    return load(path).tensors


def load(path: str | PathLike[str]) -> Checkpoint:
    """Reads a published checkpoint.

    Args:
        path: a .safetensors file or a folder of them, a .pth, .pt or .bin file of torch, or .npz.
            Tensors under "state_dict" or "model" are found.

    Raises:
        SegjaxError: the file is missing, damaged, of another kind, or holds objects that would have
            to be executed; or torch isn't installed.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise SegjaxError(f"{path}: there is no such checkpoint file.")
    if path.suffix == ".safetensors":
        content, meta = _load_safetensors(path)
    elif path.suffix == ".npz":
        content, meta = _load_npz(path), {}
    elif path.suffix in TORCH_SUFFIXES:
        content, meta = _load_torch(path)
    else:
        raise SegjaxError(
            f"{path}: a checkpoint is a .safetensors, .npz, {', '.join(TORCH_SUFFIXES)} file or a"
            " folder of .safetensors."
        )
    tensors = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise SegjaxError(f"{path}: it holds no tensors; is it a checkpoint?")
    return Checkpoint(tensors, meta)


def _load_folder(folder: Path) -> Checkpoint:
    parts = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not parts:
        raise SegjaxError(f"{folder}: this folder holds no .safetensors file.")
    tensors: dict[str, np.ndarray] = {}
    for part in parts:
        found = load(part)
        twice = tensors.keys() & found.tensors.keys()
        if twice:
            raise SegjaxError(
                f"{part}: {min(twice)} is also in another file of the folder; name one file."
            )
        tensors |= found.tensors
    return Checkpoint(tensors, found.meta)


def _load_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise SegjaxError(
                f"{path}: it holds Python objects, which are not loaded because that would execute "
                "code from the file; save its arrays alone."
            ) from None
        raise _damaged(path, error) from None


def _load_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        import torch
    except ImportError:
        raise SegjaxError(
            f"{path}: reading it needs torch; pip install 'segjax[torch]' (a CPU build is enough)."
        ) from None
    try:
        with _numpy_values_allowed(torch), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"global:? (?:global )?([\w.]+)", str(error), re.IGNORECASE)
        if wanted is None:
            raise _damaged(path, error) from None
        raise SegjaxError(
            f"{path}: besides tensors it holds {wanted[1]}, which is not loaded because that would "
            "execute code from the file; save its tensors alone, with torch or as .safetensors."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from None
    meta = content.get("meta") if isinstance(content, Mapping) else None
    while isinstance(content, Mapping) and (key := next((k for k in NESTED if k in content), "")):
        if not isinstance(content[key], Mapping):
            break
        content = content[key]
    if not isinstance(content, Mapping):
        raise SegjaxError(f"{path}: it holds a {type(content).__name__}, not named tensors.")
    tensors = {
        name: _to_numpy(value) for name, value in content.items() if isinstance(value, torch.Tensor)
    }
    return tensors, meta if isinstance(meta, dict) else {}


def _to_numpy(tensor: Any) -> np.ndarray:
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    return tensor.detach().numpy()


def _numpy_values_allowed(torch: Any) -> contextlib.AbstractContextManager[None]:
    """mmcv's `meta` may hold NumPy scalars and arrays of numbers (scores, palettes)."""

    def allowed() -> Iterator[Any]:
        multiarray = np._core.multiarray
        for function in ("scalar", "_reconstruct"):
            for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
                yield getattr(multiarray, function), f"{module}.{function}"
        yield from (np.ndarray, np.dtype)
        yield from {type(np.dtype(code)) for code in "?bhilqBHILQefd"}

    return torch.serialization.safe_globals(list(allowed()))


def _damaged(path: Path, error: Exception) -> SegjaxError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return SegjaxError(f"{path}: it is damaged or incomplete ({reason}); download it again.")
