"""`segjax data` tells every fault by file name before anything is trained, and shows the data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from segjax.cli import data as command
from segjax.cli import run
from segjax.data import check, datasets, hierarchies, labels


@pytest.fixture
def root(tmp_path):
    """Six sound images of 6 x 8 pixels: 12 pixels of class 0, 24 of class 1, the rest ignored."""
    (tmp_path / "names.txt").write_text("road\nsky\ntree\n")
    mask = np.full((6, 8), 255, np.uint8)
    mask[:2, :6], mask[2:5] = 0, 1
    for split, letters in (("train", "abcd"), ("validation", "ef")):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
        for letter in letters:
            photo = np.random.default_rng(ord(letter)).integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(photo).save(tmp_path / f"images/{split}/{letter}.png")
            Image.fromarray(mask).save(tmp_path / f"masks/{split}/{letter}.png")
    return tmp_path


def break_everything(root):
    """One fault of each kind in the training split; only d stays sound."""
    Image.fromarray(np.zeros((3, 8), np.uint8)).save(root / "masks/train/a.png")
    Image.fromarray(np.full((6, 8), 9, np.uint8)).save(root / "masks/train/b.png")
    path = root / "images/train/c.png"
    path.write_bytes(path.read_bytes()[:50])
    (root / "images/train/e.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(root / "masks/train/e.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "images/train/f.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "images/train/g.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "masks/train/g.png")


def report(root, split="train", **options):
    return check.check(datasets.source({"name": "folder", "root": str(root), **options}, split))


def test_pixels_and_images_per_class(root):
    found = report(root)
    assert found.pixels.tolist() == [4 * 12, 4 * 24, 0]
    assert found.images.tolist() == [4, 4, 0]
    assert found.ignored == 4 * 12
    assert found.never_seen == ("tree",)
    assert found.faults == ()
    assert found.sizes == ((6, 8), (6, 8))
    assert "255" in check.hints(found)[0]


def test_every_fault_is_named_at_once(root):
    break_everything(root)
    found = report(root)
    assert found.examples == 7
    assert found.pixels.tolist() == [12, 24, 0]  # of the sound one
    expected = {
        "a.png": "8 x 3 pixels",
        "b.png": "label 9 is not below the 3 classes",
        "c.png": "truncated",
        "e.jpg": "not an image",
        "f.png": "mask is missing",
        "g.png": "in colour",
    }
    assert len(found.faults) == len(expected)
    for fault, (name, text) in zip(found.faults, expected.items()):
        assert name in fault and text in fault


def test_an_image_that_is_damaged_inside_is_a_fault(root):
    """Its header and its end are right, so only decoding it tells."""
    path = root / "images/train/b.png"
    content = path.read_bytes()
    path.write_bytes(content[:45] + bytes(len(content) - 45 - 12) + content[-12:])
    faults = report(root).faults
    assert len(faults) == 1 and "b" in faults[0]


def test_nothing_is_prepared(root, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    assert command.main(["check", f"--folder={root}"]) == 0
    assert not (tmp_path / "prepared").exists()


def test_check_on_a_folder_prints_faults_and_exits_with_one(root, capsys):
    break_everything(root)
    assert command.main(["check", f"--folder={root}"]) == 1
    out = capsys.readouterr().out
    assert out.count("fault: ") == 6 and "6 faults." in out
    assert "masks/train/b.png: label 9" in out
    assert "folder" in out or root.name in out
    assert "never seen" in out


def test_check_on_a_folder_takes_a_names_file(root, tmp_path, capsys):
    names = tmp_path / "three.txt"
    names.write_text("asphalt\nair\nwood\n")
    assert command.main(["check", f"--folder={root}", f"--names={names}"]) == 0
    assert "asphalt" in capsys.readouterr().out


@pytest.fixture
def config(root, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    config = ConfigDict()\n"
        "    config.model = dict(system='regproxy', classes=3)\n"
        f"    config.data = dict(dataset=dict(name='folder', root={str(root)!r}),"
        f" data_dir={str(tmp_path / 'prepared')!r})\n"
        "    config.augment = dict(scale=(16, 12), crop=(12, 16))\n"
        "    return config\n"
    )
    return path


def test_check_on_a_config(config, capsys):
    assert command.main(["check", f"--config={config}"]) == 0
    assert "No faults." in capsys.readouterr().out
    assert command.main(["check", f"--config={config}", "--config.model.classes=7"]) == 1
    assert "config.model.classes is 7, but" in capsys.readouterr().out


def test_prepare_writes_both_splits(config, capsys, tmp_path):
    assert command.main(["prepare", f"--config={config}"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 examples" in out and "validation: 2 examples" in out
    assert len(list((tmp_path / "prepared/segjax_folder").glob("*/1.0.0/dataset_info.json"))) == 2


def test_show_writes_a_sheet(config, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert command.main(["show", f"--config={config}", f"--out={out}", "--count=6"]) == 0
    with Image.open(out) as sheet:
        assert sheet.width > 400 and sheet.height > 100
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "needs --config=FILE"),
        (["check", "--folder=/nowhere/at/all"], "there is no folder"),
        (["prepare", "--config=/nowhere.py"], "no such config file"),
        (["check", "--folder=x", "--names.x=3"], "knows no --names.x=3"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_one(arguments, message, capsys):
    assert run(command.main, arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


# Class trees --------------------------------------------------------------------------------------


def tree_file(tmp_path, classes, groups):
    def rows(table):
        return [{"name": name, "parent": parent} for name, parent in table.items()]

    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"classes": rows(classes), "groups": rows(groups)}))
    return path


CLASSES = {"road": "ground", "sky": "above", "tree": "ground"}


def test_pixels_per_level_are_those_of_the_classes_below(root, tmp_path):
    path = tree_file(tmp_path, CLASSES, {"ground": "all", "above": "all", "all": None})
    leaves, middle, top = check.level_pixels(report(root), hierarchies.load(path))
    assert leaves.tolist() == [4 * 12, 4 * 24, 0]
    assert middle.tolist() == [4 * 12, 4 * 24]
    assert top.tolist() == [4 * 36]


def test_check_prints_the_levels_of_a_tree_and_names_leaves_without_a_pixel(root, tmp_path, capsys):
    path = tree_file(tmp_path, CLASSES, {"ground": "all", "above": "all", "all": None})
    assert command.main(["check", f"--folder={root}", f"--tree={path}"]) == 0
    out = capsys.readouterr().out
    assert "level 2, 2 classes: ground 33.33 %, above 66.67 %" in out
    assert "level 3, 1 classes: all 100.00 %" in out
    assert "note: train: 1 of 3 leaves of the tree have no pixel: tree." in out


def test_check_takes_the_tree_of_the_label_space(root, tmp_path, capsys):
    names = labels.LabelSpace(
        name="mine",
        names=("road", "sky", "tree"),
        palette=((0, 0, 0),) * 3,
        is_thing=(False,) * 3,
        groups=("ground", "above"),
        parents=(3, 4, 3, -1, -1),
    )
    names.save(tmp_path / "names.json")
    assert command.main(["check", f"--folder={root}", f"--names={tmp_path / 'names.json'}"]) == 0
    assert "level 2, 2 classes: ground 33.33 %, above 66.67 %" in capsys.readouterr().out


def test_check_says_nothing_of_levels_where_there_is_no_tree(root, capsys):
    assert command.main(["check", f"--folder={root}"]) == 0
    out = capsys.readouterr().out
    assert "level 2" not in out and "leaves" not in out


@pytest.mark.parametrize(
    ("classes", "groups", "message"),
    [
        (CLASSES, {"ground": "above", "above": "ground"}, "circle, ground -> above -> ground"),
        (CLASSES, {"ground": None}, "'sky' has the parent 'above', which is not among the groups"),
        (CLASSES | {"car": None}, {"ground": None, "above": None}, "only the tree has 'car'"),
    ],
)
def test_check_counts_a_broken_tree_as_a_fault(root, tmp_path, capsys, classes, groups, message):
    path = tree_file(tmp_path, classes, groups)
    assert command.main(["check", f"--folder={root}", f"--tree={path}"]) == 1
    out = capsys.readouterr().out
    assert message in out and "1 fault." in out
    assert "train: 4 examples" in out  # the data is looked through all the same
