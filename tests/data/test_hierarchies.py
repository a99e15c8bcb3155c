"""Class trees: the published ones come out of their files, and what is no tree is named."""

from __future__ import annotations

import json
from pathlib import Path

import chex
import numpy as np
import pytest

from segjax.data import hierarchies, labels
from segjax.errors import SegjaxError
from tests.parity.hssn_trees import TREES

MAPILLARY_CASE = Path(__file__).parents[2] / "../shared/parity/hssn/loss_tree_min_mapillary.npz"
# The last leaf of each of the 17 groups, and where they stand above (LogicSeg's code).
MAPILLARY_ENDS = (1, 11, 25, 29, 31, 34, 37, 54, 58, 65, 77, 83, 89, 95, 104, 116, 123)
MAPILLARY_TOP = (0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5, 5, 5, 5, 5, 6)


def write(path, classes, groups=(), **more):
    def rows(table):
        return [{"name": name, "parent": parent} for name, parent in table]

    path.write_text(json.dumps({"classes": rows(classes), "groups": rows(groups), **more}))
    return path


def refusal(path):
    with pytest.raises(SegjaxError) as caught:
        hierarchies.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# --------------------------------------------------------------------------------------------------
# The published trees


@pytest.mark.parametrize("name", sorted(TREES))
def test_shipped_trees_equal_the_published_tables(name):
    tree = hierarchies.load(name)
    assert (tree.sizes, tree.parents) == TREES[name]
    assert tree.nodes == sum(tree.sizes)
    assert tree.tree.sizes == tree.sizes and tree.tree.parents == tree.parents


def test_mapillary_has_the_groups_of_the_published_code():
    tree = hierarchies.load("mapillary_vistas_v2")
    assert (tree.sizes, tree.nodes) == ((124, 17, 7), 148)
    expected = np.searchsorted(MAPILLARY_ENDS, np.arange(124))
    np.testing.assert_array_equal(tree.parents[0], expected)
    assert tree.parents[1] == MAPILLARY_TOP
    top = "animal construction human marking nature object void"
    assert tree.levels[2] == tuple(top.split())


@pytest.mark.skipif(not MAPILLARY_CASE.is_file(), reason="the case is not beside the repository")
def test_mapillary_has_the_parents_of_the_golden_case():
    arrays = dict(np.load(MAPILLARY_CASE))
    stored = {key.split("/")[-1]: value for key, value in arrays.items()}
    tree = hierarchies.load("mapillary_vistas_v2")
    np.testing.assert_array_equal(tree.parents[0], stored["parent_of_leaf"])
    np.testing.assert_array_equal(tree.parents[1], stored["parent_of_mid"])


def test_a_class_without_a_group_stands_for_itself_up_to_the_top():
    tree = hierarchies.load("person_part")
    assert tree.levels[1] == ("background", "upper body", "lower body")
    assert tree.levels[2] == ("background", "full body")
    assert tree.ancestors.tolist() == [
        [0, 0, 0],
        *([leaf, 1, 1] for leaf in (1, 2, 3, 4)),
        *([leaf, 2, 1] for leaf in (5, 6)),
    ]


def test_coco_has_the_official_supercategories():
    """27 of them below things and stuff, with as many classes as panopticapi's file gives them."""
    tree = hierarchies.load("coco_panoptic")
    assert tree.sizes == (133, 27, 2) and tree.levels[2] == ("thing", "stuff")
    things = [1, 8, 5, 10, 5, 10, 7, 10, 6, 6, 5, 7]
    stuff = [6, 5, 2, 8, 2, 3, 2, 9, 2, 3, 5, 2, 1, 1, 2]
    assert np.bincount(tree.parents[0]).tolist() == things + stuff
    assert tree.parents[1] == (0,) * 12 + (1,) * 15
    space = labels.builtin("coco_panoptic")
    np.testing.assert_array_equal(tree.ancestors[:, 2] == 0, space.is_thing)


def test_shapescapes_has_three_levels():
    tree = hierarchies.load("shapescapes")
    assert tree.sizes == (12, 6, 2)
    assert tree.levels[1] == ("air", "land", "liquid", "round", "angular", "thin")
    assert tree.levels[2] == ("stuff", "thing")


@pytest.mark.parametrize("name", hierarchies.shipped())
def test_a_tree_file_and_the_label_space_it_is_give_one_tree(name):
    space = labels.builtin(name)
    tree = hierarchies.load(name)
    assert tree == hierarchies.of(space)
    hierarchies.check_leaves(tree, space)


@pytest.mark.parametrize("name", hierarchies.shipped())
def test_ancestors_follow_the_parents_and_levels_come_by_their_first_leaf(name):
    tree = hierarchies.load(name)
    found = tree.ancestors
    chex.assert_shape(found, (tree.sizes[0], len(tree.levels)))
    np.testing.assert_array_equal(found[:, 0], np.arange(tree.sizes[0]))
    for level, parents in enumerate(tree.parents):
        np.testing.assert_array_equal(found[:, level + 1], np.array(parents)[found[:, level]])
        firsts = np.unique(found[:, level + 1], return_index=True)[1]
        assert len(firsts) == tree.sizes[level + 1] and (np.diff(firsts) > 0).all()


def test_a_label_space_without_groups_is_a_single_level():
    tree = hierarchies.of(labels.builtin("ade20k"))
    assert tree.sizes == (150,) and tree.parents == ()
    chex.assert_shape(tree.ancestors, (150, 1))


# --------------------------------------------------------------------------------------------------
# A user's files


