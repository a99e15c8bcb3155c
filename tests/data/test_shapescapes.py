"""Generated scenes: the same every time, of any size, with labels that agree."""

from __future__ import annotations

import numpy as np
import pytest

from segjax.data import datasets, scenes
from segjax.data.datasets import shapescapes
from segjax.errors import SegjaxError

SIZES = [(128, 128), (96, 160), (200, 64), (16, 16)]


def scene(index=0, size=(128, 128), split="train", seed=0):
    return shapescapes.scene_at(split, index, size, seed)


@pytest.mark.parametrize("size", SIZES)
def test_a_scene_is_a_function_of_seed_split_index_and_size(size):
    first, again = scene(3, size), scene(3, size)
    for field, other in zip(first, again):
        np.testing.assert_array_equal(field, other)
    for different in (scene(4, size), scene(3, size, "validation"), scene(3, size, seed=1)):
        assert (different.image != first.image).any()


@pytest.mark.parametrize("size", SIZES)
def test_segments_and_classes_agree(size):
    for index in range(8):
        found = scene(index, size)
        assert found.image.shape == (*size, 3) and found.image.dtype == np.uint8
        np.testing.assert_array_equal(found.segment_class[found.segments], found.semantic)
        seen = np.unique(found.segments)
        np.testing.assert_array_equal(seen, np.arange(len(found.segment_class)))
        stuff = found.segment_class[found.segment_class < scenes.STUFF]
        assert len(set(stuff.tolist())) == len(stuff)  # one segment a stuff class
        assert not found.segment_is_crowd[found.segment_class < scenes.STUFF].any()


def test_classes_are_those_of_the_label_space():
    space = datasets.label_space({"name": "shapescapes"})
    assert space.names == scenes.CLASSES
    assert space.is_thing == tuple(label >= scenes.STUFF for label in range(len(scenes.CLASSES)))


def test_every_class_occurs_often_and_some_segments_are_crowds():
    found = [scene(index, (64, 64)) for index in range(60)]
    images = sum(np.isin(np.arange(12), item.semantic) for item in found)
    assert images.min() >= 20
    assert 5 <= sum(item.segment_is_crowd.any() for item in found) <= 40


def test_no_thing_is_told_by_its_hue_alone():
    """Each hue that a class is painted in comes close to one of another class."""
    hues = [(kind, hue) for kind, values in scenes.HUES.items() for hue in values]
    for kind, hue in hues:
        gaps = [abs((hue - h + 0.5) % 1 - 0.5) for other, h in hues if other != kind]
        assert min(gaps) < 0.12


def test_much_of_a_scene_is_finer_than_a_patch():
    """What a patch-wise labelling at stride 16 must miss: the pixels that aren't of the commonest
    class of their 16 x 16 cell."""
    missed = []
    for index in range(30):
        cells = scene(index).semantic.reshape(8, 16, 8, 16).transpose(0, 2, 1, 3).reshape(64, 256)
        missed += [1 - np.bincount(cell).max() / 256 for cell in cells]
    assert 0.08 < np.mean(missed) < 0.3


def test_a_larger_split_begins_with_the_smaller_one(tmp_path):
    small = shapescapes.load("train", tmp_path, size=(32, 48), train=3)
    large = shapescapes.load("train", tmp_path, size=(32, 48), train=5)
    assert (len(small), len(large)) == (3, 5)
    assert small.fingerprint != large.fingerprint
    for index in range(3):
        np.testing.assert_array_equal(small[index]["image"], large[index]["image"])


def test_what_is_stored_is_what_was_painted(tmp_path):
    dataset = datasets.load(
        {"name": "shapescapes", "size": [40, 56], "validation": 4}, "validation", str(tmp_path)
    )
    for index in range(4):
        stored, painted = dataset[index], scene(index, (40, 56), "validation")
        np.testing.assert_array_equal(stored["image"], painted.image)
        np.testing.assert_array_equal(stored["semantic"], painted.semantic)
        np.testing.assert_array_equal(stored["segments"], painted.segments)
        np.testing.assert_array_equal(stored["segment_class"], painted.segment_class)
        np.testing.assert_array_equal(stored["segment_is_crowd"], painted.segment_is_crowd)
    assert dataset.sizes().tolist() == [[40, 56]] * 4
    assert dataset[1]["name"] == "validation/000001"


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("test", {}, "train and validation, not 'test'"),
        ("train", {"train": 0}, "dataset.train is 0"),
        ("train", {"size": (8, 8)}, "dataset.size"),
        (
            "train",
            {"sise": (64, 64)},
            r"sise is not an option of shapescapes; did you mean .*\.size\?",
        ),
    ],
)
def test_bad_options_are_named(tmp_path, split, options, message):
    with pytest.raises(SegjaxError, match=message):
        datasets.load({"name": "shapescapes", **options}, split, str(tmp_path))
