"""COCO instance segmentation, and any data of its form: 80 classes, masks that may overlap, crowds.

Polygons and run lengths are drawn by pycocotools, which `pip install segjax[coco]` brings; without
it a polygon holds the pixels whose centres lie inside, which differs at borders here and there. In
the class map, where instances overlap, the one that lies in the first layer is shown.
"""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import instances, pairs, prepared
from segjax.data.datasets import coco_panoptic
from segjax.data.instances import Annotation, Entry
from segjax.data.labels import LabelSpace, builtin
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE, Size

LAYOUT = """
train2017/000000000009.jpg                           (118287 images)
val2017/000000000139.jpg                             (5000 images)
annotations/instances_train2017.json
annotations/instances_val2017.json
"""


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    images: str = "{split}2017",
    annotations: str = "annotations/instances_{split}2017.json",
    categories: str = "",
    skip_empty: bool = False,
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation"; "{split}" in the paths below becomes train or val.
        data_dir: where prepared data lies.
        manual_dir: what the paths below are relative to; default
            <data_dir>/downloads/manual/coco_panoptic, as both have the photographs. When it is
            gone, an existing prepared copy is used.
        images: folder of photographs.
        annotations: the instances JSON.
        categories: a JSON list of {"id", "name"} in class order, or a JSON file with "categories",
            for data with other categories; default: the 80 of COCO.
        skip_empty: leaves out images without an instance (crowds don't count) of the training
            split, as detectron2 does; an evaluation is over all images.
    """
    options = dict(
        images=images, annotations=annotations, categories=categories, skip_empty=skip_empty
    )
    return prepared.prepare_official(
        "coco_instance",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir, **options),
        manual_dir,
        manual="coco_panoptic",
    )


def label_space(
    *, categories: str = "", manual_dir: str | PathLike[str] = "", **options: object
) -> LabelSpace:
    """The 80 things of COCO, or those of `categories`. ids are category ids."""
    if not categories:
        return builtin("coco_instance")
    path = Path(manual_dir).expanduser() / Path(categories).expanduser()
    return coco_panoptic.categories_of(path, things_alone=True)


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    images: str = "{split}2017",
    annotations: str = "annotations/instances_{split}2017.json",
    categories: str = "",
    skip_empty: bool = False,
) -> Source:
    """The files of a split. Options as in `load`."""
    if split not in coco_panoptic.COCO_SPLITS:
        raise SegjaxError(f"coco_instance has the splits train and validation, not '{split}'.")
    root = coco_panoptic.root_of(data_dir, manual_dir)
    image_root, json_path = (
        root / text.replace("{split}", coco_panoptic.COCO_SPLITS[split])
        for text in (images, annotations)
    )
    if not (image_root.is_dir() and json_path.is_file()):
        if categories:  # not COCO's own, so there is nothing to download
            raise _missing_own(image_root, json_path)
        gone = [path.name for path in (image_root, json_path) if not path.exists()]
        raise pairs.missing(
            f"COCO instances ({', '.join(gone)})",
            root,
            "https://cocodataset.org/#download",
            "train2017.zip, val2017.zip and annotations_trainval2017.zip",
            LAYOUT,
        )
    space = label_space(categories=categories, manual_dir=root)
    skip_empty = skip_empty and split == "train"

    facts = [images, annotations, skip_empty, json_path.stat().st_size, _drawn_by()]
    facts.append(coco_panoptic.digest(json_path))
    if manual_dir:  # files of one's own change; COCO's don't
        facts.append(coco_panoptic.listing(image_root))
    return instances.source(
        dataset="coco_instance",
        split=split,
        space=space,
        key=prepared.custom_key(prepared.key_of(*facts), manual_dir),
        entries=lambda: _entries(split, image_root, json_path, skip_empty),
        annotate=lambda entry, size: _annotation(entry, size, space, json_path),
    )


def _missing_own(image_root: Path, json_path: Path) -> SegjaxError:
    field, path, what = (
        ("annotations", json_path, "file")
        if image_root.is_dir()
        else ("images", image_root, "folder")
    )
    return SegjaxError(
        f"config.data.dataset.{field}: there is no {what} {path}; name it relative to"
        " config.data.dataset.manual_dir, with {split} where train and val differ."
    )


def _entries(split: str, image_root: Path, json_path: Path, skip_empty: bool) -> list[Entry]:
    """The images of the JSON by file name, each with its row and its annotations as labels."""
    content = coco_panoptic.read_json(json_path)
    try:
        rows = sorted(content["images"], key=lambda row: row["file_name"])
        found: dict[Any, list[Mapping[str, Any]]] = {row["id"]: [] for row in rows}
        for annotation in content["annotations"]:
            found[annotation["image_id"]].append(annotation)
    except KeyError as error:
        raise SegjaxError(
            f"{json_path}: this is not an instances JSON (KeyError: {error}); it needs images with"
            " id and file_name, and annotations whose image_id is among them."
        ) from None
    except (TypeError, AttributeError) as error:
        raise SegjaxError(
            f"{json_path}: this is not an instances JSON ({type(error).__name__}: {error}); it"
            " needs images and annotations."
        ) from None
    if skip_empty:
        rows = [row for row in rows if any(not a.get("iscrowd", 0) for a in found[row["id"]])]
    if not rows:
        raise SegjaxError(f"{json_path}: it has no images; the dataset is empty.")
    names = [Path(row["file_name"]).with_suffix("").as_posix() for row in rows]
    name, times = collections.Counter(names).most_common(1)[0]
    if times > 1:  # results are told apart by them
        raise SegjaxError(
            f"{json_path}: {times} images are named {name}; leave all but one out, or rename them."
        )
    return [
        Entry(f"{split}/{name}", image_root / row["file_name"], (row, found[row["id"]]))
        for name, row in zip(names, rows)
    ]


def _annotation(entry: Entry, size: Size, space: LabelSpace, json_path: Path) -> Annotation:
    row, annotations = entry.labels
    given = (int(row.get("height", size[0])), int(row.get("width", size[1])))
    pairs.check_size(json_path, given, entry.image, size)
    where = f"{json_path.name}: an annotation of {row['file_name']}"
    masks, labels, crowds, areas = [], [], [], []
    for annotation in annotations:
        try:
            labels.append(int(annotation["category_id"]))
            shape = annotation["segmentation"]
            areas.append(float(annotation.get("area", -1)))
        except (KeyError, TypeError, ValueError) as error:
            raise SegjaxError(f"{where} lacks {error} (category_id, segmentation).") from None
        crowds.append(bool(annotation.get("iscrowd", 0)))
        masks.append(_mask(shape, size, where))
    classes = space.from_ids(np.array(labels, np.int64))
    if (classes == IGNORE).any():
        unknown = labels[int(np.argmax(classes == IGNORE))]
        raise SegjaxError(
            f"{where} has category_id {unknown}, which is none of {space.name}; name your own in"
            " config.data.dataset.categories."
        )
    segments = instances.layered(masks, size)
    return Annotation(
        semantic=instances.painted(instances.top_layer(segments), classes),
        segments=segments,
        segment_class=classes,
        segment_is_crowd=crowds,
        segment_area=() if -1 in areas else areas,
    )


# Drawing ----------------------------------------------------------------------------------------


def _drawn_by() -> str:
    return "pycocotools" if importlib.util.find_spec("pycocotools") else "centres"


def _mask(shape: Any, size: Size, where: str) -> np.ndarray:
    """bool [H, W] of a segmentation: a list of polygons, or run lengths down the columns."""
    fault = SegjaxError(
        f"{where} has a segmentation that is neither a list of polygons x, y, x, y, ... nor run"
        f" lengths of {size[0]} x {size[1]} (height x width) pixels."
    )
    if isinstance(shape, dict):
        if list(shape.get("size", ())) != list(size) or "counts" not in shape:
            raise fault
        if isinstance(shape["counts"], str | bytes):
            return _compressed(shape, where)
        return _run_lengths(shape["counts"], size, fault)
    try:
        polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in shape]
    except (TypeError, ValueError):
        raise fault from None
    polygons = [polygon for polygon in polygons if len(polygon) > 2]  # less has no area
    if not polygons:
        return np.zeros(size, bool)
    if _drawn_by() == "centres":
        return np.any([_holds_centre(polygon, size) for polygon in polygons], axis=0)
    from pycocotools import mask as coco_masks

    runs = coco_masks.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *size)
    return coco_masks.decode(coco_masks.merge(runs)) > 0


def _holds_centre(polygon: np.ndarray, size: Size) -> np.ndarray:
    """bool [H, W]: the pixels whose centres a polygon [N, 2] (x, y) winds around (even-odd)."""
    ys, xs = (np.arange(side) + 0.5 for side in size)
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        rows = (y0 <= ys) != (y1 <= ys)
        if rows.any():
            crossing = x0 + (ys[rows] - y0) * (x1 - x0) / (y1 - y0)
            inside[rows] ^= xs >= crossing[:, None]
    return inside


def _compressed(shape: Mapping[str, Any], where: str) -> np.ndarray:
    if _drawn_by() == "centres":
        raise SegjaxError(
            f"{where} has compressed run lengths, which pycocotools reads; install it with"
            " pip install segjax[coco]."
        )
    from pycocotools import mask as coco_masks

    counts = shape["counts"]
    counts = counts.encode() if isinstance(counts, str) else counts
    return coco_masks.decode({"size": list(shape["size"]), "counts": counts}) > 0


def _run_lengths(counts: Any, size: Size, fault: SegjaxError) -> np.ndarray:
    """Runs of 0 and 1 in turn, 0 first, down the columns."""
    try:
        lengths = np.asarray(counts, np.int64)
        flat = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
        return flat.reshape(size[::-1]).T
    except (TypeError, ValueError):
        raise fault from None
