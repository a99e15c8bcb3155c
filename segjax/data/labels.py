"""Label spaces: what the numbers of a label map mean, kept as data that a person can check."""

from __future__ import annotations

import colorsys
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.errors import SegjaxError
from segjax.structs import IGNORE

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """K classes, how they are drawn, and (optionally) the tree above them.

    Attributes:
        name: the dataset's name.
        names: K class names; the index is the class number in `semantic`.
        palette: K colours (R, G, B), 0..255.
        is_thing: K flags; True where instances are told apart.
        ids: K numbers that stand for the classes in the dataset's own files, or () when those
            hold the class numbers themselves.
        groups: names of the G inner nodes of the tree; node K + g is groups[g].
        parents: K + G node numbers: the parent of every class, then of every group; -1 for a root.
            () when there is no tree.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    is_thing: tuple[bool, ...]
    ids: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        classes, nodes = len(self.names), len(self.names) + len(self.groups)
        if not classes:
            raise SegjaxError(f"label space {self.name}: it has no classes; name at least one.")
        if classes >= np.iinfo(np.int16).max:
            raise SegjaxError(f"label space {self.name}: {classes} classes are too many for int16.")
        for field, length in (("palette", classes), ("is_thing", classes)):
            if len(getattr(self, field)) != length:
                raise SegjaxError(
                    f"label space {self.name}: {field} has {len(getattr(self, field))} entries for"
                    f" {length} classes."
                )
        if self.ids and (len(self.ids) != classes or len(set(self.ids)) != classes):
            raise SegjaxError(f"label space {self.name}: ids must be {classes} different numbers.")
        if (self.parents or self.groups) and len(self.parents) != nodes:
            raise SegjaxError(
                f"label space {self.name}: parents has {len(self.parents)} entries for {nodes}"
                " classes and groups."
            )
        for node, parent in enumerate(self.parents):
            # A parent above its children in number makes cycles impossible.
            if parent != -1 and not max(node, classes - 1) < parent < nodes:
                raise SegjaxError(
                    f"label space {self.name}: the parent of '{self.node_names[node]}' must be a"
                    " group that is listed after it."
                )

    @property
    def classes(self) -> int:
        """K."""
        return len(self.names)

    @property
    def node_names(self) -> tuple[str, ...]:
        """The K classes, then the G groups."""
        return self.names + self.groups

    def path(self, label: int) -> tuple[int, ...]:
        """The nodes from a class up to its root, the class first."""
        nodes = [label]
        while self.parents and self.parents[nodes[-1]] != -1:
            nodes.append(self.parents[nodes[-1]])
        return tuple(nodes)

    def from_ids(self, ids: np.ndarray) -> np.ndarray:
        """Turns the numbers of the dataset's files into class numbers.

        Args:
            ids: int [...], values of the files.

        Returns:
            int16 [...], IGNORE where a number stands for no class.
        """
        own = np.asarray(self.ids or range(self.classes))
        order = np.argsort(own)
        slot = np.clip(np.searchsorted(own[order], ids), 0, len(own) - 1)
        return np.where(own[order][slot] == ids, order[slot], IGNORE).astype(np.int16)

    def save(self, path: str | Path) -> None:
        """Writes JSON, one class a line."""
        classes = [
            {
                "name": self.names[i],
                "color": "#{:02x}{:02x}{:02x}".format(*self.palette[i]),
                "thing": self.is_thing[i],
                **({"id": self.ids[i]} if self.ids else {}),
                **({"parent": self._parent_name(i)} if self.parents else {}),
            }
            for i in range(self.classes)
        ]
        groups = [
            {"name": name, "parent": self._parent_name(self.classes + i)}
            for i, name in enumerate(self.groups)
        ]
        lines = [f'  "name": {json.dumps(self.name)}', f'  "classes": {_rows(classes)}']
        if groups:
            lines.append(f'  "groups": {_rows(groups)}')
        Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def _parent_name(self, node: int) -> str | None:
        return None if self.parents[node] == -1 else self.node_names[self.parents[node]]

    @classmethod
    def load(cls, path: str | Path) -> LabelSpace:
        """Reads what `save` wrote.

        Raises:
            SegjaxError: the file is missing, isn't JSON or lacks a field.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            classes, groups = content["classes"], content.get("groups", [])
            nodes = {row["name"]: len(classes) + i for i, row in enumerate(groups)}
            has_tree = bool(groups)
            return cls(
                name=content["name"],
                names=tuple(row["name"] for row in classes),
                palette=tuple(parse_colour(row["color"], str(path)) for row in classes),
                is_thing=tuple(bool(row.get("thing", False)) for row in classes),
                ids=tuple(row["id"] for row in classes if "id" in row),
                groups=tuple(nodes),
                parents=tuple(
                    -1 if row.get("parent") is None else nodes[row["parent"]]
                    for row in (*classes, *groups)
                )
                if has_tree
                else (),
            )
        except FileNotFoundError:
            raise SegjaxError(f"{path}: there is no such label space file.") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SegjaxError(
                f"{path}: this is not a label space ({type(error).__name__}: {error}); it needs"
                ' {"name": ..., "classes": [{"name": ..., "color": "#rrggbb"}, ...]}.'
            ) from None


