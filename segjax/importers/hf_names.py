"""Class names of a Hugging Face folder, from its config.json."""

from __future__ import annotations

import dataclasses
import json
from os import PathLike
from pathlib import Path

from segjax.data.labels import LabelSpace, distinct_palette
from segjax.errors import SegjaxError


def label_space(checkpoint: str | PathLike[str], like: LabelSpace) -> LabelSpace:
    """`like` with the names that the folder of a checkpoint gives its classes.

    Args:
        checkpoint: the folder, or a file in it.
        like: the dataset's classes; returned as it is if there is no config.json with names.

    Raises:
        SegjaxError: config.json is damaged, or has another number of classes.
    """
    path = Path(checkpoint)
    path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        return like
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("id2label") or {}
        names = tuple(str(named[key]) for key in sorted(named, key=int))
    except (ValueError, AttributeError, TypeError) as error:
        raise SegjaxError(
            f"{path}: its id2label is unreadable ({error}); download it again."
        ) from None
    if not names or names == like.names:
        return like
    if len(names) != like.classes:
        raise SegjaxError(
            f"{path}: it names {len(names)} classes, but {like.name} has {like.classes}; set"
            " config.model.classes and config.data.dataset to what the checkpoint was trained on."
        )
    unique = tuple(
        name if names.index(name) == k else f"{name} ({k})" for k, name in enumerate(names)
    )
    palette = like.palette or distinct_palette(len(names))
    return dataclasses.replace(like, names=unique, palette=palette)
