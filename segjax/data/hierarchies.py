"""Class trees: classes, groups of classes, groups of groups, in files that a person can check.

    {"name": "street",
     "classes": [{"name": "road", "parent": "flat"}, {"name": "car", "parent": "vehicle"}],
     "groups": [{"name": "flat"}, {"name": "vehicle", "parent": "moving"}, {"name": "moving"}]}

This is how label spaces are spelled, so the file of a label space that has groups is the file of a
tree. Classes and groups may share names; a parent is always a group.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.ops.hierarchy import Tree

SHIPPED = Path(__file__).parent / "label_spaces"

FIELDS = {
    "file": ("name", "classes", "groups"),
    "classes": ("name", "parent", "color", "thing", "id"),
    "groups": ("name", "parent"),
}
"""What a file may have: itself, and the rows of its two lists. A tree needs no colours and ids."""

Rows = Sequence[tuple[str, str | None]]
"""(name, name of the parent) of classes or of groups."""


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """A tree in levels: every class belongs to one class of the level above, up to the top.

    The nodes of a network are the leaves, then the classes of each further level upwards.

    Attributes:
        name: the dataset's name.
        levels: names of the classes of each level, the leaves first.
        parents: for each level but the last, the parent of each of its classes, as an index into
            the next level.
    """

    name: str
    levels: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def tree(self) -> Tree:
        """The numbers alone."""
        return Tree(tuple(len(level) for level in self.levels), self.parents)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each level, the leaves first."""
        return self.tree.sizes

    @property
    def nodes(self) -> int:
        """Number of classes of all levels together."""
        return self.tree.nodes

    @property
    def ancestors(self) -> np.ndarray:
        """int32 [leaves, levels]: the class of each level that a leaf belongs to, numbered within
        its level; column 0 is the leaf itself."""
        return self.tree.ancestors


