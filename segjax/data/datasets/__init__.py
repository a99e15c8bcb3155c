"""One module per dataset; a dataset is found by calling a function of its module.

Every module has `load(split, data_dir="", **options) -> Dataset` and
`label_space(**options) -> LabelSpace`, which needs no data; and `source(split, **options)`, what
there is before anything is prepared.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError


def load(dataset: Mapping[str, Any], split: str, data_dir: str = "") -> Dataset:
    """The split of the dataset that `config.data.dataset` describes, prepared if need be.

    Args:
        dataset: "name" names a module of this package; all other fields are keyword arguments of
            its `load`.
        split: e.g. "train" or "validation".
        data_dir: where prepared data lies; "" for $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        SegjaxError: unknown dataset, option or split, missing files, or a fault in the data.
    """
    module, options = _find(dataset)
    return module.load(split, data_dir=data_dir, **options)


def label_space(dataset: Mapping[str, Any]) -> LabelSpace:
    """What the classes of the dataset mean. No data is needed (`folder` reads its names file)."""
    module, options = _find(dataset)
    return module.label_space(**options)


def source(dataset: Mapping[str, Any], split: str, data_dir: str = "") -> Source:
    """The original files of a split, unprepared: what `segjax data check` goes through."""
    module, options = _find(dataset)
    return module.source(split, data_dir=data_dir, **options)


def _find(dataset: Mapping[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    name = dataset.get("name", "")
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise SegjaxError(
            f"config.data.dataset.name: there is no dataset '{name}' (did you mean '{near}'?);"
            f" there are {', '.join(known)}."
        )
    module = importlib.import_module(f"{__name__}.{name}")
    parameters = inspect.signature(module.load).parameters
    names = [key for key in parameters if key not in ("split", "data_dir")]
    options = {key: _plain(value) for key, value in dataset.items() if key != "name"}
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, n=1, cutoff=0.0)
            raise SegjaxError(
                f"config.data.dataset.{option} is not an option of {name}"
                + (f"; did you mean config.data.dataset.{near[0]}?" if near else ".")
            )
    for option in names:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise SegjaxError(f"config.data.dataset.{option} is missing; {name} needs it.")
    return module, options


def _plain(value: Any) -> Any:
    """ConfigDict and list become dict and tuple."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value
