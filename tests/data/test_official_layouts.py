"""Datasets in their official layouts, in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets
from segjax.data.datasets import lip as lip_dataset
from segjax.errors import SegjaxError
from segjax.structs import IGNORE

SAMPLE = Path(__file__).parents[2] / "../shared/realdata/coco_panoptic_sample"


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photo(seed, height=12, width=18):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def manual(tmp_path):
    return tmp_path / "downloads/manual"


def load(tmp_path, name, split="train", **options):
    return datasets.load({"name": name, **options}, split, str(tmp_path))


# ADE20K


@pytest.fixture
def ade(manual):
    root = manual / "ade20k/ADEChallengeData2016"
    raw = np.arange(151, dtype=np.uint8)[:144].reshape(12, 12)
    for folder, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write(root / f"images/{folder}/{stem}.jpg", photo(0, 12, 12))
        write(root / f"annotations/{folder}/{stem}.png", raw)
    return root


def test_ade20k_label_0_is_not_counted_and_150_is_the_last_class(ade, tmp_path):
    mask = np.array([[0, 1, 149, 150, 255]], np.uint8)
    write(ade / "images/training/ADE_train_00000002.jpg", photo(1, 1, 5))
    write(ade / "annotations/training/ADE_train_00000002.png", mask)
    found = load(tmp_path, "ade20k")
    assert [found[i]["name"] for i in range(2)] == [
        "train/ADE_train_00000001",
        "train/ADE_train_00000002",
    ]
    assert found[1]["semantic"].tolist() == [[IGNORE, 0, 148, 149, IGNORE]]
    assert found.label_space.classes == 150
    assert len(load(tmp_path, "ade20k", "validation")) == 1


def test_ade20k_takes_the_folder_or_the_one_above_it(ade, tmp_path):
    for manual_dir in (ade, ade.parent):
        assert len(load(tmp_path, "ade20k", manual_dir=str(manual_dir))) == 1


def test_ade20k_label_above_150_is_named(ade, tmp_path):
    write(ade / "annotations/training/ADE_train_00000001.png", np.full((12, 12), 151, np.uint8))
    with pytest.raises(SegjaxError, match=r"ADE_train_00000001\.png: value 151"):
        load(tmp_path, "ade20k")


@pytest.mark.parametrize(
    ("name", "archive", "line"),
    [
        ("ade20k", "ADEChallengeData2016.zip", "images/training/ADE_train_00000001.jpg"),
        ("cityscapes", "gtFine_trainvaltest.zip", "gtFine/train/aachen/"),
        ("coco_panoptic", "panoptic_annotations_trainval2017.zip", "panoptic_val2017.json"),
        ("lip", "TrainVal_parsing_annotations.zip", "train_segmentations/NAME.png"),
        ("pascal_person_part", "pascal_person_part.zip", "pascal_person_part_gt/2008_000008.png"),
    ],
)
def test_missing_data_is_told_with_archive_layout_and_place(tmp_path, name, archive, line):
    with pytest.raises(SegjaxError) as caught:
        load(tmp_path, name)
    message = str(caught.value)
    assert archive in message and line in message
    assert f"{tmp_path}/downloads/manual/{name}" in message
    assert "http" in message and "manual_dir" in message


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("ade20k", 150),
        ("cityscapes", 19),
        ("coco_panoptic", 133),
        ("lip", 20),
        ("pascal_person_part", 7),
        ("shapescapes", 12),
    ],
)
def test_label_spaces_need_no_data(name, classes):
    assert datasets.label_space({"name": name}).classes == classes


def test_a_prepared_copy_outlives_the_original_files(ade, tmp_path, capsys):
    first = load(tmp_path, "ade20k")
    other = tmp_path / "other"
    write(other / "images/training/x.jpg", photo(3))
    write(other / "annotations/training/x.png", np.ones((12, 18), np.uint8))
    load(tmp_path, "ade20k", manual_dir=str(other))  # newer, but not the official data
    ade.parent.rename(tmp_path / "elsewhere")
    again = load(tmp_path, "ade20k")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again[0]["semantic"], first[0]["semantic"])
    assert "original files are gone; using 1 examples" in capsys.readouterr().err


# Cityscapes


@pytest.fixture
def cityscapes(manual):
    root = manual / "cityscapes"
    for folder, city in (("train", "aachen"), ("train", "bremen"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        write(root / f"leftImg8bit/{folder}/{city}/{stem}_leftImg8bit.png", photo(0, 2, 17))
        ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
        write(root / f"gtFine/{folder}/{city}/{stem}_gtFine_labelIds.png", ids)
    return root


def test_cityscapes_label_ids_become_train_ids(cityscapes, tmp_path):
    train = load(tmp_path, "cityscapes")
    assert [train[i]["name"] for i in range(len(train))] == [
        "train/aachen_000000_000019",
        "train/bremen_000000_000019",
    ]
    found = train[0]["semantic"].ravel()
    assert found[[7, 8, 11, 26, 33]].tolist() == [0, 1, 2, 13, 18]
    assert found[[0, 1, 6, 9, 29, 30]].tolist() == [IGNORE] * 6
    assert len(load(tmp_path, "cityscapes", "validation")) == 1


def test_cityscapes_train_id_files_give_the_same_classes(cityscapes, tmp_path):
    by_ids = load(tmp_path, "cityscapes")
    for index, city in enumerate(("aachen", "bremen")):
        numbers = by_ids[index]["semantic"]
        stem = cityscapes / f"gtFine/train/{city}/{city}_000000_000019_gtFine_labelTrainIds.png"
        write(stem, np.where(numbers == IGNORE, 255, numbers).astype(np.uint8))
    by_train_ids = load(tmp_path, "cityscapes", labels="labelTrainIds")
    for index in range(2):
        np.testing.assert_array_equal(by_train_ids[index]["semantic"], by_ids[index]["semantic"])


def test_cityscapes_faults_are_named(cityscapes, tmp_path):
    with pytest.raises(SegjaxError, match=r"'labelIds' or 'labelTrainIds'"):
        load(tmp_path, "cityscapes", labels="ids")
    with pytest.raises(SegjaxError, match=r"_leftImg8bit\.png: its mask is missing.*labelTrainIds"):
        load(tmp_path, "cityscapes", labels="labelTrainIds")
    path = cityscapes / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    write(path, np.full((2, 17), 40, np.uint8))
    with pytest.raises(SegjaxError, match=r"labelIds\.png: label 40 is no Cityscapes label id"):
        load(tmp_path, "cityscapes")


# PASCAL-Person-Part


@pytest.fixture
def person_part(manual):
    root = manual / "pascal_person_part"
    for number in (1, 2, 3):
        write(root / f"JPEGImages/2008_00000{number}.jpg", photo(number, 2, 4))
        mask = np.array([[0, 1, 2, 3], [4, 5, 6, 255]], np.uint8)
        write(root / f"pascal_person_part_gt/2008_00000{number}.png", mask)
    (root / "train_id.txt").write_text("2008_000003\n2008_000001\n")
    (root / "val_id.txt").write_text("2008_000002\n")
    return root


def test_person_part_has_the_images_of_its_lists_and_255_is_not_counted(person_part, tmp_path):
    train = load(tmp_path, "pascal_person_part")
    names = [train[i]["name"] for i in range(len(train))]
    assert sorted(names) == ["train/2008_000001", "train/2008_000003"]
    assert train[0]["semantic"].tolist() == [[0, 1, 2, 3], [4, 5, 6, IGNORE]]
    assert train.label_space.names[1:3] == ("head", "torso")
    found = load(tmp_path, "pascal_person_part", "validation")
    assert [found[i]["name"] for i in range(len(found))] == ["validation/2008_000002"]


def test_person_part_lists_may_lie_in_the_folder_of_the_archive(person_part, tmp_path):
    (person_part / "pascal_person_part_trainval_list").mkdir()
    for name in ("train_id.txt", "val_id.txt"):
        (person_part / name).rename(person_part / "pascal_person_part_trainval_list" / name)
    assert len(load(tmp_path, "pascal_person_part")) == 2


def test_person_part_faults_are_named(person_part, tmp_path):
    path = person_part / "pascal_person_part_gt/2008_000003.png"
    write(path, np.full((2, 4), 7, np.uint8))
    with pytest.raises(SegjaxError, match=r"2008_000003\.png: label 7 is not below the 7 classes"):
        load(tmp_path, "pascal_person_part")
    (person_part / "val_id.txt").write_text("2008_000009\n")
    with pytest.raises(SegjaxError, match=r"2008_000009\.jpg: the image is missing"):
        load(tmp_path, "pascal_person_part", "validation")
    (person_part / "val_id.txt").write_text("")
    with pytest.raises(SegjaxError, match=r"val_id\.txt: it is empty"):
        load(tmp_path, "pascal_person_part", "validation")
    with pytest.raises(SegjaxError, match="splits train and validation, not 'test'"):
        load(tmp_path, "pascal_person_part", "test")


# LIP


@pytest.fixture
def lip(manual):
    root = manual / "lip"
    for folder in ("train", "val"):
        write(root / f"TrainVal_images/{folder}_images/77_471474.jpg", photo(0, 4, 5))
        mask = np.arange(20, dtype=np.uint8).reshape(4, 5)
        write(root / f"TrainVal_parsing_annotations/{folder}_segmentations/77_471474.png", mask)
    return root


def test_lip_has_20_classes_background_among_them(lip, tmp_path):
    for split in ("train", "validation"):
        found = load(tmp_path, "lip", split)
        assert (len(found), found[0]["name"]) == (1, f"{split}/77_471474")
        assert found[0]["semantic"].ravel().tolist() == list(range(20))


def test_lip_exchanges_the_left_and_right_of_arms_legs_and_shoes():
    names = lip_dataset.label_space().names
    pairs = [(names[left], names[right]) for left, right in lip_dataset.FLIP_PAIRS]
    assert pairs == [(f"left {part}", f"right {part}") for part in ("arm", "leg", "shoe")]


def test_lip_faults_are_named(lip, tmp_path):
    path = lip / "TrainVal_parsing_annotations/train_segmentations/77_471474.png"
    write(path, np.full((4, 5), 20, np.uint8))
    with pytest.raises(SegjaxError, match=r"77_471474\.png: label 20 is not below the 20 classes"):
        load(tmp_path, "lip")
    path.unlink()
    with pytest.raises(SegjaxError, match=r"77_471474\.jpg: its mask is missing"):
        load(tmp_path, "lip")
    with pytest.raises(SegjaxError, match="splits train and validation, not 'test'"):
        load(tmp_path, "lip", "test")


# Mapillary Vistas 2.0 (version 1.2: test_instance_datasets.py)


@pytest.fixture
def vistas(manual):
    root = manual / "mapillary_vistas"
    for folder in ("training", "validation"):
        write(root / f"{folder}/images/a.jpg", photo(0, 4, 31))
        labels = np.arange(124, dtype=np.uint8).reshape(4, 31)
        write(root / f"{folder}/v2.0/labels/a.png", labels)
    return root


def test_mapillary_vistas_2_has_124_classes_unlabeled_among_them(vistas, tmp_path):
    for split in ("train", "validation"):
        found = load(tmp_path, "mapillary_vistas", split, version="2.0")
        assert found[0]["semantic"].ravel().tolist() == list(range(124))
    space = found.label_space
    assert datasets.label_space({"name": "mapillary_vistas", "version": "2.0"}) == space
    picked = [space.names[i] for i in (0, 12, 30, 61, 104, 108, 123)]
    assert picked == ["Bird", "Wall", "Person", "Sky", "Trash Can", "Car", "Unlabeled"]
    assert space.palette[108] == (0, 0, 142) and len(set(space.names)) == 124


def test_mapillary_vistas_2_faults_are_named(vistas, tmp_path):
    write(vistas / "training/v2.0/labels/a.png", np.full((4, 31), 124, np.uint8))
    with pytest.raises(SegjaxError, match=r"a\.png: label 124 is not below the 124 classes"):
        load(tmp_path, "mapillary_vistas", version="2.0")
    with pytest.raises(SegjaxError, match=r"segments are read of version 1\.2, not 2\.0"):
        load(tmp_path, "mapillary_vistas", version="2.0", panoptic=True)
    with pytest.raises(SegjaxError, match=r"version is 2\.0; it must be the text '1.2' or '2.0'"):
        load(tmp_path, "mapillary_vistas", version=2.0)
    (vistas / "training/v2.0").rename(vistas / "elsewhere")
    with pytest.raises(SegjaxError, match=r"(?s)Vistas 2\.0 is not at.*training/v2.0/labels/NAME"):
        load(tmp_path, "mapillary_vistas", version="2.0")


# COCO panoptic

PERSON, SKY = 1, 187  # category ids; classes 0 and 119


def coco_tree(root, split="train", change=lambda content: None):
    """One image: void, a person, a crowd of persons, sky."""
    write(root / f"{split}2017/000000000009.jpg", photo(0, 4, 4))
    ids = np.array([[0, 0, 7, 7], [0, 0, 7, 7], [70000, 70000, 513, 513], [70000] * 4])
    colour = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    write(root / f"annotations/panoptic_{split}2017/000000000009.png", colour)
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 4, "width": 4}],
        "annotations": [
            {
                "image_id": 9,
                "file_name": "000000000009.png",
                "segments_info": [
                    {"id": 513, "category_id": PERSON, "iscrowd": 1},
                    {"id": 7, "category_id": SKY, "iscrowd": 0},
                    {"id": 70000, "category_id": PERSON, "iscrowd": 0},
                ],
            }
        ],
    }
    change(content)
    path = root / f"annotations/panoptic_{split}2017.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("split", "folder"), [("train", "train"), ("validation", "val")])
def test_coco_segments_classes_and_crowds(manual, tmp_path, split, folder):
    coco_tree(manual / "coco_panoptic", folder)
    found = load(tmp_path, "coco_panoptic", split)[0]
    np.testing.assert_array_equal(
        found["segments"], [[-1, -1, 1, 1], [-1, -1, 1, 1], [2, 2, 0, 0], [2, 2, 2, 2]]
    )
    np.testing.assert_array_equal(
        found["semantic"], [[-1, -1, 119, 119], [-1, -1, 119, 119], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    assert found["segment_class"].tolist() == [0, 119, 0]
    assert found["segment_is_crowd"].tolist() == [True, False, False]
    assert found["name"] == f"{split}/000000000009"


def set_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 12


def drop_segment(content):
    del content["annotations"][0]["segments_info"][1]


def add_segment(content):
    content["annotations"][0]["segments_info"].append({"id": 99, "category_id": 1})


def repeat_segment(content):
    content["annotations"][0]["segments_info"].append({"id": 7, "category_id": 1})


def drop_id(content):
    del content["annotations"][0]["segments_info"][0]["id"]


def drop_annotations(content):
    del content["annotations"]


def empty_annotations(content):
    content["annotations"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_category, r"000000000009\.png: category_id 12 is none of coco_panoptic"),
        (drop_segment, r"000000000009\.png: segment 7 is not listed in panoptic_train2017\.json"),
        (add_segment, r"000000000009\.png: segment 99 of panoptic_train2017\.json has no pixel"),
        (repeat_segment, r"two segments of 000000000009\.png have the same id"),
        (drop_id, r"000000000009\.png: a segment lacks 'id'"),
        (drop_annotations, r"panoptic_train2017\.json: this is not a panoptic JSON.*annotations"),
        (empty_annotations, r"panoptic_train2017\.json: it has no annotations"),
    ],
)
def test_coco_faults_are_named(manual, tmp_path, change, message):
    coco_tree(manual / "coco_panoptic", change=change)
    with pytest.raises(SegjaxError, match=message):
        load(tmp_path, "coco_panoptic")


def test_coco_truncated_json_and_missing_files_are_named(manual, tmp_path):
    path = coco_tree(manual / "coco_panoptic")
    (manual / "coco_panoptic/train2017/000000000009.jpg").unlink()
    with pytest.raises(SegjaxError, match=r"train2017/000000000009\.jpg: the image is missing"):
        load(tmp_path, "coco_panoptic")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(SegjaxError, match=r"panoptic_train2017\.json: this is not JSON"):
        load(tmp_path, "coco_panoptic")


def test_coco_form_with_other_categories(tmp_path):
    root = tmp_path / "mine"
    coco_tree(root, change=lambda content: None)
    (root / "categories.json").write_text(
        json.dumps(
            [{"id": SKY, "name": "air", "isthing": 0}, {"id": PERSON, "name": "man", "isthing": 1}]
        )
    )
    options = {"manual_dir": str(root), "categories": "categories.json"}
    found = load(tmp_path, "coco_panoptic", **options)
    assert found.label_space.names == ("air", "man")
    assert found[0]["segment_class"].tolist() == [1, 0, 1]
    assert datasets.label_space({"name": "coco_panoptic", **options}) == found.label_space


def test_real_coco_photographs(tmp_path):
    """The sample of panopticapi, against the category-and-instance form that lies beside it."""
    if not SAMPLE.is_dir():
        pytest.skip("the annotated COCO sample is not beside the repository")
    found = load(
        tmp_path,
        "coco_panoptic",
        manual_dir=str(SAMPLE),
        images="input_images",
        masks="panoptic_examples",
        annotations="panoptic_examples.json",
    )
    assert found.sizes().tolist() == [[427, 640], [360, 640]]
    for index in range(2):
        example = found[index]
        stem = example["name"].split("/")[1]
        two_channel = Image.open(SAMPLE / f"panoptic_examples_2ch_format/{stem}.png").convert("RGB")
        category = np.array(two_channel)[..., 0]
        expected = found.label_space.from_ids(category)
        np.testing.assert_array_equal(example["semantic"], expected)
        classes = example["segment_class"][example["segments"]]
        labelled = example["segments"] >= 0
        np.testing.assert_array_equal(classes[labelled], example["semantic"][labelled])
        assert example["image"].shape[:2] == example["semantic"].shape
