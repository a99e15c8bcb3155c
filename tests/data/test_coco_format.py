"""One's own data in COCO's instance format: own folders, own file names, own classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from segjax.data import check, datasets
from segjax.errors import SegjaxError
from segjax.structs import IGNORE

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # x, y, ...: columns 2 to 5, rows 1 to 3
RUNS = {"size": [6, 8], "counts": [0, 6, 42]}  # the first column


def an_image(number, file_name):
    return {"id": number, "file_name": file_name, "height": 6, "width": 8}


def an_annotation(image, category, segmentation, **more):
    return {"image_id": image, "category_id": category, "segmentation": segmentation, **more}


@pytest.fixture
def contents():
    """What train.json and val.json hold: pictures in folders, ids that are neither 0, 1, ... nor in
    order, polygons and run lengths."""
    categories = [{"id": 40, "name": "pear"}, {"id": 7, "name": "apple"}]
    train = {
        "images": [an_image(11, "left/1.jpg"), an_image(5, "right/1.png"), an_image(6, "bare.jpg")],
        "annotations": [
            an_annotation(11, 7, [SQUARE]),
            an_annotation(11, 40, RUNS, iscrowd=1, area=6),
            an_annotation(5, 40, [SQUARE], area=12),
        ],
        "categories": categories,
    }
    val = {
        "images": [an_image(1, "val 1.jpg"), an_image(2, "val 2.jpg")],
        "annotations": [an_annotation(2, 40, RUNS)],
        "categories": categories,
    }
    return {"train": train, "val": val}


@pytest.fixture
def mine(tmp_path, contents):
    """Writes the data and gives what config.data.dataset says of it."""
    root = tmp_path / "mine"

    def write(**options):
        for name, content in contents.items():
            for row in content["images"]:
                path = root / "photos" / row["file_name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((6, 8, 3), row["id"], np.uint8)).save(path)
            (root / f"{name}.json").write_text(json.dumps(content))
        return {
            "name": "coco_instance",
            "manual_dir": str(root),
            "images": "photos",
            "annotations": "{split}.json",
            "categories": "train.json",
            **options,
        }

    return write


def test_classes_are_those_of_the_file_in_its_order(mine):
    space = datasets.label_space(mine())
    assert space.names == ("pear", "apple") and space.ids == (40, 7)
    assert space.is_thing == (True, True)


def test_polygons_and_run_lengths_become_segments_of_own_classes(mine, tmp_path):
    found = datasets.load(mine(), "train", str(tmp_path))
    examples = {example["name"]: example for example in found}
    first = examples["train/left/1"]
    expected = np.full((6, 8), -1)
    expected[1:4, 2:6] = 0
    expected[:, 0] = 1
    np.testing.assert_array_equal(first["segments"], expected)
    assert first["segment_class"].tolist() == [1, 0]
    assert first["segment_is_crowd"].tolist() == [False, True]
    assert first["segment_area"].tolist() == [12, 6]
    np.testing.assert_array_equal(
        first["semantic"], np.array([1, 0, IGNORE])[np.where(expected < 0, 2, expected)]
    )


def test_pictures_of_one_name_in_two_folders_stay_apart(mine, tmp_path):
    """Results of an evaluation are collected by name."""
    found = datasets.load(mine(), "train", str(tmp_path))
    names = [example["name"] for example in found]
    assert names == ["train/bare", "train/left/1", "train/right/1"]
    assert abs(int(found[2]["image"].mean()) - 5) <= 1


def test_pictures_that_differ_in_their_ending_alone_are_refused(mine, contents, tmp_path):
    contents["train"]["images"].append(an_image(12, "left/1.png"))
    with pytest.raises(SegjaxError, match=r"train\.json: 2 images are named left/1; "):
        datasets.load(mine(), "train", str(tmp_path))


def test_pictures_without_instances_are_left_out_of_the_training_alone(mine, tmp_path):
    """An instance found where there is none is an error, which an evaluation has to see."""
    options = mine(skip_empty=True)
    train, val = (datasets.load(options, s, str(tmp_path)) for s in ("train", "validation"))
    assert [example["name"] for example in train] == ["train/left/1", "train/right/1"]
    assert [example["name"] for example in val] == ["validation/val 1", "validation/val 2"]


def test_check_finds_no_fault_and_counts_both_splits(mine):
    options = mine()
    for split, pixels in (("train", [18, 12]), ("validation", [6, 0])):
        report = check.check(datasets.source(options, split))
        assert not report.faults
        assert report.pixels.tolist() == pixels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "pictures"}, r"config\.data\.dataset\.images: there is no folder .*pictures;"),
        (
            {"annotations": "labels_{split}.json"},
            r"config\.data\.dataset\.annotations: there is no file .*labels_train\.json;",
        ),
        ({"categories": "names.json"}, r"names\.json: there is no such file"),
    ],
)
def test_a_missing_path_is_named_by_its_field(mine, tmp_path, options, message):
    with pytest.raises(SegjaxError, match=message) as caught:
        datasets.load(mine(**options), "train", str(tmp_path))
    assert "cocodataset.org" not in str(caught.value)