def test_a_child_far_below_its_parent_stands_for_itself_between(tmp_path):
    """road -> way -> place -> all and lamp -> all: lamp has nodes of its own on levels 2 and 3."""
    path = write(
        tmp_path / "tree.json",
        [("lamp", "all"), ("road", "way"), ("park", "place")],
        [("way", "place"), ("place", "all"), ("all", None)],
        name="town",
    )
    tree = hierarchies.load(path)
    assert tree.name == "town"
    assert tree.levels == (
        ("lamp", "road", "park"),
        ("lamp", "way", "park"),
        ("lamp", "place"),
        ("all",),
    )
    assert tree.parents == ((0, 1, 2), (0, 1, 1), (0, 0))


def test_groups_may_be_listed_in_any_order_and_share_names_with_classes(tmp_path):
    classes = [("car", "vehicle"), ("person", "person"), ("bus", "vehicle")]
    groups = [("mover", None), ("person", "mover"), ("vehicle", "mover")]
    found = [
        hierarchies.load(write(tmp_path / "tree.json", classes, order))
        for order in (groups, groups[::-1])
    ]
    assert found[0] == found[1]
    assert found[0].levels == (("car", "person", "bus"), ("vehicle", "person"), ("mover",))
    assert found[0].parents == ((0, 1, 0), (0, 0))


def test_a_label_space_that_was_saved_is_a_tree_file(tmp_path):
    labels.builtin("cityscapes").save(tmp_path / "mine.json")
    assert hierarchies.load(tmp_path / "mine.json") == hierarchies.load("cityscapes")


@pytest.mark.parametrize(
    ("classes", "groups", "message"),
    [
        (
            [("x", "a")],
            [("a", "b"), ("b", "c"), ("c", "b")],
            "the groups go round in a circle, b -> c -> b",
        ),
        ([("x", "a")], [("a", "a")], "in a circle, a -> a"),
        (
            [("car", "a"), ("car", "b")],
            [("a", None), ("b", None)],
            "the class 'car' is listed twice, under 'a' and under 'b'",
        ),
        (
            [("x", "a")],
            [("a", "top"), ("a", None), ("top", None)],
            "the group 'a' is listed twice, under 'top' and under no group",
        ),
        (
            [("car", "vehicel")],
            [("vehicle", None)],
            "'car' has the parent 'vehicel', which is not among the groups; did you mean 'vehicle'",
        ),
        ([("x", "a")], [("a", "gone")], "'a' has the parent 'gone', which is not among the groups"),
        ([("x", None)], [("a", "b"), ("b", None)], "the group 'a' has no class below it"),
        (
            [("sky", None), ("car", "sky")],
            [("sky", None)],
            "level 2 would have two nodes named 'sky'",
        ),
        ([], [], "it lists no classes"),
        ([("x", 3)], [], "the parent of 'x' is 3"),
        ([("x", ["a", "b"])], [("a", None), ("b", None)], r"the parent of 'x' is ['a', 'b']"),
        ([("", None)], [], 'entry 0 of "classes" has no name'),
    ],
)
def test_what_is_no_tree_is_named_with_file_and_class(tmp_path, classes, groups, message):
    assert message in refusal(write(tmp_path / "tree.json", classes, groups))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("[1, 2", "this is not JSON"),
        ("[]", "it holds a list"),
        ("{}", "it lists no classes"),
        ('{"classes": "road"}', '"classes" are no list'),
        ('{"classes": ["road"]}', 'entry 0 of "classes" has no name'),
        ('{"classes": [{"name": "a"}], "grups": []}', 'the file has an unknown field "grups"'),
        ('{"classes": [{"name": "a", "parnt": "b"}]}', 'did you mean "parent"?'),
        (
            '{"classes": [{"name": "a", "parent": "b", "parent": "c"}]}',
            "'a' has two fields \"parent\" (b and c)",
        ),
        ('{"classes": [{"name": "a"}], "classes": []}', 'two fields "classes"'),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "tree.json"
    path.write_text(text)
    assert message in refusal(path)


def test_an_unknown_tree_is_told_the_nearest_name(tmp_path):
    with pytest.raises(SegjaxError, match=r"citiscapes: there is no such .*mean 'cityscapes'"):
        hierarchies.load("citiscapes")
    with pytest.raises(SegjaxError, match=r"gone\.json: there is no such class tree.*shapescapes"):
        hierarchies.load(tmp_path / "gone.json")
    with pytest.raises(SegjaxError, match="there is no such class tree"):
        hierarchies.load(tmp_path)


def test_a_label_space_with_an_empty_group_is_named():
    space = labels.LabelSpace("x", ("a",), ((0, 0, 0),), (False,), groups=("g",), parents=(-1, -1))
    with pytest.raises(SegjaxError, match="label space x: the group 'g' has no class below it"):
        hierarchies.of(space)


def test_leaves_must_be_the_classes_of_the_dataset():
    def space(*names):
        return labels.LabelSpace("mine", names, ((0, 0, 0),) * len(names), (False,) * len(names))

    tree = hierarchies.of(space("road", "sky", "car"))
    hierarchies.check_leaves(tree, space("road", "sky", "car"))
    with pytest.raises(SegjaxError, match="only the tree has 'sky', 'car'; only the label space"):
        hierarchies.check_leaves(tree, space("road", "air"))
    with pytest.raises(SegjaxError, match="class 1 is 'sky' in the tree but 'car' in the label"):
        hierarchies.check_leaves(tree, space("road", "car", "sky"))
