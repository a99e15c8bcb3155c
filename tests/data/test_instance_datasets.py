"""Datasets with instances in their official layouts, in small."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data import check, datasets, images, instances, labels, prepared
from segjax.data.datasets import coco_instance
from segjax.data.prepared import Record, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE

SAMPLE = Path(__file__).parents[2] / "../shared/realdata/coco_panoptic_sample"


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photo(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def manual(tmp_path):
    return tmp_path / "downloads/manual"


def load(tmp_path, name, split="train", **options):
    return datasets.load({"name": name, **options}, split, str(tmp_path))


def fault(tmp_path, name, **options):
    with pytest.raises(SegjaxError) as caught:
        load(tmp_path, name, **options)
    return str(caught.value)


# Overlap ------------------------------------------------------------------------------------------


def test_masks_go_to_the_first_layer_where_they_overlap_nothing():
    masks = np.zeros((4, 1, 6), bool)
    masks[0, 0, 0:3] = masks[1, 0, 2:5] = masks[2, 0, 4:6] = masks[3, 0, 0:6] = True
    layers = instances.layered(list(masks), (1, 6))
    assert layers.tolist() == [
        [[0, 0, 0, -1, 2, 2]],
        [[-1, -1, 1, 1, 1, -1]],
        [[3, 3, 3, 3, 3, 3]],
    ]
    assert instances.top_layer(layers).tolist() == [[0, 0, 0, 1, 2, 2]]


def test_masks_without_overlap_and_no_masks_are_one_layer():
    assert instances.layered([np.eye(3, dtype=bool)], (3, 3)).shape == (3, 3)
    assert (instances.layered([], (2, 5)) == np.full((2, 5), -1)).all()


def a_source(records):
    space = labels.LabelSpace("few", ("a", "b"), ((0, 0, 0),) * 2, (True, False))
    names = [f"n{i}" for i in range(len(records))]
    return Source("few", "train", space, "k", True, lambda: names, lambda index: records[index])


def test_layers_areas_and_things_survive_preparation(tmp_path):
    rng = np.random.default_rng(0)
    layers = rng.integers(-1, 2, (3, 4, 5)).astype(np.int32)
    semantic = np.zeros((4, 5), np.int16)
    image = images.encode_png(photo(4, 5))
    several = Record(image, (4, 5), semantic, layers, [0, 1], [False, True], [7.5, 100])
    single = Record(image, (4, 5), semantic, layers[0], [1, 0], [False, False])
    nothing = Record(image, (4, 5), semantic, np.full((4, 5), -1, np.int32))
    found = prepared.prepare(a_source([several, single, nothing]), tmp_path)
    np.testing.assert_array_equal(found[0]["segments"], layers)
    np.testing.assert_array_equal(found[1]["segments"], layers[0])
    assert (found[2]["segments"] == -1).all() and found[2]["segments"].shape == (4, 5)
    assert found[0]["segment_is_crowd"].tolist() == [False, True]
    assert found[0]["segment_is_thing"].tolist() == [True, False]
    assert found[0]["segment_area"].tolist() == [7.5, 100]
    assert found[1]["segment_area"].tolist() == [(layers[0] == i).sum() for i in range(2)]
    for name in ("segment_class", "segment_is_crowd", "segment_is_thing", "segment_area"):
        assert found[2][name].shape == (0,)


# COCO instances -----------------------------------------------------------------------------------


def polygon(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def coco_tree(root, change=lambda content: None):
    """One image with two overlapping persons, a crowd of cats, and an image without anything."""
    write(root / "train2017/000000000009.jpg", photo(8, 10))
    write(root / "train2017/000000000025.jpg", photo(6, 6))
    crowd = [0, 8, 72]  # nothing ..., then the first column, given down the columns
    content = {
        "images": [
            {"id": 25, "file_name": "000000000025.jpg", "height": 6, "width": 6},
            {"id": 9, "file_name": "000000000009.jpg", "height": 8, "width": 10},
        ],
        "annotations": [
            {"image_id": 9, "category_id": 1, "segmentation": [polygon(1, 1, 5, 4)], "area": 20.0},
            {"image_id": 9, "category_id": 90, "segmentation": [polygon(4, 3, 4, 4)], "area": 16.5},
            {
                "image_id": 9,
                "category_id": 17,
                "iscrowd": 1,
                "segmentation": {"size": [8, 10], "counts": crowd},
                "area": 8,
            },
        ],
    }
    change(content)
    path = root / "annotations/instances_train2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_coco_instances_overlap_in_layers_and_crowds_stay(manual, tmp_path):
    coco_tree(manual / "coco_panoptic")
    found = load(tmp_path, "coco_instance")
    first, second = found[0], found[1]
    expected = np.full((2, 8, 10), -1)
    expected[0, 1:5, 1:6] = 0
    expected[0, :, 0] = 2
    expected[1, 3:7, 4:8] = 1
    np.testing.assert_array_equal(first["segments"], expected)
    assert first["segment_class"].tolist() == [0, 79, 15]
    assert first["segment_is_crowd"].tolist() == [False, False, True]
    assert first["segment_area"].tolist() == [20, 16.5, 8]
    assert first["semantic"][4, 5] == 0 and first["semantic"][6, 7] == 79
    assert first["semantic"][0, 9] == IGNORE
    assert second["name"] == "train/000000000025" and len(second["segment_class"]) == 0
    assert (second["segments"] == -1).all()


def test_coco_images_without_instances_can_be_left_out(manual, tmp_path):
    coco_tree(manual / "coco_panoptic")
    assert len(load(tmp_path, "coco_instance", skip_empty=True)) == 1


def test_coco_polygons_without_area_hold_no_pixel(manual, tmp_path):
    def change(content):
        content["annotations"][0]["segmentation"] = [[1.0, 1.0, 5.0, 5.0]]

    coco_tree(manual / "coco_panoptic", change)
    found = load(tmp_path, "coco_instance")[0]
    assert len(found["segment_class"]) == 3 and not (found["segments"] == 0).any()


def test_coco_polygons_without_pycocotools_hold_the_pixels_whose_centres_lie_inside(monkeypatch):
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    star = np.stack([np.cos(angles), np.sin(angles)], -1) * rng.uniform(8, 19, (7, 1)) + (25, 20)
    for shape in ([polygon(1, 1, 5, 4), polygon(3, 2, 5, 5)], [star.ravel().tolist()]):
        theirs = coco_instance._mask(shape, (40, 50), "here")
        with monkeypatch.context() as patch:
            patch.setattr(coco_instance, "_drawn_by", lambda: "centres")
            ours = coco_instance._mask(shape, (40, 50), "here")
        square = np.ones((3, 3), np.uint8)
        inner = cv2.erode(theirs.astype(np.uint8), square) > 0
        outer = cv2.dilate(theirs.astype(np.uint8), square) > 0
        assert ours.sum() > 20
        assert ours[inner].all() and not ours[~outer].any()
        assert (ours ^ theirs).sum() < 0.1 * theirs.sum()


def test_coco_compressed_run_lengths_need_pycocotools(monkeypatch):
    monkeypatch.setattr(coco_instance, "_drawn_by", lambda: "centres")
    with pytest.raises(SegjaxError, match=r"pip install segjax\[coco\]"):
        coco_instance._mask({"size": [8, 10], "counts": "abc"}, (8, 10), "here")


def test_coco_run_lengths_equal_pycocotools(monkeypatch):
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((7, 9)) < 0.4
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (packed["counts"], packed["counts"].decode()):
        shape = {"size": [7, 9], "counts": counts}
        np.testing.assert_array_equal(coco_instance._mask(shape, (7, 9), "here"), mask)
    flat = mask.T.ravel()
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat.astype(int))) + 1), flat.size])
    counts = [0, *runs] if flat[0] else list(runs)
    shape = {"size": [7, 9], "counts": counts}
    np.testing.assert_array_equal(coco_instance._mask(shape, (7, 9), "here"), mask)


def set_first(name, value):
    def change(content):
        content["annotations"][0][name] = value

    return change


def drop_segmentation(content):
    del content["annotations"][0]["segmentation"]


def drop_images(content):
    del content["images"]


def empty_images(content):
    content["images"], content["annotations"] = [], []


def wrong_size(content):
    content["images"][1]["width"] = 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_first("category_id", 12), r"000000000009\.jpg has category_id 12, which is none of"),
        (set_first("segmentation", [[1, 2, 3]]), r"000000000009\.jpg has a segmentation that is"),
        (set_first("segmentation", {"size": [8, 9], "counts": [72]}), "nor run lengths of 8 x 10"),
        (set_first("segmentation", {"size": [8, 10], "counts": [72]}), "nor run lengths of 8 x 10"),
        (set_first("image_id", 77), r"instances_train2017\.json: .*KeyError: 77"),
        (drop_segmentation, r"000000000009\.jpg lacks 'segmentation'"),
        (drop_images, r"instances_train2017\.json: this is not an instances JSON"),
        (empty_images, r"instances_train2017\.json: it has no images"),
        (wrong_size, r"instances_train2017\.json: the mask is 11 x 8 pixels"),
    ],
)
def test_coco_instance_faults_are_one_sentence(manual, tmp_path, change, message):
    coco_tree(manual / "coco_panoptic", change)
    with pytest.raises(SegjaxError, match=message):
        load(tmp_path, "coco_instance")


def test_coco_form_with_other_categories(tmp_path):
    root = tmp_path / "mine"

    def change(content):
        content["categories"] = [{"id": i, "name": f"kind {i}"} for i in (90, 1, 17)]

    coco_tree(root, change)
    options = {"manual_dir": str(root), "categories": "annotations/instances_train2017.json"}
    found = load(tmp_path, "coco_instance", **options)
    assert found.label_space.names == ("kind 90", "kind 1", "kind 17")
    assert found[0]["segment_class"].tolist() == [1, 0, 2]


def test_real_coco_run_lengths_draw_the_panoptic_segments(tmp_path):
    """The sample of panopticapi has the same segments in both forms."""
    pytest.importorskip("pycocotools")
    if not SAMPLE.is_dir():
        pytest.skip("the annotated COCO sample is not beside the repository")
    common = dict(
        manual_dir=str(SAMPLE),
        images="input_images",
        categories="panoptic_coco_categories.json",
    )
    drawn = load(
        tmp_path, "coco_instance", annotations="panoptic_coco_detection_format.json", **common
    )
    painted = load(
        tmp_path,
        "coco_panoptic",
        masks="panoptic_examples",
        annotations="panoptic_examples.json",
        **common,
    )
    for ours, theirs in zip(drawn, painted, strict=True):
        assert ours["name"] == theirs["name"]
        np.testing.assert_array_equal(ours["semantic"], theirs["semantic"])
        assert sorted(ours["segment_area"]) == sorted(theirs["segment_area"])
        counts = np.bincount(theirs["segments"][theirs["segments"] >= 0])
        np.testing.assert_array_equal(theirs["segment_area"], counts)


# COCO panoptic ------------------------------------------------------------------------------------


def panoptic_tree(root, segments, area):
    write(root / "train2017/1.jpg", photo(2, 2))
    drawn = np.zeros((2, 2, 3), np.uint8)
    drawn[..., 0] = [[0, 5], [5, 5]] if segments else 0
    write(root / "annotations/panoptic_train2017/1.png", drawn)
    rows = [{"id": 5, "category_id": 1, "iscrowd": 0, "area": area}] if segments else []
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": rows}],
    }
    (root / "annotations/panoptic_train2017.json").write_text(json.dumps(content))


def test_coco_panoptic_areas_are_those_of_the_json(manual, tmp_path):
    panoptic_tree(manual / "coco_panoptic", True, 4)
    assert load(tmp_path, "coco_panoptic")[0]["segment_area"].tolist() == [4]


def test_coco_panoptic_area_0_is_named(manual, tmp_path):
    panoptic_tree(manual / "coco_panoptic", True, 0)
    assert "1.png: segment 5 has area 0" in fault(tmp_path, "coco_panoptic")


def test_coco_panoptic_image_without_segments_loads(manual, tmp_path):
    panoptic_tree(manual / "coco_panoptic", False, 0)
    found = load(tmp_path, "coco_panoptic")[0]
    assert (found["segments"] == -1).all() and (found["semantic"] == IGNORE).all()
    assert found["segment_class"].shape == (0,)


# ADE20K -------------------------------------------------------------------------------------------


@pytest.fixture
def ade(manual):
    """Wall below, sky above; a bed (class 7) over both and a flag (149) over the whole sky."""
    root = manual / "ade20k/ADEChallengeData2016"
    semantic = np.array([[3, 3, 3, 0], [1, 1, 8, 8], [1, 1, 8, 8]], np.uint8)
    red = np.array([[100, 100, 100, 0], [0, 1, 1, 1], [0, 0, 0, 1]], np.uint8)
    green = np.array([[2, 2, 2, 0], [0, 9, 9, 9], [0, 0, 0, 9]], np.uint8)
    for folder, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write(root / f"images/{folder}/{stem}.jpg", photo(3, 4))
        write(root / f"annotations/{folder}/{stem}.png", semantic)
        colour = np.stack([red, green, np.zeros_like(red)], axis=-1)
        write(root / f"annotations_instance/{folder}/{stem}.png", colour)
    return root


def test_ade20k_panoptic_lays_instances_over_stuff(ade, tmp_path):
    found = load(tmp_path, "ade20k_panoptic")[0]
    assert found["segment_class"].tolist() == [0, 2, 149, 7]
    assert not found["segment_is_crowd"].any()
    assert found["segment_is_thing"].tolist() == [False, False, True, True]
    assert found["segments"].tolist() == [[2, 2, 2, -1], [0, 3, 3, 3], [0, 0, -1, 3]]
    assert found["semantic"].tolist() == [[2, 2, 2, -1], [0, 0, 7, 7], [0, 0, 7, 7]]
    assert found["segment_area"].tolist() == [4, 3, 3, 4]  # stuff as it was before


def test_ade20k_instance_has_100_classes(ade, tmp_path):
    found = load(tmp_path, "ade20k_instance", "validation")
    assert found.label_space.classes == 100 and all(found.label_space.is_thing)
    assert found.label_space.names[0] == "bed" and found.label_space.names[99] == "flag"
    example = found[0]
    assert example["segment_class"].tolist() == [99, 0]
    assert example["segments"].tolist() == [[0, 0, 0, -1], [-1, 1, 1, 1], [-1, -1, -1, 1]]
    assert example["semantic"].tolist() == [[99, 99, 99, -1], [-1, 0, 0, 0], [-1, -1, -1, 0]]


@pytest.mark.parametrize("name", ["ade20k_panoptic", "ade20k_instance"])
def test_ade20k_instance_files_with_faults_are_named(ade, tmp_path, name):
    path = ade / "annotations_instance/training/ADE_train_00000001.png"
    colour = np.array(Image.open(path))
    colour[2, 3, 0] = 4
    write(path, colour)
    message = fault(tmp_path, name)
    assert "ADE_train_00000001.png: instance 9 has class 1 and 4" in message
    colour[..., 0] = 101
    write(path, colour)
    assert "instance 2 has class 101" in fault(tmp_path, name)
    path.unlink()
    assert "ADE_train_00000001.jpg: its label file is missing" in fault(tmp_path, name)


# Cityscapes ---------------------------------------------------------------------------------------


@pytest.fixture
def cityscapes(manual):
    """Road 7, a group of persons 24, two cars 26, a caravan 29 (not evaluated), sky 23."""
    root = manual / "cityscapes"
    for folder, city in (("train", "aachen"), ("val", "lindau")):
        stem = f"{city}_000000_000019"
        write(root / f"leftImg8bit/{folder}/{city}/{stem}_leftImg8bit.png", photo(2, 4))
        ids = np.array([[23, 23, 24, 3], [7, 26000, 26001, 29000]], np.uint16)
        write(root / f"gtFine/{folder}/{city}/{stem}_gtFine_instanceIds.png", ids)
    return root


def test_cityscapes_panoptic_groups_are_crowds(cityscapes, tmp_path):
    found = load(tmp_path, "cityscapes_panoptic")[0]
    assert found["segment_class"].tolist() == [0, 10, 11, 13, 13]
    assert found["segment_is_crowd"].tolist() == [False, False, True, False, False]
    assert found["segments"].tolist() == [[1, 1, 2, -1], [0, 3, 4, -1]]
    assert found["semantic"].tolist() == [[10, 10, 11, -1], [0, 13, 13, -1]]


def test_cityscapes_instance_has_the_things_alone(cityscapes, tmp_path):
    found = load(tmp_path, "cityscapes_instance", "validation")
    assert found.label_space.names[:3] == ("person", "rider", "car")
    example = found[0]
    assert example["segment_class"].tolist() == [0, 2, 2]
    assert example["segment_is_crowd"].tolist() == [True, False, False]
    assert example["segments"].tolist() == [[-1, -1, 0, -1], [-1, 1, 2, -1]]


@pytest.mark.parametrize("name", ["cityscapes_panoptic", "cityscapes_instance"])
def test_cityscapes_values_that_cannot_be_are_named(cityscapes, tmp_path, name):
    path = cityscapes / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png"
    write(path, np.full((2, 4), 40000, np.uint16))
    assert "instanceIds.png: value 40000 is no instance" in fault(tmp_path, name)
    write(path, np.full((4, 2), 7, np.uint16))
    assert "the mask is 2 x 4 pixels, but its image" in fault(tmp_path, name)


# Mapillary Vistas ---------------------------------------------------------------------------------


@pytest.fixture
def vistas(manual):
    """Bird, sky (twice, with numbers), two cars, not labelled."""
    root = manual / "mapillary_vistas"
    ids = np.array([[0, 27 * 256, 27 * 256 + 1], [55 * 256, 55 * 256 + 1, 65 * 256]], np.uint16)
    for folder in ("training", "validation"):
        write(root / f"{folder}/images/a.jpg", photo(2, 3))
        write(root / f"{folder}/instances/a.png", ids)
        write(root / f"{folder}/labels/a.png", (ids // 256).astype(np.uint8))
    return root


def test_mapillary_vistas_panoptic_has_one_segment_per_stuff_class(vistas, tmp_path):
    found = load(tmp_path, "mapillary_vistas", panoptic=True)[0]
    assert found["segment_class"].tolist() == [0, 27, 55, 55]
    assert found["segments"].tolist() == [[0, 1, 1], [2, 3, -1]]
    assert found["semantic"].tolist() == [[0, 27, 27], [55, 55, IGNORE]]


def test_mapillary_vistas_semantic_reads_the_labels(vistas, tmp_path):
    found = load(tmp_path, "mapillary_vistas", "validation")
    assert "segments" not in found[0]
    assert found[0]["semantic"].tolist() == [[0, 27, 27], [55, 55, IGNORE]]
    space = found.label_space
    assert (space.names[0], space.names[27], space.names[55]) == ("Bird", "Sky", "Car")
    assert space.classes == 65 and sum(space.is_thing) == 37


def test_mapillary_vistas_faults_are_named(vistas, tmp_path):
    write(vistas / "training/instances/a.png", np.full((2, 3), 66 * 256, np.uint16))
    assert "a.png: label 66 is not below 66" in fault(tmp_path, "mapillary_vistas", panoptic=True)
    write(vistas / "training/labels/a.png", np.full((2, 3), 66, np.uint8))
    assert "a.png: label 66 is not below the 65" in fault(tmp_path, "mapillary_vistas")


# All ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "line"),
    [
        ("ade20k_panoptic", "ade20k", "annotations_instance/training/"),
        ("ade20k_instance", "ade20k", "annotations_instance/training/"),
        ("cityscapes_panoptic", "cityscapes", "gtFine_instanceIds.png"),
        ("cityscapes_instance", "cityscapes", "gtFine_instanceIds.png"),
        ("coco_instance", "coco_panoptic", "instances_train2017.json"),
        ("mapillary_vistas", "mapillary_vistas", "training/instances/"),
    ],
)
def test_missing_data_is_told_with_layout_and_place(tmp_path, name, folder, line):
    message = fault(tmp_path, name)
    assert line in message and f"{tmp_path}/downloads/manual/{folder}" in message
    assert "http" in message and "manual_dir" in message
    with pytest.raises(SegjaxError, match="splits train and validation, not 'test'"):
        load(tmp_path, name, "test")
    assert datasets.label_space({"name": name}).classes >= 8


def test_a_prepared_copy_outlives_the_shared_files(ade, tmp_path, capsys):
    first = load(tmp_path, "ade20k_instance")
    (tmp_path / "downloads").rename(tmp_path / "elsewhere")
    assert load(tmp_path, "ade20k_instance").fingerprint == first.fingerprint
    assert "original files are gone; using 1 examples" in capsys.readouterr().err


def test_data_check_goes_through_layers(manual, tmp_path):
    coco_tree(manual / "coco_panoptic")
    report = check.check(datasets.source({"name": "coco_instance"}, "train", str(tmp_path)))
    assert not report.faults and report.examples == 2
    assert report.pixels[0] == 20 and report.pixels[15] == 8
