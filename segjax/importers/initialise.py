"""Pretrained files as the beginning of a training: a backbone, or a whole model but its heads."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.backbones.vit import resize_position
from segjax.errors import SegjaxError
from segjax.importers import engine, files
from segjax.structs import Size, Variables

Path = tuple[str, ...]
Flat = dict[Path, Any]

POSITION, DISTILLATION = "backbone/pos_embed", "backbone/dist_token"


def initialise(
    layout: str,
    path: str | os.PathLike[str],
    variables: Variables,
    grid: Size | None = None,
) -> Variables:
    """Freshly initialised variables with the backbone of a pretrained file.

    The file's heads are dropped and ours stay as they are, as do arrays that the layout calls FRESH
    where the file has none; the position embedding is resized to the model's grid (bicubic, as the
    official recipes do).

    Args:
        layout: a module of this package, e.g. "timm".
        path: see `files.load`.
        variables: of a system with a `backbone`, in any collection (the statistics of batch norms
            too); arrays keep their place and sharding.
        grid: (rows, columns) of the model's position embedding; None means a square one.

    Raises:
        SegjaxError: the file doesn't fit the backbone.
    """
    table = engine.table_of(layout)
    tensors = table.bare(files.read(path))
    flat = flatten_dict(variables)
    backbone = _backbone(flat)
    # What the file holds besides the backbone: its own head.
    for name in [*tensors]:
        ours = [rule.ours_of(name) for rule in table.rules]
        if any(ours) and not any(path and path.startswith("backbone/") for path in ours):
            del tensors[name]
    for key, source in table.sources(backbone).items():
        if table.starts_fresh("/".join(key[1:])) and not tensors.keys() & set(source.names):
            del backbone[key]
    return _filled(flat, _converted(table, tensors, backbone, grid, str(path)))


def initialise_whole(
    layout: str,
    path: str | os.PathLike[str],
    variables: Variables,
    heads: Collection[str],
    grid: Size | None = None,
) -> tuple[Variables, list[str]]:
    """Freshly initialised variables with all that a file of the same system has to give: heads that
    were made for another number of classes stay as they are.

    Args:
        layout, path, variables, grid: as in `initialise`.
        heads: paths (with their collection) of the arrays whose shapes follow the number of
            classes.

    Returns:
        The variables, and the paths of the heads that stayed.

    Raises:
        SegjaxError: something else than the heads doesn't fit.
    """
    table = engine.table_of(layout)
    tensors = table.bare(files.read(path))
    flat = flatten_dict(variables)
    wanted = dict(flat)
    fresh = []
    for key, source in table.sources(flat).items():
        if "/".join(key) in heads and engine.misfits(source, tensors, flat[key]):
            fresh.append("/".join(key))
            del wanted[key]
            for name in source.names:
                tensors.pop(name, None)
    return _filled(flat, _converted(table, tensors, wanted, grid, str(path))), fresh


def initialise_from_run(
    stored: Variables, variables: Variables, heads: Collection[str], source: str
) -> tuple[Variables, list[str]]:
    """What `initialise_whole` does, from the variables of a workdir.

    Args:
        stored: see `training.checkpoints.load_variables`.
        variables, heads: as in `initialise_whole`.
        source: the workdir, for messages.

    Raises:
        SegjaxError: something else than the heads doesn't fit.
    """
    theirs, flat = flatten_dict(stored), flatten_dict(variables)
    misfits = [
        "/".join(key) for key in flat if key not in theirs or theirs[key].shape != flat[key].shape
    ]
    fresh = [path for path in misfits if path in heads]
    extra = ["/".join(key) for key in theirs if key not in flat]
    if wrong := [path for path in misfits if path not in heads] + extra:
        raise SegjaxError(
            f"{source}: its model is not this one ({len(wrong)} arrays differ, the first is"
            f" {wrong[0]}); make config.model agree with its config.json in all but classes."
        )
    kept = {key: theirs[key] for key in flat if "/".join(key) not in fresh}
    return _filled(flat, kept), fresh


def backbone_from_run(stored: Variables, variables: Variables, source: str) -> Variables:
    """What `initialise` does, from the variables of a workdir.

    Raises:
        SegjaxError: the backbones differ.
    """
    flat = flatten_dict(variables)
    theirs = {key: leaf for key, leaf in flatten_dict(stored).items() if key[1:2] == ("backbone",)}
    ours = _backbone(flat)
    wrong = [
        "/".join(key)
        for key in sorted(theirs.keys() | ours.keys())
        if key not in ours or key not in theirs or theirs[key].shape != ours[key].shape
    ]
    if wrong:
        raise SegjaxError(
            f"{source}: its backbone is not this one ({len(wrong)} arrays differ, the first is"
            f" {wrong[0]}); take the backbone of its config.json in config.model."
        )
    return _filled(flat, theirs)


# --------------------------------------------------------------------------------------------------
# Steps


def _backbone(flat: Flat) -> Flat:
    backbone = {key: leaf for key, leaf in flat.items() if key[1:2] == ("backbone",)}
    if not backbone:
        raise SegjaxError("config.init: this system has no backbone that a file could initialise.")
    return backbone


def _converted(
    table: engine.Table,
    tensors: Mapping[str, np.ndarray],
    wanted: Flat,
    grid: Size | None,
    origin: str,
) -> Flat:
    """The wanted arrays from the file's tensors, the position embedding on the model's grid."""
    dist = table.published_name(DISTILLATION)
    position = table.published_name(POSITION)
    distilled = ("params", *DISTILLATION.split("/")) in wanted
    if dist is not None and (dist in tensors) != distilled:
        raise SegjaxError(
            f"{origin}: it has {'a' if dist in tensors else 'no'} distillation token ({dist}); set "
            f"config.model.distilled={dist in tensors}."
        )
    key = ("params", *POSITION.split("/"))
    extra = 2 if distilled else 1
    old_grid = new_grid = None
    if key in wanted and position in tensors and tensors[position].ndim == 3:
        stored = tensors[position].shape
        old_grid = _square(stored[1] - extra, f"{origin}: {position}")
        new_grid = grid or _square(wanted[key].shape[1] - extra, "the model's pos_embed")
        shape = (1, stored[1], wanted[key].shape[2])
        wanted = wanted | {key: jax.ShapeDtypeStruct(shape, wanted[key].dtype)}
    values = engine.converted(table, tensors, wanted, origin)
    if old_grid != new_grid:
        values[key] = np.asarray(resize_position(values[key], old_grid, new_grid, extra))
    return values


def _square(tokens: int, what: str) -> Size:
    side = math.isqrt(max(tokens, 0))
    if side * side != tokens or not side:
        raise SegjaxError(
            f"{what} holds {tokens} positions, which is no square grid; take a file with one."
        )
    return side, side


def _filled(flat: Flat, values: Flat) -> Variables:
    return unflatten_dict({key: _placed(values.get(key), leaf) for key, leaf in flat.items()})


def _placed(value: np.ndarray | None, leaf: Any) -> Any:
    """The new value where the old one lies; the old one if there is no new one."""
    if value is None:
        return leaf
    return jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else value