def load(name_or_path: str | PathLike[str]) -> Hierarchy:
    """A tree that ships with segjax, or that of a file.

    Args:
        name_or_path: the name of a label space that has a tree (`shipped` lists them), or a JSON
            file.

    Raises:
        SegjaxError: there is no such tree, or the file holds none: a cycle, a node with two
            parents, a parent that isn't listed, a group without a class.
    """
    path = path_of(name_or_path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise _missing(str(name_or_path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SegjaxError(f"{path}: this class tree is unreadable ({error}).") from None
    return _parsed(text, str(path))


def level_space(hierarchy: Hierarchy, space: LabelSpace, level: int) -> LabelSpace:
    """The label space of an upper level: each class has the colour of its first leaf, and is a
    thing if all its leaves are.

    Args:
        hierarchy: over the classes of `space`.
        level: index into `hierarchy.levels`.
    """
    above = hierarchy.ancestors[:, level]
    members = [np.flatnonzero(above == node) for node in range(hierarchy.sizes[level])]
    return LabelSpace(
        f"{space.name}, level {level + 1}",
        hierarchy.levels[level],
        tuple(space.palette[leaves[0]] for leaves in members),
        tuple(all(space.is_thing[leaf] for leaf in leaves) for leaves in members),
    )


def path_of(name_or_path: str | PathLike[str]) -> Path:
    """The file of a tree, as `load` finds it."""
    path = Path(name_or_path)
    if path.suffix != ".json" and (SHIPPED / f"{path}.json").is_file():
        return SHIPPED / f"{path}.json"
    return path


def shipped() -> tuple[str, ...]:
    """Names of the trees that ship with segjax."""
    files = sorted(SHIPPED.glob("*.json"))
    return tuple(f.stem for f in files if '"groups"' in f.read_text(encoding="utf-8"))


def of(space: LabelSpace) -> Hierarchy:
    """The tree in a label space; a single level where it has none.

    Raises:
        SegjaxError: a group without a class.
    """
    parents = space.parents or (-1,) * space.classes
    rows = [
        (name, None if parent == -1 else space.node_names[parent])
        for name, parent in zip(space.node_names, parents)
    ]
    where = f"label space {space.name}"
    return _built(space.name, rows[: space.classes], rows[space.classes :], where)


def check_leaves(hierarchy: Hierarchy, space: LabelSpace) -> None:
    """Checks that the leaves are the classes of a label space, in their order.

    Raises:
        SegjaxError: they are not; tells what either side alone has.
    """
    leaves, names = hierarchy.levels[0], space.names
    if leaves == names:
        return
    start = f"the class tree {hierarchy.name} does not fit the label space {space.name}: "
    sides = []
    for side, mine, other in (("tree", leaves, names), ("label space", names, leaves)):
        alone = [name for name in mine if name not in other]
        if alone:
            sides.append(f"only the {side} has {_listed(alone)}")
    if sides:
        raise SegjaxError(f"{start}{'; '.join(sides)}; its leaves must be the dataset's classes.")
    first = next(i for i, (leaf, name) in enumerate(zip(leaves, names)) if leaf != name)
    raise SegjaxError(
        f"{start}class {first} is '{leaves[first]}' in the tree but '{names[first]}' in the label"
        " space; list the classes in the order of their numbers."
    )


# --------------------------------------------------------------------------------------------------
# Files


def _missing(name: str) -> SegjaxError:
    names = shipped()
    near = difflib.get_close_matches(name, names, n=1)
    return SegjaxError(
        f"{name}: there is no such class tree"
        + (f" (did you mean '{near[0]}'?)" if near else "")
        + f"; name a JSON file, or one of {', '.join(names)}."
    )


def _parsed(text: str, where: str) -> Hierarchy:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object as a dict. Python's own keeps the last of two equal keys."""
        row = dict(pairs)
        counts = collections.Counter(key for key, _ in pairs)
        for key in counts:
            if counts[key] > 1:
                values = " and ".join(str(value) for name, value in pairs if name == key)
                raise SegjaxError(
                    f"{where}: '{row.get('name', '?')}' has two fields \"{key}\" ({values}); keep"
                    " one."
                )
        return row

    if not text.strip():
        raise _no_tree(where, "it is empty")
    try:
        content = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise SegjaxError(f"{where}: this is not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise _no_tree(where, f"it holds a {type(content).__name__}")
    _check_fields(content, "file", where, "the file")
    classes = _rows(content, "classes", where)
    if not classes:
        raise _no_tree(where, "it lists no classes")
    name = content.get("name", Path(where).stem)
    return _built(str(name), classes, _rows(content, "groups", where), where)


def _rows(content: Mapping[str, Any], kind: str, where: str) -> Rows:
    rows = content.get(kind, [])
    if not isinstance(rows, list):
        raise _no_tree(where, f'its "{kind}" are no list')
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not row["name"]:
            raise _no_tree(where, f'entry {number} of "{kind}" has no name')
        parent = row.get("parent")
        if not isinstance(parent, str | None):
            raise SegjaxError(
                f"{where}: the parent of '{row['name']}' is {parent!r}; write the name of one"
                " group, or null."
            )
        _check_fields(row, kind, where, f"'{row['name']}'")
        found.append((row["name"], parent))
    return found


def _check_fields(row: Mapping[str, Any], kind: str, where: str, owner: str) -> None:
    for field in row:
        if field not in FIELDS[kind]:
            near = difflib.get_close_matches(field, FIELDS[kind], n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(FIELDS[kind])}."
            raise SegjaxError(f'{where}: {owner} has an unknown field "{field}"; {hint}')


def _no_tree(where: str, why: str) -> SegjaxError:
    return SegjaxError(
        f"{where}: this is not a class tree, {why}; it needs"
        ' {"classes": [{"name": ..., "parent": ...}, ...], "groups": [...]}.'
    )


# --------------------------------------------------------------------------------------------------
# Levels


def _built(name: str, classes: Rows, groups: Rows, where: str) -> Hierarchy:
    """Sorts the nodes into levels.

    A class is on level 1, a group on the level above its highest child. Where a child lies further
    below its parent, or where a node without one lies below the top, it stands for itself on the
    levels between. Classes of a level come in the order of their first leaves.
    """
    _check_nodes(classes, groups, where)
    parent_of = dict(groups)
    above = [_above(parent, parent_of) for _, parent in classes]
    height: dict[str, int] = {}  # the longest way down to a class
    for chain in above:
        for steps, group in enumerate(chain, start=1):
            height[group] = max(height.get(group, 0), steps)
    unused = [group for group, _ in groups if group not in height]
    if unused:
        raise SegjaxError(
            f"{where}: the group '{unused[0]}' has no class below it; remove it, or make it the"
            " parent of one."
        )
    columns = []  # of each level: for each leaf, which node it belongs to
    for level in range(1 + max(height.values(), default=0)):
        reached = [[group for group in chain if height[group] <= level] for chain in above]
        columns.append(
            [
                ("group", up[-1]) if up else ("class", leaf)
                for up, (leaf, _) in zip(reached, classes)
            ]
        )
    levels = [list(dict.fromkeys(column)) for column in columns]
    parents = []
    for below, column, level in zip(columns, columns[1:], levels[1:]):
        parent = dict(zip(below, column))
        parents.append(tuple(level.index(parent[node]) for node in dict.fromkeys(below)))
    for number, level in enumerate(levels, start=1):
        _check_names([node for _, node in level], number, where)
    return Hierarchy(name, tuple(tuple(n for _, n in level) for level in levels), tuple(parents))


def _above(parent: str | None, parent_of: Mapping[str, str | None]) -> list[str]:
    """The groups from a parent up to its root."""
    chain = []
    while parent is not None:
        chain.append(parent)
        parent = parent_of[parent]
    return chain


def _check_nodes(classes: Rows, groups: Rows, where: str) -> None:
    """Every node once, every parent a group, and no way up that comes back."""
    for kind, rows in (("class", classes), ("group", groups)):
        seen: dict[str, str | None] = {}
        for name, parent in rows:
            if name in seen:
                below = " and ".join(f"under {_quoted(p)}" for p in (seen[name], parent))
                raise SegjaxError(
                    f"{where}: the {kind} '{name}' is listed twice, {below}; keep one, as a node"
                    " has one parent."
                )
            seen[name] = parent
    parent_of = dict(groups)
    for name, parent in (*classes, *groups):
        if parent is not None and parent not in parent_of:
            near = difflib.get_close_matches(parent, parent_of, n=1)
            raise SegjaxError(
                f"{where}: '{name}' has the parent '{parent}', which is not among the groups"
                + (f"; did you mean '{near[0]}'?" if near else "; list it there.")
            )
    for start in parent_of:
        way = [start]
        while (parent := parent_of[way[-1]]) is not None:
            if parent in way:
                circle = " -> ".join([*way[way.index(parent) :], parent])
                raise SegjaxError(
                    f"{where}: the groups go round in a circle, {circle}; one of them must have"
                    " another parent, or none."
                )
            way.append(parent)


def _check_names(names: Sequence[str], level: int, where: str) -> None:
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise SegjaxError(
                f"{where}: level {level} would have two nodes named '{name}', a group and one that"
                " stands for itself there; rename the group."
            )


def _quoted(name: str | None) -> str:
    return "no group" if name is None else f"'{name}'"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
