"""How a published checkpoint maps onto segjax's variables: a table, read in both directions.

A rule is (published name, our path, how). `{i}`, `{s}`, `{b}` stand for numbers; `{w}` stands for
the kind of tensor, whose name on our side follows from `how` (a linear "weight" is our "kernel", a
norm's is our "scale").
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from segjax.errors import SegjaxError

Tensors = Mapping[str, np.ndarray]
Shape = tuple[int, ...]

# --------------------------------------------------------------------------------------------------
# What happens to one tensor


@dataclasses.dataclass(frozen=True, eq=False)
class How:
    """An invertible change of layout.

    Attributes:
        into: (published array, shape of ours) -> our array.
        back: our array -> published array.
        names: what `{w}` may stand for, published to ours.
        collection: where ours lies in the variables.
        several: the published array is one of several that make ours, stacked on axis -3.
    """

    into: Callable[[np.ndarray, Shape], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    names: Mapping[str, str]
    collection: str = "params"
    several: bool = False


WEIGHTS = {"weight": "kernel", "bias": "bias"}


def _vectors_as_they_are(move: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, *shape: x if x.ndim == 1 else move(x, *shape)


def _part_into(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.T.reshape(*shape[:-3], *shape[-2:])


def _part_back(x: np.ndarray, part: int) -> np.ndarray:
    x = x[..., part, :, :]
    return x.reshape(*x.shape[:-2], -1).T


# As it is.
same = How(lambda x, shape: x, lambda x: x, {})
# OIHW -> HWIO. A depthwise kernel [C, 1, k, k] becomes [k, k, 1, C] by the same move.
conv = How(
    _vectors_as_they_are(lambda x, shape: x.transpose(2, 3, 1, 0)),
    _vectors_as_they_are(lambda x: x.transpose(3, 2, 0, 1)),
    WEIGHTS,
)
# [out, in] -> [in, out]
linear = How(lambda x, shape: x.T, lambda x: x.T, WEIGHTS)
# A 1x1 convolution [out, in, 1, 1] -> [in, out]
pointwise = How(
    _vectors_as_they_are(lambda x, shape: x[:, :, 0, 0].T),
    _vectors_as_they_are(lambda x: x.T[:, :, None, None]),
    WEIGHTS,
)
# [3 * heads * d, C] -> [C, 3, heads, d]
qkv = How(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(*x.shape[:-3], -1).T, WEIGHTS)
# Three times [heads * d, C] -> [C, 3, heads, d]
query, key, value = (
    How(_part_into, functools.partial(_part_back, part=part), WEIGHTS, several=True)
    for part in range(3)
)
# [C, heads * d] -> [heads, d, C]
merge_heads = How(
    _vectors_as_they_are(lambda x, shape: x.T.reshape(shape)),
    _vectors_as_they_are(lambda x: x.reshape(-1, x.shape[-1]).T),
    WEIGHTS,
)
norm = How(lambda x, shape: x, lambda x: x, {"weight": "scale", "bias": "bias"})
statistics = How(
    lambda x, shape: x,
    lambda x: x,
    {"running_mean": "mean", "running_var": "var"},
    collection="batch_stats",
)

# --------------------------------------------------------------------------------------------------
# The table

Rule = tuple[str, str, How]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of published files.

    Attributes:
        name: as `--layout` and `config.init.layout` write it.
        rules: of every model of the family. Rules with the same path give parts of one tensor, in
            their order.
        plain, hybrid: further rules of ViTs without and with a convolution stem.
        dropped: patterns of tensors that our models have no use for; `*` stands for anything.
        prefixes: what may stand before all names of a file, e.g. "vit.".
    """

    name: str
    rules: tuple[Rule, ...]
    plain: tuple[Rule, ...] = ()
    hybrid: tuple[Rule, ...] = ()
    dropped: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


