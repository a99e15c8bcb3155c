"""One file per paper. `build` turns `config.model` into a system; nothing is registered
anywhere."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from segjax.errors import SegjaxError
from segjax.structs import Size, System

if TYPE_CHECKING:
    from segjax.data.hierarchies import Hierarchy


def build(model: Mapping[str, Any]) -> System:
    """The system that `config.model` describes.

    Args:
        model: "system" names a module of this package; all other fields are keyword arguments of
            its `build`.

    Raises:
        SegjaxError: unknown system or field (the nearest known one is named), or a value that
            doesn't fit.
    """
    check_fields(model)
    fields = {name: _plain(value) for name, value in model.items() if name != "system"}
    return _module(model["system"]).build(**fields)


def of_config(config: Mapping[str, Any], workdir: str | Path | None = None) -> System:
    """The system of a whole config: `config.model`, under the class tree of `config.hierarchy` if
    that names one.

    Args:
        config: see `segjax.config`.
        workdir: of a run, which keeps its tree; None for a config alone.

    Raises:
        SegjaxError: see `build`, `data.hierarchies.load` and `hssn.build`.
    """
    if not config["hierarchy"]["tree"]:
        return build(config["model"])
    from segjax.systems import hssn  # which knows this module

    fields = {name: value for name, value in config["hierarchy"].items() if name != "tree"}
    return hssn.build(_plain(config["model"]), hierarchy_of(config, workdir).tree, **fields)


def hierarchy_of(config: Mapping[str, Any], workdir: str | Path | None = None) -> Hierarchy:
    """The class tree of a config: the one that it names, else the one in its label space (a single
    level where there is none).

    Args:
        config, workdir: see `of_config`.

    Raises:
        SegjaxError: the file doesn't hold a tree, or one over other classes than the dataset's.
    """
    from segjax.data import datasets, hierarchies  # slow to import, and most configs need none
    from segjax.data.labels import LabelSpace

    kept = None if workdir is None else Path(workdir) / "hierarchy.json"
    if workdir is None:
        space = datasets.label_space(_plain(config["data"]["dataset"]))
    else:
        space = LabelSpace.load(Path(workdir) / "label_space.json")
    name = config["hierarchy"]["tree"]
    if name in ("", "dataset"):
        return hierarchies.of(space)
    tree = hierarchies.load(kept if kept is not None and kept.is_file() else name)
    hierarchies.check_leaves(tree, space)
    return tree


def keep_hierarchy(config: Mapping[str, Any], workdir: str | Path) -> None:
    """Copies the tree that a config names into a workdir, which is then complete without the
    original."""
    from segjax.data import hierarchies

    name = config["hierarchy"]["tree"]
    if name not in ("", "dataset"):
        shutil.copyfile(hierarchies.path_of(name), Path(workdir) / "hierarchy.json")


def fields(system: str) -> Mapping[str, inspect.Parameter]:
    """The keyword arguments of a system's `build`."""
    return inspect.signature(_module(system).build).parameters


def heads(model: Mapping[str, Any], image: Size) -> frozenset[str]:
    """The arrays of a system whose shapes follow the number of classes, as paths with their
    collection ("params/predictor/class_embed/kernel"); under a class tree too, whose nodes are
    classes to the network.

    They are what a checkpoint of another dataset can't give.

    Args:
        model: see `build`. A system without a field `classes` (one that sharpens masks) has none.
        image: (H, W) that the system can be initialised with.
    """
    if "classes" not in fields(model["system"]):
        return frozenset()

    def shapes(classes: int) -> dict[str, Size]:
        system = build({**model, "classes": classes})
        batch = {"image": jax.ShapeDtypeStruct((1, *image, 3), jnp.uint8)}
        variables = jax.eval_shape(lambda b: system.init(jax.random.key(0), b), batch)
        return {"/".join(path): leaf.shape for path, leaf in flatten_dict(variables).items()}

    classes = build(model).classes
    ours, others = shapes(classes), shapes(classes + 1)
    return frozenset(path for path in ours if others[path] != ours[path])


def check_fields(model: Mapping[str, Any]) -> None:
    """Raises the SegjaxError that `build` would raise for unknown or missing fields."""
    if "system" not in model:
        raise SegjaxError("config.model.system is missing; it names the system, e.g. 'regproxy'.")
    parameters = fields(model["system"])
    for name in model:
        if name != "system" and name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.0)[0]
            raise SegjaxError(
                f"config.model.{name} is not a field of {model['system']}; did you mean "
                f"config.model.{near}?"
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in model:
            raise SegjaxError(f"config.model.{name} is missing; {model['system']} needs it.")


def _module(name: str) -> ModuleType:
    path = f"{__name__}.{name}"
    if importlib.util.find_spec(path) is None or not hasattr(
        importlib.import_module(path), "build"
    ):
        raise SegjaxError(f"config.model.system: there is no system '{name}' in segjax.systems.")
    return importlib.import_module(path)


def _plain(value: Any) -> Any:
    """ConfigDict and list become dict and tuple, so that systems are hashable and know no config
    type."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value
