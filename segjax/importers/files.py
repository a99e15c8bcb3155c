"""Checkpoint files as named NumPy arrays. Nothing in a file is ever executed."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
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
        path: a .safetensors file or a folder of them, a .pth, .pt or .bin file of torch, .npz, or a
            .pkl file of detectron2's kind: a pickle of arrays. Tensors under "state_dict" or
            "model" are found.

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
    elif path.suffix == ".pkl":
        content, meta = _load_pickle(path)
    else:
        raise SegjaxError(
            f"{path}: a checkpoint is a .safetensors, .npz, .pkl, {', '.join(TORCH_SUFFIXES)} file"
            " or a folder of .safetensors."
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
    torch = _torch(path)
    try:
        with _numpy_values_allowed(torch), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"global:? (?:global )?([\w.]+)", str(error), re.IGNORECASE)
        if wanted is None:
            raise _damaged(path, error) from None
        raise _refused(path, wanted[1]) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from None
    meta = content.get("meta") if isinstance(content, Mapping) else None
    tensors = {
        name: _to_numpy(value)
        for name, value in _innermost(path, content).items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, meta if isinstance(meta, dict) else {}


def _load_pickle(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, path).load()
    except SegjaxError:
        raise
    except Exception as error:  # a damaged pickle is a wrong program: anything may go wrong
        raise _damaged(path, error) from None
    meta = {}
    if isinstance(content, Mapping):
        meta = {key: x for key, x in content.items() if isinstance(x, (str, bool, int, float))}
    tensors = {
        name: value
        for name, value in _innermost(path, content).items()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject
    }
    return tensors, meta


class _ArrayUnpickler(pickle.Unpickler):
    """Makes plain values and NumPy arrays, also of torch tensors; whatever else a pickle asks for,
    and so could be called, is refused.

    What it hands out is either built in or made anew, so that a file can't alter it for others.
    """

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # of strings that Python 2 wrote
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}".replace("numpy.core.", "numpy._core.")
        makers = {
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "numpy._core.multiarray._reconstruct": np._core.multiarray._reconstruct,
            "numpy._core.multiarray.scalar": np._core.multiarray.scalar,
            "numpy._core.numeric._frombuffer": _from_buffer,
            "collections.OrderedDict": OrderedDict,
            "_codecs.encode": _latin1,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch.storage._load_from_bytes": self.storage,
        }
        if wanted not in makers:
            raise _refused(self.path, f"{module}.{name}")
        maker = makers[wanted]
        return maker if isinstance(maker, (type, type(len))) else _fresh(maker)

    def tensor(self, *args: Any) -> np.ndarray:
        return _to_numpy(_torch(self.path)._utils._rebuild_tensor_v2(*args))

    def storage(self, content: bytes) -> Any:
        """torch would take these bytes for a pickle of any kind."""
        torch = _torch(self.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: function(*args)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """How arrays are written by pickle's protocol 5."""
    return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """How bytes are written by pickle's old protocols; other encodings would be looked for among
    the modules that can be imported."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode(encoding)


def _innermost(path: Path, content: Any) -> Mapping[str, Any]:
    """The dict of tensors within what training frameworks put around it."""
    while isinstance(content, Mapping) and (key := next((k for k in NESTED if k in content), "")):
        if not isinstance(content[key], Mapping):
            break
        content = content[key]
    if not isinstance(content, Mapping):
        raise SegjaxError(f"{path}: it holds a {type(content).__name__}, not named tensors.")
    return content


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


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise SegjaxError(
            f"{path}: reading it needs torch; pip install 'segjax[torch]' (a CPU build is enough)."
        ) from None
    return torch


def _refused(path: Path, what: str) -> SegjaxError:
    return SegjaxError(
        f"{path}: besides tensors it holds {what}, which is not loaded because that would "
        "execute code from the file; save its tensors alone, with torch or as .safetensors."
    )


def _damaged(path: Path, error: Exception) -> SegjaxError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return SegjaxError(f"{path}: it is damaged or incomplete ({reason}); download it again.")
