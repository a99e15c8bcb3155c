"""A user's own folder: found, matched and read, and every fault told by file name."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets
from segjax.errors import SegjaxError
from segjax.structs import IGNORE

NAMES = "road\nsky #00ccff\ntree\n"


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def example(seed, height=10, width=14, classes=3):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(0, classes, (height, width)).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two training examples and one for validation, in split folders."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "names.txt").write_text(NAMES)
    for seed, name in enumerate(("train/a", "train/b", "validation/c")):
        image, mask = example(seed)
        write(root / f"images/{name}.png", image)
        write(root / f"masks/{name}.png", mask)
    return root


@pytest.fixture
def load(root, tmp_path):
    def call(split="train", **options):
        return datasets.load(
            {"name": "folder", "root": str(root), **options}, split, str(tmp_path / "prepared")
        )

    return call


def test_split_folders_are_read(load):
    train, validation = load("train"), load("validation")
    assert [train[i]["name"] for i in range(len(train))] == ["a", "b"]
    assert len(validation) == 1
    for index in range(2):
        image, mask = example(index)
        np.testing.assert_array_equal(train[index]["image"], image)
        np.testing.assert_array_equal(train[index]["semantic"], mask)
    assert train.label_space.names == ("road", "sky", "tree")
    assert train.label_space.palette[1] == (0, 204, 255)
    assert train.sizes().tolist() == [[10, 14]] * 2


def test_255_is_not_counted_and_other_values_on_request(root, load):
    _, mask = example(7)
    mask[0, :3] = 255, 2, 200
    write(root / "masks/train/a.png", mask)
    with pytest.raises(SegjaxError, match=r"a\.png: label 200 is not below the 3 classes"):
        load()
    found = load(ignore=(255, 200, 2))[0]["semantic"]
    assert found[0, :3].tolist() == [IGNORE] * 3
    assert (found == 2).sum() == 0


def test_reduce_zero_label_shifts_once(root, load):
    _, mask = example(1, classes=4)  # 0 is "other", 1..3 the classes
    for name in ("a", "b"):
        write(root / f"masks/train/{name}.png", mask)
    found = load(reduce_zero_label=True)[0]["semantic"]
    np.testing.assert_array_equal(found, np.where(mask == 0, IGNORE, mask.astype(int) - 1))
    with pytest.raises(
        SegjaxError, match=r"label 3 is not below.*data\.dataset\.reduce_zero_label"
    ):
        load()
    mask[0, 0] = 4
    write(root / "masks/train/b.png", mask)
    with pytest.raises(SegjaxError, match=r"b\.png: label 4 .*labels 1 to 3"):
        load(reduce_zero_label=True)


def test_mask_values_can_be_named_in_the_names_file(root, load):
    (root / "names.json").write_text(
        '{"name": "binary", "classes": [{"name": "back", "color": "#000000", "id": 0},'
        ' {"name": "front", "color": "#ffffff", "id": 255}]}'
    )
    for name in ("a", "b"):
        write(root / f"masks/train/{name}.png", np.array([[0, 255] * 7] * 10, np.uint8))
    np.testing.assert_array_equal(load(names="names.json")[0]["semantic"], [[0, 1] * 7] * 10)
    write(root / "masks/train/b.png", np.full((10, 14), 128, np.uint8))
    with pytest.raises(SegjaxError, match=r"b\.png: value 128 is the id of no class"):
        load(names="names.json")


def test_palette_masks_are_read_by_index(root, load):
    _, mask = example(0)
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([255, 0, 0] * 256)
    picture.save(root / "masks/train/a.png")
    np.testing.assert_array_equal(load()[0]["semantic"], mask)


def test_photographs_of_any_kind_lie_beside_each_other(root, load):
    """A rotated JPEG, a 16-bit TIFF and a nested folder; masks fit the upright photograph."""
    image, _ = example(3, 20, 30)
    exif = Image.Exif()
    exif[274] = 6
    write(root / "images/train/day 1/photo.JPG", image, exif=exif)
    write(root / "masks/train/day 1/photo.png", np.zeros((30, 20), np.uint8))
    write(root / "images/train/deep.tif", np.full((6, 8), 257 * 99, np.uint16))
    write(root / "masks/train/deep.png", np.ones((6, 8), np.uint8))
    train = load()
    found = {train[i]["name"]: train[i] for i in range(len(train))}
    assert found["day 1/photo"]["image"].shape == (30, 20, 3)
    assert (found["deep"]["image"] == 99).all()
    assert sorted(map(tuple, train.sizes())) == [(6, 8), (10, 14), (10, 14), (30, 20)]


def test_without_split_folders_a_share_is_held_back_by_name(tmp_path):
    for number in range(40):
        image, mask = example(number)
        write(tmp_path / f"images/{number}.png", image)
        write(tmp_path / f"masks/{number}.png", mask)
    (tmp_path / "names.txt").write_text(NAMES)
    options = {"name": "folder", "root": str(tmp_path), "held_back": 0.25}
    before = {split: datasets.source(options, split).names() for split in ("train", "validation")}
    assert sorted(before["train"] + before["validation"]) == sorted(map(str, range(40)))
    assert 4 <= len(before["validation"]) <= 16
    image, mask = example(99)
    write(tmp_path / "images/new.png", image)
    write(tmp_path / "masks/new.png", mask)
    after = {split: datasets.source(options, split).names() for split in ("train", "validation")}
    assert all(set(before[split]) <= set(after[split]) for split in before)


def test_of_two_images_one_is_held_back(tmp_path):
    for name in "ab":
        image, mask = example(0)
        write(tmp_path / f"images/{name}.png", image)
        write(tmp_path / f"masks/{name}.png", mask)
    (tmp_path / "names.txt").write_text(NAMES)
    options = {"name": "folder", "root": str(tmp_path)}
    assert len(datasets.source(options, "train").names()) == 1
    assert len(datasets.source(options, "validation").names()) == 1


def test_changes_are_noticed(root, load):
    first = load()
    assert load().fingerprint == first.fingerprint
    _, mask = example(11)
    write(root / "masks/train/b.png", mask)
    os.utime(root / "masks/train/b.png", ns=(1, 1))
    second = load()
    assert second.fingerprint != first.fingerprint
    np.testing.assert_array_equal(second[1]["semantic"], mask)
    image, mask = example(12)
    write(root / "images/train/c.png", image)
    write(root / "masks/train/c.png", mask)
    assert len(load()) == 3
    (root / "names.txt").write_text(NAMES + "sea\n")
    assert load().label_space.classes == 4


def test_a_missing_mask_is_named(root, load):
    (root / "masks/train/b.png").unlink()
    with pytest.raises(
        SegjaxError, match=r"images/train/b\.png: its mask is missing.*masks/train/b\.png"
    ):
        load()


def test_a_mask_of_another_size_is_named(root, load):
    write(root / "masks/train/b.png", np.zeros((5, 14), np.uint8))
    with pytest.raises(SegjaxError, match=r"b\.png: the mask is 14 x 5 pixels.*14 x 10"):
        load()
    write(root / "masks/train/b.png", np.zeros((14, 10), np.uint8))
    with pytest.raises(SegjaxError, match=r"b\.png: .*EXIF"):
        load()


def test_a_mask_in_colour_is_named(root, load):
    write(root / "masks/train/b.png", example(0)[0])
    with pytest.raises(SegjaxError, match=r"masks/train/b\.png: the mask is in colour"):
        load()


def test_an_unreadable_image_is_named(root, load):
    path = root / "images/train/b.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SegjaxError, match=r"images/train/b\.png: the image is truncated"):
        load()
    path.write_bytes(b"this is no image")
    with pytest.raises(SegjaxError, match=r"images/train/b\.png: this is not an image"):
        load()


def test_two_images_with_one_name_are_refused(root, load):
    write(root / "images/train/a.jpg", example(0)[0])
    with pytest.raises(SegjaxError, match=r"a\.png: a\.jpg has the same name"):
        load()


def test_empty_and_missing_folders_are_told(root, load, tmp_path):
    with pytest.raises(SegjaxError, match="has no folder test"):
        load("test")
    for path in (root / "images/train").iterdir():
        path.unlink()
    with pytest.raises(
        SegjaxError, match=r"images/train: there are no image files; the dataset is"
    ):
        load()
    with pytest.raises(SegjaxError, match=r"masks: this folder is missing"):
        load(masks="labels/masks")
    with pytest.raises(SegjaxError, match="there is no folder"):
        datasets.load({"name": "folder", "root": str(tmp_path / "nowhere")}, "train")
    with pytest.raises(SegjaxError, match="root is empty"):
        datasets.load({"name": "folder", "root": ""}, "train")


def test_label_space_needs_the_names_file_alone(tmp_path):
    (tmp_path / "names.txt").write_text(NAMES)
    space = datasets.label_space({"name": "folder", "root": str(tmp_path)})
    assert space.names == ("road", "sky", "tree")
