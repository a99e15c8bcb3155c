"""Reading checkpoint files: every kind, cut off ones, and those that would run code."""

from __future__ import annotations

import os
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import importers
from segjax.errors import SegjaxError

TENSORS = {
    "a.weight": np.arange(1200, dtype=np.float32).reshape(30, 40),
    "a.bias": np.ones(3, np.float32),
}


def assert_read(path):
    found = importers.read(path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)


def write(path, content=TENSORS):
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
        torch.save({name: torch.tensor(x) for name, x in content.items()}, path)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.pth", "x.pt", "x.bin"])
def test_every_kind_is_read(tmp_path, name):
    assert_read(write(tmp_path / name))


def test_a_folder_of_safetensors_is_one_checkpoint(tmp_path):
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"model-{i}.safetensors")
    assert_read(tmp_path)


def test_half_precision_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    save_file({"x": np.ones(2, ml_dtypes.bfloat16)}, tmp_path / "x.safetensors")
    torch.save({"x": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        assert np.array_equal(importers.read(tmp_path / name)["x"].astype(np.float32), [1.0, 1.0])


@pytest.mark.parametrize("nest", ["state_dict", "model"])
def test_nested_state_dicts_are_unwrapped(tmp_path, nest):
    """As mmcv and DeiT write them, with plain values and NumPy numbers beside."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    state = {name: torch.tensor(x) for name, x in TENSORS.items()}
    meta = {"CLASSES": ("a", "b"), "epoch": 3, "best": np.float64(0.5), "PALETTE": np.eye(3)}
    torch.save({"meta": meta, nest: state}, tmp_path / "x.pth")
    assert_read(tmp_path / "x.pth")
    assert importers.load(tmp_path / "x.pth").meta["CLASSES"] == ("a", "b")


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    trap = tmp_path / "trap"
    torch.save({"state_dict": {}, "hook": Touch(trap)}, tmp_path / "evil.pth")
    np.savez(tmp_path / "evil.npz", x=np.array([Touch(trap)], dtype=object))
    for name in ("evil.pth", "evil.npz"):
        with pytest.raises(SegjaxError, match=f"{name}: .*would execute") as error:
            importers.read(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.pth"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_sentence(tmp_path, name, share):
    path = write(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SegjaxError, match=f"{name}: it is damaged or incomplete") as error:
        importers.read(path)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(SegjaxError, match="no such checkpoint"):
        importers.read(tmp_path / "absent.pth")
    with pytest.raises(SegjaxError, match=r"no \.safetensors file"):
        importers.read(tmp_path)
    (tmp_path / "x.onnx").touch()
    with pytest.raises(SegjaxError, match=r"a checkpoint is a \.safetensors"):
        importers.read(tmp_path / "x.onnx")
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(SegjaxError, match="it holds no tensors"):
        importers.read(tmp_path / "x.pth")


def test_without_torch_the_way_to_install_it_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SegjaxError, match=r"pip install 'segjax\[torch\]'"):
        importers.read(path)


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_read(write(tmp_path / "x.safetensors"))
