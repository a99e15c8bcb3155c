"""COCO panoptic segmentation, and any data of its form: 133 classes, instances, crowds.

A segment's id is its colour in the mask, R + 256 G + 65536 B; 0 is void. The class map is derived
from the segments, crowds included. Classes are numbered in the order of the categories file.
"""

from __future__ import annotations

import functools
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import images as image_files
from segjax.data import pairs, prepared
from segjax.data.labels import LabelSpace, builtin, distinct_palette
from segjax.data.prepared import Dataset, Record, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE

COCO_SPLITS = {"train": "train", "validation": "val"}
LAYOUT = """
train2017/000000000009.jpg                           (118287 images)
val2017/000000000139.jpg                             (5000 images)
annotations/panoptic_train2017.json
annotations/panoptic_val2017.json
annotations/panoptic_train2017/000000000009.png      (from the archive inside the archive)
annotations/panoptic_val2017/000000000139.png
"""


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    images: str = "{split}2017",
    masks: str = "annotations/panoptic_{split}2017",
    annotations: str = "annotations/panoptic_{split}2017.json",
    categories: str = "",
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation"; "{split}" in the paths below becomes train or val.
        data_dir: where prepared data lies.
        manual_dir: what the paths below are relative to; default
            <data_dir>/downloads/manual/coco_panoptic. When it is gone, an existing prepared copy is
            used.
        images: folder of photographs.
        masks: folder of panoptic PNGs.
        annotations: the panoptic JSON.
        categories: a JSON list of {"id", "name", "isthing", "color"} in class order, for data with
            other categories; default: the 133 of COCO.
    """
    paths = dict(images=images, masks=masks, annotations=annotations, categories=categories)
    return prepared.prepare_official(
        "coco_panoptic",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir, **paths),
        manual_dir,
    )


def label_space(
    *, categories: str = "", manual_dir: str | PathLike[str] = "", **options: object
) -> LabelSpace:
    """The 133 categories with supercategories, and thing or stuff, above them; or those of
    `categories`. ids are category ids."""
    if not categories:
        return builtin("coco_panoptic")
    path = Path(manual_dir).expanduser() / Path(categories).expanduser()
    return categories_of(path)


def categories_of(path: Path, things_alone: bool = False) -> LabelSpace:
    """The classes of a JSON of categories, or of any COCO JSON that has them.

    Raises:
        SegjaxError: a category lacks id, name or (unless all are things) isthing.
    """
    rows = read_json(path)
    rows = rows.get("categories", rows) if isinstance(rows, dict) else rows
    try:
        colours = [tuple(row["color"]) if "color" in row else None for row in rows]
        return LabelSpace(
            name=path.stem,
            names=tuple(str(row["name"]) for row in rows),
            palette=distinct_palette(len(rows), colours),
            is_thing=tuple(things_alone or bool(row["isthing"]) for row in rows),
            ids=tuple(int(row["id"]) for row in rows),
        )
    except (KeyError, TypeError, ValueError) as error:
        needed = "id and name" if things_alone else "id, name and isthing"
        raise SegjaxError(
            f"{path}: every category needs {needed} ({type(error).__name__}: {error})."
        ) from None


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    images: str = "{split}2017",
    masks: str = "annotations/panoptic_{split}2017",
    annotations: str = "annotations/panoptic_{split}2017.json",
    categories: str = "",
) -> Source:
    """The files of a split. Options as in `load`."""
    if split not in COCO_SPLITS:
        raise SegjaxError(f"coco_panoptic has the splits train and validation, not '{split}'.")
    root = root_of(data_dir, manual_dir)
    image_root, mask_root, json_path = (
        root / text.replace("{split}", COCO_SPLITS[split]) for text in (images, masks, annotations)
    )
    if not (image_root.is_dir() and mask_root.is_dir() and json_path.is_file()):
        gone = [path.name for path in (image_root, mask_root, json_path) if not path.exists()]
        raise pairs.missing(
            f"COCO panoptic ({', '.join(gone)})",
            root,
            "https://cocodataset.org/#download",
            "train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip",
            LAYOUT,
        )
    space = label_space(categories=categories, manual_dir=root)

    @functools.cache
    def listed() -> tuple[list[dict[str, Any]], dict[Any, str]]:
        content = read_json(json_path)
        try:
            files = {row["id"]: row["file_name"] for row in content.get("images", ())}
            rows = sorted(content["annotations"], key=lambda row: row["file_name"])
        except (KeyError, TypeError, AttributeError) as error:
            raise SegjaxError(
                f"{json_path}: this is not a panoptic JSON ({type(error).__name__}: {error}); it"
                " needs images and annotations with id and file_name."
            ) from None
        if not rows:
            raise SegjaxError(f"{json_path}: it has no annotations; the dataset is empty.")
        return rows, files

    def read(index: int) -> Record:
        rows, files = listed()
        row = rows[index]
        where = f"{json_path.name}: annotation of {row['file_name']}"
        try:
            ids = [int(segment["id"]) for segment in row["segments_info"]]
            labels = [int(segment["category_id"]) for segment in row["segments_info"]]
            crowds = [bool(segment.get("iscrowd", 0)) for segment in row["segments_info"]]
            areas = [float(segment.get("area", -1)) for segment in row["segments_info"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SegjaxError(f"{where}: a segment lacks {error} (id, category_id).") from None
        classes = space.from_ids(np.array(labels, np.int64))
        if (classes == IGNORE).any():
            unknown = labels[int(np.argmax(classes == IGNORE))]
            raise SegjaxError(
                f"{where}: category_id {unknown} is none of {space.name}; name your own in"
                " config.data.dataset.categories."
            )
        mask = mask_root / row["file_name"]
        image = image_root / files.get(row.get("image_id"), f"{mask.stem}.jpg")
        data, size = pairs.read_sized(image)
        if not mask.is_file():
            raise SegjaxError(f"{image}: its mask is missing; it should be {mask}.")
        colour = image_files.read_image(mask).astype(np.int64)
        pairs.check_size(mask, colour.shape[:2], image, size)
        drawn = colour[..., 0] + 256 * colour[..., 1] + 65536 * colour[..., 2]
        segments = _segment_index(drawn, ids, mask, json_path)
        if 0 in areas:
            raise SegjaxError(
                f"{where}: segment {ids[areas.index(0)]} has area 0, but there are pixels of it in"
                f" {mask.name}; write its number of pixels."
            )
        semantic = np.where(segments < 0, IGNORE, classes[segments] if ids else IGNORE)
        return Record(
            image=data,
            size=size,
            semantic=semantic.astype(np.int16),
            segments=segments,
            segment_class=classes,
            segment_is_crowd=crowds,
            segment_area=() if -1 in areas else areas,
        )

    facts = [images, masks, annotations, json_path.stat().st_size, digest(json_path)]
    if manual_dir:  # files of one's own change; COCO's don't
        facts += [listing(image_root), listing(mask_root)]
    return Source(
        dataset="coco_panoptic",
        split=split,
        label_space=space,
        key=prepared.custom_key(prepared.key_of(*facts), manual_dir),
        segments=True,
        names=lambda: [f"{split}/{Path(row['file_name']).stem}" for row in listed()[0]],
        read=read,
    )


def _segment_index(drawn: np.ndarray, ids: list[int], mask: Path, json_path: Path) -> np.ndarray:
    """int32 [H, W]: position in `ids`, -1 where the id is 0."""
    if len(set(ids)) != len(ids):
        raise SegjaxError(f"{json_path.name}: two segments of {mask.name} have the same id.")
    known = np.array([0, *ids], np.int64)
    order = np.argsort(known)
    slot = np.minimum(np.searchsorted(known[order], drawn), len(known) - 1)
    index = order[slot]
    stray = known[index] != drawn
    if stray.any():
        raise SegjaxError(
            f"{mask}: segment {drawn[stray][0]} is not listed in {json_path.name}; both must come"
            " from one export."
        )
    counts = np.bincount(index.ravel(), minlength=len(known))
    if (counts[1:] == 0).any():
        absent = ids[int(np.argmax(counts[1:] == 0))]
        raise SegjaxError(
            f"{mask}: segment {absent} of {json_path.name} has no pixel in it; take it out of"
            " the JSON, or draw it."
        )
    return (index - 1).astype(np.int32)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or a SegjaxError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SegjaxError(f"{path}: there is no such file.") from None
    except ValueError as error:
        raise SegjaxError(f"{path}: this is not JSON, or it is truncated ({error}).") from None


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file."""
    entries = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in entries)


def digest(path: Path) -> str:
    """Stands for the content of a file that may be hundreds of megabytes: both its ends."""
    with open(path, "rb") as file:
        head = file.read(65536)
        file.seek(max(path.stat().st_size - 65536, 0))
        return prepared.key_of(head, file.read())


def root_of(data_dir: str | PathLike[str], manual_dir: str | PathLike[str]) -> Path:
    """What the paths of the options are relative to."""
    manual = (
        Path(manual_dir) if manual_dir else prepared.manual_directory("coco_panoptic", data_dir)
    )
    return manual.expanduser()
