"""The Colab notebook: what it tells to type exists, and run from top to bottom it does its job."""

import json
import pathlib
import re
import shlex
import shutil
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

import segjax
from segjax import cli, config

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "colab" / "regproxy.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def commands():
    """Every `segjax ...` of the notebook as one line, with the notebook's variables filled in."""
    found = []
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    lines = "\n".join(cell.source for cell in cells).replace("\\\n", " ").splitlines()
    values = {
        "CONFIGS": str(ROOT / "configs"),
        "OFFICIAL": str(ROOT / "configs/regproxy/ade20k_ti16.py"),
        "FOLDER": "--config.data.dataset.name=folder --config.data.dataset.root=r"
        " --config.model.classes=4",
    }
    for line in lines:
        typed = re.match(r"\s*!(segjax .*)", line)
        if typed:
            found.append(re.sub(r"{([^{}]+)}", lambda name: values.get(name[1], "4"), typed[1]))
    return found


# --------------------------------------------------------------------------------------------------
# As it is stored


def test_it_is_stored_without_outputs_and_small(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert NOTEBOOK.stat().st_size < 50_000
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id)  # a name, not a number made by chance
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_it_shows_every_step_of_the_way():
    shown = {shlex.split(line)[1] for line in commands()}
    assert shown == {"train", "eval", "predict", "import", "data", "info"}


@pytest.mark.parametrize("line", commands())
def test_what_it_tells_to_type_exists(line, capsys):
    """The command, its options, the config file, and the fields that are changed."""
    _, command, *argv = shlex.split(line)
    more = [argv.pop(0)] if command == "data" else []
    with pytest.raises(SystemExit) as stop:
        cli.main([command, *more, "--help"])
    assert stop.value.code == 0
    known = set(re.findall(r"--[a-z]+", capsys.readouterr().out))
    overrides = [text for text in argv if text.startswith("--config.")]
    options = dict(text.split("=", 1) if "=" in text else (text, "") for text in argv)
    assert {name for name in options if not name.startswith("--config.")} <= known
    if "--config" in options:
        config.load(options["--config"], overrides)
    else:
        config.load(config.defaults(), overrides)


def test_configs_that_it_mentions_exist(notebook):
    mentioned = [
        path
        for cell in notebook.cells
        for path in re.findall(r"(?:configs|{CONFIGS})/([\w/]+\.py)", cell.source)
        + [f"regproxy/{name}" for name in re.findall(r"\b((?:ade20k|city)\w+\.py)", cell.source)]
    ]
    assert len(mentioned) > 5
    for path in mentioned:
        assert (ROOT / "configs" / path).is_file(), path


# --------------------------------------------------------------------------------------------------
# As it runs


@pytest.fixture(scope="module")
def executed(tmp_path_factory, notebook):
    """(folder, executed notebook): two steps of each training, by this very Python."""
    folder = tmp_path_factory.mktemp("colab")
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "segjax",
        "language": "python",
    }
    (folder / "jupyter" / "kernels" / "segjax").mkdir(parents=True)
    (folder / "jupyter" / "kernels" / "segjax" / "kernel.json").write_text(json.dumps(kernel))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("NOTEBOOK_STEPS", "2")
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, as in Colab
        client = nbclient.NotebookClient(
            nbformat.from_dict(notebook),
            timeout=600,
            kernel_name="segjax",
            resources={"metadata": {"path": str(folder)}},
        )
        done = client.execute()
    yield folder / "segjax_notebook", {cell.id: cell for cell in done.cells}
    shutil.rmtree(folder)


def said(cell):
    """What a code cell printed, without colours."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.slow
def test_no_command_fails(executed):
    _, cells = executed
    for name, cell in cells.items():
        if cell.cell_type == "code":
            assert "error" not in said(cell).lower(), f"{name}: {said(cell)[-2000:]}"
            assert "Traceback" not in said(cell)


@pytest.mark.slow
def test_trainings_are_evaluated_and_drawn(executed):
    work, cells = executed
    for name in ("shapescapes_2", "folder_2"):
        metrics = json.loads((work / name / "metrics.json").read_text())
        assert 0 <= metrics["mIoU"] <= 100 and metrics["step"] == 2
    assert "wire" in said(cells["eval"]) and "mIoU" in said(cells["eval"])
    assert (work / "shapescapes_2" / "report.html").stat().st_size > 10_000
    drawn = {name: pictures(cell) for name, cell in cells.items() if cell.cell_type == "code"}
    assert {name: count for name, count in drawn.items() if count} == {
        "curves": 1,
        "panels": 3,
        "check": 1,
        "folder-train": 1,
        "folder-predict": 1,
        "official-predict": 1,
    }


@pytest.mark.slow
def test_the_folder_is_checked_before_it_is_trained_on(executed):
    _, cells = executed
    checked = said(cells["check"])
    assert "No faults." in checked
    for name in ("sky", "land", "water", "thing"):
        assert name in checked


@pytest.mark.slow
def test_predictions_have_the_size_of_the_photograph(executed):
    work, _ = executed
    labels = Image.open(work / "photo_seg_labels.png")
    assert labels.size == Image.open(work / "photos_2" / "images" / "000.jpg").size == (160, 128)
    assert np.array(labels).max() < 4
    picture = Image.open(work / "picture.jpg")
    assert Image.open(work / "picture_seg_labels.png").size == picture.size == (512, 384)


@pytest.mark.slow
def test_the_imported_workdir_works_and_is_said_to_mean_nothing(executed):
    work, cells = executed
    assert "labels below mean nothing" in said(cells["official"])
    assert "5,779,494 parameters" in said(cells["official-import"])
    labels = segjax.load(work / "imported")(work / "picture.jpg").labels
    assert labels.shape == (384, 512) and labels.max() < 150