def builtin(name: str) -> LabelSpace:
    """The label space `label_spaces/<name>.json` that ships with segjax."""
    return LabelSpace.load(Path(__file__).parent / "label_spaces" / f"{name}.json")


def from_names_file(path: str | Path, name: str = "") -> LabelSpace:
    """Reads a user's class names.

    A text file holds one class a line in the order of the mask values, optionally followed by a
    colour "#rrggbb"; empty lines and lines that begin with "# " are skipped. A JSON file holds
    either a list of names or what `LabelSpace.save` writes. Classes without a colour get one of
    `distinct_palette`.

    Raises:
        SegjaxError: the file is missing, empty, or names a class twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SegjaxError(
            f"{path}: the file of class names is missing; write one class name a line, in the order"
            " of the mask values."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SegjaxError(f"{path}: the file of class names is unreadable ({error}).") from None
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SegjaxError(f"{path}: this is not JSON ({error}).") from None
        if isinstance(content, dict):
            return LabelSpace.load(path)
        lines = [str(item) for item in content]
    else:
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("# ") and line != "#"]
    names, colours = [], []
    for line in lines:
        head, mark, colour = line.rpartition("#")
        if mark and head.strip() and len(colour) == 6:
            names.append(head.strip().rstrip(",").strip())
            colours.append(parse_colour("#" + colour, f"{path}: class '{names[-1]}'"))
        else:
            names.append(line)
            colours.append(None)
    if not names:
        raise SegjaxError(f"{path}: it names no class; write one class name a line.")
    twice = sorted({item for item in names if names.count(item) > 1})
    if twice:
        raise SegjaxError(f"{path}: class '{twice[0]}' is named twice.")
    return LabelSpace(
        name=name or path.parent.name,
        names=tuple(names),
        palette=distinct_palette(len(names), colours),
        is_thing=(False,) * len(names),
    )


def distinct_palette(count: int, given: Sequence[Colour | None] = ()) -> tuple[Colour, ...]:
    """`count` colours that are told apart easily; entries of `given` that aren't None are kept.

    Each free colour is the candidate farthest from all earlier ones, in a space where distance
    follows perception roughly. The first colours don't change when `count` grows.
    """
    given = list(given) + [None] * (count - len(given))
    steps = [
        colorsys.hsv_to_rgb(hue / 36, saturation, value)
        for value in (0.95, 0.75, 0.5)
        for saturation in (0.85, 0.5)
        for hue in range(36)
    ]
    candidates = np.round(np.array(steps) * 255)
    weights = np.sqrt([2.0, 4.0, 3.0])  # the eye's weights for R, G and B differences
    taken = [np.array(colour, float) for colour in given if colour is not None]
    nearest = np.full(len(candidates), np.inf)
    for colour in [*taken, np.zeros(3), np.full(3, 255.0)]:
        nearest = np.minimum(nearest, np.linalg.norm((candidates - colour) * weights, axis=1))
    palette = []
    for colour in given[:count]:
        if colour is None:
            best = int(np.argmax(nearest))
            colour = tuple(int(v) for v in candidates[best])
            distance = np.linalg.norm((candidates - candidates[best]) * weights, axis=1)
            nearest = np.minimum(nearest, distance)
        palette.append(tuple(int(v) for v in colour))
    return tuple(palette)


def parse_colour(text: str, where: str = "") -> Colour:
    """(R, G, B) of "#rrggbb"."""
    try:
        if len(text) != 7 or text[0] != "#":
            raise ValueError
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    except (ValueError, TypeError):
        raise SegjaxError(
            f"{where or 'colour'}: '{text}' is not a colour; write it as #rrggbb."
        ) from None


def _rows(rows: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in rows) + "\n  ]"
