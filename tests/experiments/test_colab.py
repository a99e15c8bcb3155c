"""The Colab notebooks: the commands in them exist, and run from top to bottom they do their job."""

import json
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import nbclient
import nbformat
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import segjax
from segjax import cli, config
from segjax.data import scenes
from segjax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "colab"


class Notebook(NamedTuple):
    """What the tests have to know of a notebook.

    Attributes:
        shows: the commands of segjax in it.
        values: what its variables are where a command is not run; "4" for all others.
        prepare: makes in an empty folder what the notebook would download; gives the environment
            variables that name it.
    """

    shows: set[str]
    values: dict[str, str]
    prepare: Callable[[pathlib.Path], dict[str, str]]


# A model of Hugging Face in small, and the same in the words of config.model.
THEIRS = dict(
    num_queries=9,
    num_labels=133,
    decoder_layers=2,
    encoder_layers=1,
    feature_size=64,
    mask_feature_size=64,
    hidden_dim=64,
    encoder_feedforward_dim=32,
    dim_feedforward=32,
    num_attention_heads=8,
)
THEIR_SWIN = dict(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4)
OURS = dict(
    backbone=dict(width=16, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4),
    queries=9,
    layers=1,
    encoder_layers=1,
    features=64,
    hidden=32,
    encoder_hidden=32,
    points=64,
)
RECIPE = """
from segjax import config

def get_config():
    recipe = config.load({file!r})
    recipe.model = dict(system="mask2former", classes=recipe.model.classes, **{model!r})
    recipe.eval.update(scale=(128, 96), object_threshold=0.0, overlap_threshold=0.0)
    recipe.data.workers = 0
    return recipe
"""


def hugging_face_folder(folder):
    """A random Mask2Former as the hub has it, repository's recipes with models of its size, and a
    picture."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    levels = [f"stage{i}" for i in range(1, 5)]
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=transformers.SwinConfig(**THEIR_SWIN, out_features=levels),
            id2label={k: f"kind {k}" for k in range(THEIRS["num_labels"])},
            **THEIRS,
        )
    )
    with torch.no_grad():
        model.class_predictor.weight.normal_()  # else no query is sure of anything
    model.save_pretrained(folder / "hub")
    recipes = folder / "recipes" / "mask2former"
    recipes.mkdir(parents=True)
    for name in ("coco_panoptic_swin_t.py", "coco_instance_swin_t.py"):
        file = str(ROOT / "configs" / "mask2former" / name)
        (recipes / name).write_text(RECIPE.format(file=file, model=OURS))
    painted = scenes.paint_scene((96, 128), np.random.default_rng(0))
    Image.fromarray(painted.image).save(folder / "photo.jpg")
    return {
        "NOTEBOOK_FOLDER": str(folder / "hub"),
        "NOTEBOOK_CONFIGS": str(recipes.parent),
        "NOTEBOOK_PHOTO": str(folder / "photo.jpg"),
        "NOTEBOOK_SIDE": "64",
    }


NOTEBOOKS = {
    "regproxy": Notebook(
        shows={"train", "eval", "predict", "import", "data", "info"},
        values={
            "OFFICIAL": str(ROOT / "configs/regproxy/ade20k_ti16.py"),
            "FOLDER": "--config.data.dataset.name=folder --config.data.dataset.root=r"
            " --config.model.classes=4",
        },
        prepare=lambda folder: {},
    ),
    "mask2former": Notebook(
        shows={"train", "eval", "predict", "import", "data", "info"},
        values={
            "RECIPE": "mask2former/coco_panoptic_swin_t.py",
            "BASE": str(ROOT / "configs/mask2former/coco_instance_swin_t.py"),
            "OWN": "--config.data.dataset.name=coco_instance --config.data.dataset.manual_dir=r"
            " --config.data.dataset.annotations={split}.json --config.model.classes=4",
        },
        prepare=hugging_face_folder,
    ),
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return request.param, read(request.param)


def commands(name):
    """Every `segjax ...` of a notebook as one line, with the notebook's variables filled in."""
    found = []
    lines = "\n".join(cell.source for cell in read(name).cells).replace("\\\n", " ").splitlines()
    values = {"CONFIGS": str(ROOT / "configs"), **NOTEBOOKS[name].values}
    for line in lines:
        typed = re.match(r"\s*!(segjax .*)", line)
        if typed:
            found.append(re.sub(r"{([^{}]+)}", lambda name: values.get(name[1], "4"), typed[1]))
    return found


