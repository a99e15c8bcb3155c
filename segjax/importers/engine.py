"""Applies a layout's table to the tensors of a file, in both directions."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.errors import SegjaxError
from segjax.importers.how import How
from segjax.structs import Variables

Path = tuple[str, ...]


def to_variables(
    layout: str,
    tensors: Mapping[str, np.ndarray],
    expected: Variables,
    source: str = "",
    heads: Collection[str] = (),
) -> Variables:
    """Published tensors as variables.

    Args:
        layout: a module of this package, e.g. "regproxy".
        tensors: published name -> array.
        expected: variables or their shapes (`jax.eval_shape` of a system's `init`), or a part of
            them; every tensor of the file must belong to it.
        source: where the tensors come from, for messages.
        heads: paths (with their collection) of the arrays whose shapes follow the number of
            classes, for messages.

    Returns:
        A tree like `expected` of NumPy arrays.

    Raises:
        SegjaxError: tensors are missing, not known to the model, or of another shape; all are
            listed. Where only heads differ, it says how to fine-tune from the file.
    """
    table = table_of(layout)
    bare, flat = table.bare(tensors), flatten_dict(expected)
    _check_heads(table, bare, flat, heads, source)
    return unflatten_dict(converted(table, bare, flat, source))


def to_published(layout: str, variables: Variables) -> dict[str, np.ndarray]:
    """Variables, or any tree like them or a part of them (gradients, statistics), under the names
    and in the shapes of the published file."""
    table = table_of(layout)
    flat = flatten_dict(variables)
    published = {}
    for source in table.sources(flat).values():
        array = np.asarray(flat[source.path])
        published |= zip(source.names, source.to_published(array), strict=True)
    return published


def published_names(layout: str, variables: Variables) -> dict[str, tuple[str, ...]]:
    """Our path with its collection -> the published names that it comes from."""
    sources = table_of(layout).sources(flatten_dict(variables))
    return {"/".join(path): source.names for path, source in sources.items()}


def our_path(layout: str, name: str) -> str | None:
    """Where a published tensor goes, e.g. "backbone/block_3/norm1/scale"; None if it's dropped.

    Raises:
        SegjaxError: the layout has no such name.
    """
    table = table_of(layout)
    (bare,) = table.bare({name: None})
    for rule in table.rules:
        if (path := rule.ours_of(bare)) is not None:
            return path
    if table.drops(bare):
        return None
    raise SegjaxError(f"{name} is not a tensor of the layout {layout}.")


def layouts() -> list[str]:
    """The names of all layouts."""
    modules = [info.name for info in pkgutil.iter_modules([os.path.dirname(__file__)])]
    return [m for m in modules if hasattr(importlib.import_module(f"{__package__}.{m}"), "RULES")]


# --------------------------------------------------------------------------------------------------
# Rules


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of our arrays lies in the file."""

    path: Path
    names: tuple[str, ...]
    leaf: str
    how: How

    def to_ours(self, tensors: Sequence[np.ndarray], like: Any) -> np.ndarray:
        tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        return np.asarray(self.how.to_ours(self.leaf, tensor, like.shape), like.dtype, order="C")

    def to_published(self, array: Any) -> list[Any]:
        tensor = self.how.to_published(self.leaf, array)
        rows = tensor.shape[0] // len(self.names) if tensor.ndim else 0
        if len(self.names) == 1:
            return [tensor]
        return [tensor[i * rows : (i + 1) * rows] for i in range(len(self.names))]

    def shapes(self, like: Any) -> list[tuple[int, ...]]:
        like = jax.ShapeDtypeStruct(like.shape, like.dtype)
        return [part.shape for part in jax.eval_shape(self.to_published, like)]


@dataclasses.dataclass(frozen=True)
class Rule:
    published: tuple[str, ...]
    ours: str
    how: How
    beside: str = ""

    @functools.cached_property
    def patterns(self) -> tuple[re.Pattern[str], tuple[re.Pattern[str], ...]]:
        leaves = self.how.leaves
        return (
            _pattern(self.ours, leaves.values()),
            tuple(_pattern(name, leaves) for name in self.published),
        )

    def sources(self, path: Path) -> Source | None:
        """Where our `path` (with its collection) lies, if this rule is about it."""
        found = self.patterns[0].fullmatch("/".join(path[1:]))
        if not found:
            return None
        numbers = found.groupdict()
        leaf = next((k for k, v in self.how.leaves.items() if v == numbers.get("w")), "")
        names = tuple(name.format(**(numbers | {"w": leaf})) for name in self.published)
        return Source(path, names, leaf, self.how)

    def ours_of(self, name: str) -> str | None:
        """Our path (without collection) of a published name, if this rule is about it."""
        for pattern in self.patterns[1]:
            if found := pattern.fullmatch(name):
                numbers = found.groupdict()
                return self.ours.format(
                    **(numbers | {"w": self.how.leaves.get(numbers.get("w", ""), "")})
                )
        return None


def _pattern(text: str, leaves: Collection[str]) -> re.Pattern[str]:
    parts = re.split(r"\{(\w)\}", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.escape(part)
        else:
            parts[i] = f"(?P<{part}>{'|'.join(leaves) if part == 'w' else '[0-9]+'})"
    return re.compile("".join(parts))


@dataclasses.dataclass(frozen=True)
class Table:
    layout: str
    rules: tuple[Rule, ...]
    dropped: tuple[str, ...]
    prefixes: tuple[str, ...]
    fresh: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]

    def bare(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors without the prefixes that wrappers put before their names, and under the
        names that the table knows where code and files have changed them."""

        def strip(name: str) -> str:
            for prefix in ("module.", *self.prefixes):
                name = name.removeprefix(prefix)
            for old, new in self.renames:
                name = re.sub(old, new, name)
            return name

        return {strip(name): tensor for name, tensor in tensors.items()}

    def drops(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.dropped)

    def starts_fresh(self, ours: str) -> bool:
        """Whether a pretrained file may lack what lies at this path."""
        return any(fnmatch.fnmatchcase(ours, pattern) for pattern in self.fresh)

    def published_name(self, ours: str) -> str | None:
        """The published name of a path that has no placeholder."""
        return next((rule.published[0] for rule in self.rules if rule.ours == ours), None)

    def sources(self, flat: Mapping[Path, Any]) -> dict[Path, Source]:
        """Where each of our arrays lies in the file.

        Raises:
            SegjaxError: the table has no rule for some; all are listed.
        """
        present = {"/".join(path[1:]) for path in flat}
        rules = [
            rule
            for rule in self.rules
            if not rule.beside or any(path.startswith(rule.beside) for path in present)
        ]
        found, unknown = {}, []
        for path in flat:
            source = next(filter(None, (rule.sources(path) for rule in rules)), None)
            if source is None:
                unknown.append(f"  {'/'.join(path)}")
            else:
                found[path] = source
        if unknown:
            raise SegjaxError(
                f"the layout {self.layout} has no place for {len(unknown)} arrays of this model; "
                "take the system that the file was made for, in config.model:\n"
                + "\n".join(unknown)
            )
        return found


@functools.cache
def table_of(layout: str) -> Table:
    if layout not in layouts():
        raise SegjaxError(
            f"--layout: there is no layout '{layout}'; there are {', '.join(layouts())}."
        )
    module = importlib.import_module(f"{__package__}.{layout}")
    rules = tuple(
        Rule((names,) if isinstance(names, str) else names, *rest) for names, *rest in module.RULES
    )
    return Table(
        layout,
        rules,
        module.DROPPED,
        prefixes=getattr(module, "PREFIXES", ()),
        fresh=getattr(module, "FRESH", ()),
        renames=getattr(module, "RENAMES", ()),
    )


# --------------------------------------------------------------------------------------------------
# Steps


def converted(
    table: Table, tensors: Mapping[str, np.ndarray], expected: Mapping[Path, Any], origin: str
) -> dict[Path, np.ndarray]:
    """All expected arrays, or one error that lists all that doesn't fit."""
    sources = table.sources(expected)
    faults = list(_faults(table, tensors, expected, sources))
    if faults:
        counts = [
            f"{sum(line.startswith(f'  {kind}') for line in faults)} {kind}"
            for kind in ("missing", "extra", "misshaped")
        ]
        raise SegjaxError(
            f"{origin or 'the checkpoint'}: its tensors are not those of this model as layout "
            f"{table.layout} ({', '.join(counts)}); make config.model (backbone, classes, "
            "image_size, distilled, ...) agree with the file:\n" + "\n".join(faults)
        )
    return {
        path: source.to_ours([tensors[name] for name in source.names], expected[path])
        for path, source in sources.items()
    }


def misfits(source: Source, tensors: Mapping[str, np.ndarray], like: Any) -> list[str]:
    """The published names of one of our arrays that the file lacks or has in another shape."""
    return [
        name
        for name, shape in zip(source.names, source.shapes(like), strict=True)
        if name not in tensors or tensors[name].shape != shape
    ]


def _check_heads(
    table: Table,
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[Path, Any],
    heads: Collection[str],
    origin: str,
) -> None:
    """A file that fits but for its heads was made for other classes or another task."""
    sources = table.sources(expected)
    wrong = {
        path: names
        for path, source in sources.items()
        if (names := misfits(source, tensors, expected[path]))
    }
    if not wrong or not all("/".join(path) in heads for path in wrong):
        return
    lines = [
        f"  {name} {tensors[name].shape}, the model needs"
        f" {dict(zip(sources[path].names, sources[path].shapes(expected[path])))[name]}"
        for path, names in wrong.items()
        for name in names
        if name in tensors
    ]
    raise SegjaxError(
        f"{origin or 'the checkpoint'}: only its heads differ from this model, so it was made for"
        " another task or other classes; take the config of its own dataset, or fine-tune from it"
        f" with --config.init.layout={table.layout} --config.init.checkpoint={origin or '...'}"
        " --config.init.part=model, which trains these heads afresh:\n" + "\n".join(lines)
    )


def _faults(
    table: Table,
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[Path, Any],
    sources: Mapping[Path, Source],
) -> Iterator[str]:
    """One line per tensor that is missing, extra or misshaped."""
    used = set()
    misshaped = []
    for path, source in sources.items():
        used.update(source.names)
        for name, shape in zip(source.names, source.shapes(expected[path]), strict=True):
            if name not in tensors:
                yield f"  missing    {name} {shape}"
            elif tensors[name].shape != shape:
                misshaped.append(
                    f"  misshaped  {name} {tensors[name].shape}, the model needs {shape}"
                )
    for name, tensor in tensors.items():
        if name not in used and not table.drops(name):
            yield f"  extra      {name} {tensor.shape}"
    yield from misshaped
