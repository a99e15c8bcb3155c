"""`segjax import`: a whole workdir or none."""

from __future__ import annotations

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import cli, config, importers, systems
from segjax.data.labels import LabelSpace
from segjax.training import checkpoints

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.model = dict(
        system="regproxy", classes=12, image_size=(32, 32), early_block=0,
        backbone=dict(width=32, depth=1, heads=2, patch=8),
    )
    config.data = dict(dataset=dict(name="shapescapes"))
    return config
"""


@pytest.fixture
def published(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    system = systems.build(config.load(tmp_path / "tiny.py").model)
    variables = jax.device_get(system.init(jax.random.key(3), {"image": jnp.zeros((1, 16, 16, 3))}))
    save(tmp_path / "tiny.safetensors", importers.to_published("regproxy", variables))
    return variables


def save(path, tensors):
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)


def run(folder, *more):
    argv = ["import", "--layout=regproxy", f"--checkpoint={folder}/tiny.safetensors"]
    return cli.main([*argv, f"--config={folder}/tiny.py", f"--workdir={folder}/work/w", *more])


def test_workdir_holds_the_checkpoint_the_config_and_the_label_space(tmp_path, published):
    assert run(tmp_path, "--config.seed=5") == 0
    workdir = tmp_path / "work" / "w"
    variables, step, meta = checkpoints.load_variables(workdir)
    assert step == 0 and meta["layout"] == "regproxy"
    chex.assert_trees_all_equal(variables, published)
    assert config.read(workdir / "config.json").seed == 5
    assert LabelSpace.load(workdir / "label_space.json").classes == 12
    assert json.loads((workdir / "config.json").read_text())["model"]["classes"] == 12
    assert [path.name for path in workdir.parent.iterdir()] == ["w"]


def test_a_checkpoint_that_does_not_fit_leaves_no_workdir(tmp_path, published, capsys):
    assert run(tmp_path, "--config.model.early_block=-1", "--config.model.distilled=True") == 1
    assert "missing    backbone.dist_token" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_checkpoint_of_other_classes_says_which_head_differs_and_what_to_do(
    tmp_path, published, capsys
):
    ade20k = ("--config.data.dataset.name=ade20k", "--config.model.classes=150")
    assert run(tmp_path, *ade20k) == 1
    told = capsys.readouterr().err
    assert "decode_head.mlp.0.0.weight (12, 32), the model needs (150, 32)" in told
    assert "--config.init.part=model" in told and "missing" not in told
    assert not (tmp_path / "work").exists()


def test_a_write_that_fails_leaves_no_workdir(tmp_path, published, monkeypatch):
    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(config, "save", fail)
    with pytest.raises(OSError, match="disk"):
        run(tmp_path)
    assert not list((tmp_path / "work").iterdir())


def test_a_workdir_with_something_in_it_is_refused_untouched(tmp_path, published, capsys):
    (tmp_path / "work" / "w").mkdir(parents=True)
    assert run(tmp_path) == 0  # an empty one is fine
    before = sorted((tmp_path / "work" / "w").iterdir())
    assert run(tmp_path) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert sorted((tmp_path / "work" / "w").iterdir()) == before


def test_a_label_space_of_another_size_is_refused(tmp_path, published, capsys):
    assert run(tmp_path, "--config.model.classes=7") == 1
    assert "12 classes" in capsys.readouterr().err