# --------------------------------------------------------------------------------------------------
# As they are stored


def test_every_notebook_is_known():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


def test_it_is_stored_without_outputs_and_small(notebook):
    name, content = notebook
    nbformat.validate(content)
    assert (content.nbformat, content.nbformat_minor) == (4, 5)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 50_000
    for cell in content.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id)  # a name, not a number made by chance
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_it_shows_every_step_of_the_way(notebook):
    name, _ = notebook
    assert {shlex.split(line)[1] for line in commands(name)} == NOTEBOOKS[name].shows


def test_they_install_the_same_but_for_extras():
    def cell(name):
        lines = {cell.id: cell.source for cell in read(name).cells}["install"].splitlines()
        return [line for line in lines if not line.strip().startswith("wanted = ")]

    first, *others = map(cell, NOTEBOOKS)
    assert len(first) > 20 and all(other == first for other in others)


@pytest.mark.parametrize("line", [line for name in NOTEBOOKS for line in commands(name)])
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
    name, content = notebook
    texts = [cell.source for cell in content.cells]
    paths = [p for text in texts for p in re.findall(r"(?:configs|{CONFIGS})/([\w/]+\.py)", text)]
    names = [n for text in texts for n in re.findall(r"\b((?:ade20k|city|coco)\w+\.py)", text)]
    mentioned = paths + [f"{name}/{file}" for file in names]
    assert len(mentioned) > 5
    for path in mentioned:
        assert (ROOT / "configs" / path).is_file(), path


# --------------------------------------------------------------------------------------------------
# As they run


# Programs run for moments here: the shortest compilation wins.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="module", params=NOTEBOOKS)
def executed(tmp_path_factory, request):
    """(folder, cells by id) of a notebook: two steps of each training, by this very Python."""
    folder = tmp_path_factory.mktemp("colab")
    given = NOTEBOOKS[request.param].prepare(folder)
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
        patch.setenv("XLA_FLAGS", QUICK)  # one device, as in Colab
        for variable, value in given.items():
            patch.setenv(variable, value)
        client = nbclient.NotebookClient(
            read(request.param),
            timeout=600,
            kernel_name="segjax",
            resources={"metadata": {"path": str(folder)}},
        )
        done = client.execute()
    yield folder / "segjax_notebook", {cell.id: cell for cell in done.cells}
    shutil.rmtree(folder)


def executed_one(name):
    """Runs a test on one notebook alone."""
    return pytest.mark.parametrize("executed", [name], indirect=True)


