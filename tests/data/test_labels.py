"""Label spaces hold what the datasets define, survive a file, and refuse nonsense."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segjax.data import labels
from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError

BUILTIN = ("ade20k", "cityscapes", "coco_panoptic", "shapescapes")


@pytest.mark.parametrize(
    ("name", "classes", "things"),
    [
        ("ade20k", 150, 100),
        ("cityscapes", 19, 8),
        ("coco_panoptic", 133, 80),
        ("shapescapes", 12, 7),
    ],
)
def test_builtin_counts(name, classes, things):
    space = labels.builtin(name)
    assert (space.classes, sum(space.is_thing)) == (classes, things)
    assert len(set(space.names)) == classes


def test_some_official_entries():
    ade = labels.builtin("ade20k")
    assert [ade.names[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]
    assert ade.palette[0] == (120, 120, 120) and ade.palette[149] == (92, 0, 255)
    city = labels.builtin("cityscapes")
    assert (city.names[18], city.ids[18], city.palette[18]) == ("bicycle", 33, (119, 11, 32))
    coco = labels.builtin("coco_panoptic")
    assert (coco.names[132], coco.ids[132], coco.is_thing[132]) == ("rug-merged", 200, False)


@pytest.mark.parametrize("name", BUILTIN)
def test_saving_and_loading_gives_an_equal_space(name, tmp_path):
    space = labels.builtin(name)
    space.save(tmp_path / "space.json")
    assert LabelSpace.load(tmp_path / "space.json") == space


@pytest.mark.parametrize("name", ["cityscapes", "coco_panoptic", "shapescapes"])
def test_every_class_has_a_path_to_a_root_and_every_group_a_class(name):
    space = labels.builtin(name)
    paths = [space.path(label) for label in range(space.classes)]
    assert all(space.parents[path[-1]] == -1 for path in paths)
    assert {node for path in paths for node in path} == set(range(len(space.node_names)))


def test_shapescapes_has_three_levels_and_roots_that_tell_things_from_stuff():
    space = labels.builtin("shapescapes")
    for label in range(space.classes):
        path = space.path(label)
        assert len(path) == 3
        assert space.node_names[path[-1]] == ("thing" if space.is_thing[label] else "stuff")


def test_cityscapes_ids_become_train_ids():
    """The official table: id 7 is road (0), 33 bicycle (18); 0-6, 9, 10, 14-16, 18, 29, 30 don't
    count."""
    expected = np.full(34, -1)
    counted = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected[counted] = np.arange(19)
    found = labels.builtin("cityscapes").from_ids(np.arange(34))
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, expected)


def test_ids_need_no_order():
    space = LabelSpace("x", ("a", "b", "c"), ((0, 0, 0),) * 3, (False,) * 3, ids=(9, 2, 40))
    np.testing.assert_array_equal(space.from_ids(np.array([[40, 2], [9, 3]])), [[2, 1], [0, -1]])


def test_names_file_with_and_without_colours(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("# the classes\nroad\n\ntraffic sign #ff8000\nC#\n", encoding="utf-8-sig")
    space = labels.from_names_file(path)
    assert space.names == ("road", "traffic sign", "C#")
    assert space.palette[1] == (255, 128, 0)
    assert space.name == tmp_path.name


def test_names_in_json(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('["sky", "sea"]')
    assert labels.from_names_file(path).names == ("sky", "sea")
    labels.builtin("cityscapes").save(path)
    assert labels.from_names_file(path) == labels.builtin("cityscapes")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", "", "names no class"),
        ("names.txt", "a\nb\na\n", "class 'a' is named twice"),
        ("names.txt", "a #12345g\n", "is not a colour"),
        ("names.json", "[1, ", "not JSON"),
        ("names.json", '{"classes": [{"name": "a"}]}', "not a label space"),
    ],
)
def test_bad_names_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SegjaxError, match=f"{name}.*{message}"):
        labels.from_names_file(path)


def test_a_missing_names_file_is_named(tmp_path):
    with pytest.raises(SegjaxError, match=r"names\.txt: the file of class names is missing"):
        labels.from_names_file(tmp_path / "names.txt")


def test_a_tree_that_points_nowhere_is_refused(tmp_path):
    path = tmp_path / "space.json"
    labels.builtin("shapescapes").save(path)
    content = json.loads(path.read_text())
    content["classes"][0]["parent"] = "air force"
    path.write_text(json.dumps(content))
    with pytest.raises(SegjaxError, match="not a label space"):
        LabelSpace.load(path)
    with pytest.raises(SegjaxError, match="parent of 'a'"):
        LabelSpace("x", ("a",), ((0, 0, 0),), (False,), groups=("g",), parents=(0, -1))


def test_palette_colours_differ_keep_what_is_given_and_stay_when_classes_are_added():
    few = labels.distinct_palette(5, [None, (1, 2, 3)])
    many = labels.distinct_palette(40, [None, (1, 2, 3)])
    assert few[1] == (1, 2, 3)
    assert many[:5] == few
    assert len(set(many)) == 40
    far = np.linalg.norm(np.array(few)[:, None] - np.array(few)[None], axis=-1)
    assert far[~np.eye(5, dtype=bool)].min() > 90
