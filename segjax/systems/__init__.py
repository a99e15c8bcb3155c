"""One file per paper. `build` turns `config.model` into a system; nothing is registered
anywhere."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from segjax.errors import SegjaxError
from segjax.structs import System


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


def check_fields(model: Mapping[str, Any]) -> None:
    """Raises the SegjaxError that `build` would raise for unknown or missing fields."""
    if "system" not in model:
        raise SegjaxError("config.model.system is missing; it names the system, e.g. 'regproxy'.")
    parameters = inspect.signature(_module(model["system"]).build).parameters
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