def said(cell):
    """What a code cell printed, without colours."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)


def pictures(cells):
    """The number of pictures below each cell that has any."""
    counts = {
        name: sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for name, cell in cells.items()
        if cell.cell_type == "code"
    }
    return {name: count for name, count in counts.items() if count}


@pytest.mark.slow
def test_no_command_fails(executed):
    _, cells = executed
    for name, cell in cells.items():
        if cell.cell_type == "code":
            assert "error" not in said(cell).lower(), f"{name}: {said(cell)[-2000:]}"
            assert "Traceback" not in said(cell)


@pytest.mark.slow
def test_the_data_is_checked_before_it_is_trained_on(executed):
    work, cells = executed
    checked = said(cells["check"])
    assert "No faults." in checked
    names = {
        "folder_2": ("sky", "land", "water", "thing"),
        "mine_2_run": ("disc", "star", "wire"),
    }
    (present,) = (names[run] for run in names if (work / run).is_dir())
    for name in present:
        assert name in checked


@pytest.mark.slow
@executed_one("regproxy")
def test_trainings_are_evaluated_and_drawn(executed):
    work, cells = executed
    for name in ("shapescapes_2", "folder_2"):
        metrics = json.loads((work / name / "metrics.json").read_text())
        assert 0 <= metrics["mIoU"] <= 100 and metrics["step"] == 2
    assert "wire" in said(cells["eval"]) and "mIoU" in said(cells["eval"])
    assert (work / "shapescapes_2" / "report.html").stat().st_size > 10_000
    assert pictures(cells) == {
        "curves": 1,
        "panels": 3,
        "check": 1,
        "folder-train": 1,
        "folder-predict": 1,
        "official-predict": 1,
    }


@pytest.mark.slow
@executed_one("regproxy")
def test_predictions_have_the_size_of_the_photograph(executed):
    work, _ = executed
    labels = Image.open(work / "photo_seg_labels.png")
    assert labels.size == Image.open(work / "photos_2" / "images" / "000.jpg").size == (160, 128)
    assert np.array(labels).max() < 4
    picture = Image.open(work / "picture.jpg")
    assert Image.open(work / "picture_seg_labels.png").size == picture.size == (512, 384)


@pytest.mark.slow
@executed_one("regproxy")
def test_the_imported_workdir_works_and_is_said_to_mean_nothing(executed):
    work, cells = executed
    assert "labels below mean nothing" in said(cells["official"])
    assert "5,779,494 parameters" in said(cells["official-import"])
    labels = segjax.load(work / "imported")(work / "picture.jpg").labels
    assert labels.shape == (384, 512) and labels.max() < 150


@pytest.mark.slow
@executed_one("mask2former")
def test_the_hugging_face_folder_segments_the_photograph(executed):
    _, cells = executed
    assert "459,295 parameters" in said(cells["model-import"])
    lines = said(cells["segments"]).splitlines()
    assert lines
    for line in lines:  # the folder names the classes
        assert re.fullmatch(r" *\d+  kind \d+ +(thing|stuff)  [01]\.\d\d +\d+\.\d%", line), line
    assert 0 < sum(float(line.split()[-1][:-1]) for line in lines) <= 100.1
    assert pictures(cells) == {"predict": 1, "check": 1, "curves": 1, "look": 2}


@pytest.mark.slow
@executed_one("mask2former")
def test_own_data_is_divided_without_loss(executed):
    work, _ = executed
    whole, train, val = (
        json.loads((work / "mine_2" / f"{name}.json").read_text())
        for name in ("annotations", "train", "val")
    )
    assert (len(train["images"]), len(val["images"])) == (14, 2)
    assert len(whole["annotations"]) > 30
    for field in ("images", "annotations"):
        parts = train[field] + val[field]
        assert sorted(row["id"] for row in parts) == sorted(row["id"] for row in whole[field])
    for part in (train, val):
        ids = {row["id"] for row in part["images"]}
        assert {row["image_id"] for row in part["annotations"]} == ids
        assert part["categories"] == whole["categories"]


@pytest.mark.slow
@executed_one("mask2former")
def test_the_training_begins_with_the_imported_model(executed):
    """All but the classes: two steps of a rate of 1e-4 move no weight by more than a thousandth."""
    work, cells = executed
    told = " ".join(said(cells["train"]).split())
    fresh = [f"params/predictor/class_embed/{leaf}" for leaf in ("bias", "kernel")]
    assert f"random heads: {', '.join(fresh)}" in told
    before, after = (
        flatten_dict(checkpoints.load_variables(work / name, "last")[0], sep="/")
        for name in ("imported", "mine_2_run")
    )
    assert before.keys() == after.keys() and len(before) > 100
    assert after[fresh[0]].shape == (8,) and before[fresh[0]].shape == (134,)
    kept = [name for name in before if name not in fresh]
    moved = {name: np.abs(after[name] - before[name]).max() for name in kept}
    assert max(moved.values()) < 1e-3
    assert sum(distance > 0 for distance in moved.values()) > 0.9 * len(kept)


@pytest.mark.slow
@executed_one("mask2former")
def test_it_is_measured_by_average_precision_of_the_own_classes(executed):
    work, cells = executed
    metrics = json.loads((work / "mine_2_run" / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= 100 and metrics["images"] == 2
    names = ["disc", "ring", "box", "triangle", "star", "pole", "wire"]
    assert [row["name"] for row in metrics["instance"]["classes"]] == names
    assert "AP50" in said(cells["eval"])
    found = json.loads((work / "picture_seg_instances.json").read_text())
    own = {
        row["id"] for row in json.loads((work / "mine_2" / "val.json").read_text())["categories"]
    }
    assert found and {row["category_id"] for row in found} <= own
    assert all(row["segmentation"]["size"] == [240, 320] for row in found)