def to_variables(
    layout: Layout, tensors: Tensors, expected: Mapping[str, Any], source: str = "the checkpoint"
) -> dict[str, Any]:
    """The variables that a checkpoint holds.

    Args:
        layout: whose names the tensors have.
        tensors: by published name.
        expected: the tree of variables to fill; its leaves need a shape only (`jax.eval_shape`).
        source: names the file in the error.

    Returns:
        A tree like `expected` of numpy arrays, float32.

    Raises:
        SegjaxError: lists every missing, extra and misshaped tensor.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(expected).items()}
    origins = origins_of(layout, shapes)
    wanted = {
        name: how.back(np.broadcast_to(np.float32(0), shapes[path])).shape
        for path in shapes
        for name, how in origins[path]
    }
    given = {bare_name(layout, name): tensor for name, tensor in tensors.items()}
    given = {name: x for name, x in given.items() if name in wanted or not _dropped(layout, name)}

    faults = [f"no place in a checkpoint: {path}" for path in shapes if not origins[path]]
    faults += [f"missing: {name} {list(wanted[name])}" for name in wanted if name not in given]
    faults += [f"extra: {name} {list(given[name].shape)}" for name in given if name not in wanted]
    faults += [
        f"misshaped: {name} {list(given[name].shape)}, the model has {list(wanted[name])}"
        for name in wanted
        if name in given and given[name].shape != wanted[name]
    ]
    if faults:
        raise SegjaxError(
            f"{source}: its tensors are not those of the model under layout '{layout.name}'; "
            "change config.model or the layout to fit the file:\n  " + "\n  ".join(faults)
        )

    filled = {}
    for path, shape in shapes.items():
        parts = [how.into(given[name], shape) for name, how in origins[path]]
        stacked = origins[path][0][1].several
        filled[path] = np.asarray(np.stack(parts, axis=-3) if stacked else parts[0], np.float32)
    return unflatten(filled)


def to_published(layout: Layout, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`.

    Args:
        layout: whose names to use.
        variables: a tree of variables, or a part of one (a gradient `{"params": ...}`, say).

    Returns:
        Arrays by published name, in the published layout.

    Raises:
        SegjaxError: the layout has no name for something in the tree.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    origins = origins_of(layout, arrays)
    nameless = [path for path in arrays if not origins[path]]
    if nameless:
        raise SegjaxError(
            f"layout '{layout.name}' has no name for {', '.join(nameless)}; use the layout of the "
            "model's own system."
        )
    return {name: how.back(array) for path, array in arrays.items() for name, how in origins[path]}


def bare_name(layout: Layout, name: str) -> str:
    """The name without the layout's prefix."""
    for prefix in layout.prefixes:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, the path's parts joined with "/"."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def origins_of(layout: Layout, paths: Mapping[str, Any]) -> dict[str, list[tuple[str, How]]]:
    """Where each path's array comes from: (published name, how), several for parts."""
    stem = any(path.startswith("params/backbone/stem/") for path in paths)
    rules = layout.rules + (layout.hybrid if stem else layout.plain)
    return {
        path: [(name, rule[2]) for rule in rules if (name := _published(rule, path))]
        for path in paths
    }


def _published(rule: Rule, path: str) -> str | None:
    """The published name of our path under the rule, None if the rule is about something else."""
    name, _, how = rule
    match = _pattern(rule).fullmatch(path)
    if match is None:
        return None
    fields = match.groupdict()
    if "w" in fields:
        fields["w"] = {ours: published for published, ours in how.names.items()}[fields["w"]]
    return name.format(**fields)


@functools.cache
def _pattern(rule: Rule) -> re.Pattern[str]:
    _, path, how = rule
    pattern = re.escape(f"{how.collection}/{path}").replace(r"\{", "{").replace(r"\}", "}")
    pattern = pattern.replace("{w}", f"(?P<w>{'|'.join(how.names.values())})")
    return re.compile(re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", pattern))


def is_head(layout: Layout, name: str) -> bool:
    """Whether the tensor of this (bare) published name is one of a segmentation head."""
    return any(
        re.fullmatch(re.sub(r"\\{\w\\}", ".+", re.escape(pattern)), name)
        for pattern, path, _ in layout.rules
        if path.startswith("head/")
    )


def _dropped(layout: Layout, name: str) -> bool:
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) for pattern in layout.dropped
    )
