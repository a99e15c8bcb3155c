"""Average precision of instance masks, by COCO's own evaluation (pycocotools).

    rows = [annotations(image_id, segments, ..., space) for each image]
    truth = ground_truth(images, rows, space)                   # or the path of a COCO JSON
    summary = evaluate(truth, results)                          # rows of `result_files.instances`

Run lengths are COCO's: {"size": [height, width], "counts": str}.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.structs import Size

Row = dict[str, Any]

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The first six of COCO's: over all IoU from 0.5 to 0.95, of 0.5 and 0.75 alone, and of small
(below 32 x 32 pixels), medium and large (from 96 x 96) instances."""


def unpack(bits: np.ndarray, width: int) -> np.ndarray:
    """Masks as `Instances` holds them: uint8 [..., H, ceil(W / 8)] -> bool [..., H, W]."""
    return np.unpackbits(np.asarray(bits), axis=-1, count=width).astype(bool)


def encode(mask: np.ndarray) -> Row:
    """A mask bool [H, W] as COCO's compressed run lengths.

    Raises:
        SegjaxError: pycocotools is not installed.
    """
    found = _coco("mask").encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in found["size"]], "counts": found["counts"].decode()}


def decode(rle: Mapping[str, Any], size: Size | None = None, name: str = "mask") -> np.ndarray:
    """The mask bool [H, W] of COCO's run lengths.

    Args:
        rle: compressed ones, or counts as a list of numbers.
        size: (height, width) that it must have, or None.
        name: the annotation and its file, for errors.

    Raises:
        SegjaxError: it has another size, is broken, or pycocotools is not installed.
    """
    codec = _coco("mask")
    if size is not None:
        _check_size(rle, size, name)
    try:
        if isinstance(rle["counts"], list):
            rle = codec.frPyObjects(dict(rle), *rle["size"])
        mask = codec.decode(dict(rle))
    except (KeyError, TypeError, ValueError) as error:
        raise SegjaxError(
            f"{name}: these are no run lengths of COCO ({error}); write them with"
            " segjax.metrics.average_precision.encode."
        ) from None
    return mask.astype(bool)


def annotations(
    image_id: int | str,
    segments: np.ndarray,
    segment_class: np.ndarray,
    segment_is_crowd: np.ndarray,
    space: LabelSpace,
    segment_area: Sequence[float] | None = None,
) -> list[Row]:
    """The instances of an example as COCO annotates them; stuff is left out.

    Args:
        image_id: of the image.
        segments: int [H, W] or [L, H, W], row of the table, -1 where there is none.
        segment_class: int [S], -1 for rows that are no segment.
        segment_is_crowd: bool [S].
        space: the classes.
        segment_area: [S] pixels as the dataset states them; by default those drawn.
    """
    layers = np.asarray(segments).reshape(-1, *np.shape(segments)[-2:])
    rows = []
    for k, label in enumerate(np.asarray(segment_class).tolist()):
        if label < 0 or not space.is_thing[label]:
            continue
        mask = (layers == k).any(axis=0)
        area = float(mask.sum()) if segment_area is None else float(segment_area[k])
        rows.append(
            {
                "image_id": image_id,
                "category_id": _ids(space)[label],
                "segmentation": encode(mask),
                "area": area,
                "bbox": box_of(mask),
                "iscrowd": int(segment_is_crowd[k]),
            }
        )
    return rows


def ground_truth(images: Mapping[Any, Size], rows: Sequence[Row], space: LabelSpace) -> Row:
    """The content of a COCO JSON.

    Args:
        images: (height, width) by image id.
        rows: `annotations` of all images.
        space: the classes; those that are things become categories.
    """
    return {
        "images": [{"id": key, "height": h, "width": w} for key, (h, w) in images.items()],
        # From 1: COCO's evaluation takes an annotation 0 for "no match".
        "annotations": [{**row, "id": number} for number, row in enumerate(rows, 1)],
        "categories": [
            {"id": number, "name": name}
            for number, name, thing in zip(_ids(space), space.names, space.is_thing)
            if thing
        ],
    }


def evaluate(
    truth: Mapping[str, Any] | str | PathLike[str], results: Sequence[Row] | str | PathLike[str]
) -> dict[str, Any]:
    """COCO's figures of instance masks, at most 100 of each image.

    Args:
        truth: `ground_truth`, or the path of a COCO JSON; only images in it count.
        results: rows with image_id, category_id, segmentation (run lengths) and score, or the path
            of a JSON of them.

    Returns:
        STATISTICS in percent, NaN where there is no such instance; `classes`: for each its name and
        AP in percent (None without instances).

    Raises:
        SegjaxError: a file is missing or broken, or a result is of an unknown image or category, or
            its mask is not of the image's size; pycocotools is not installed.
    """
    truth, truth_name = _content(truth, "the ground truth")
    results, name = _content(results, "the results")
    _check_results(truth, truth_name, results, name)
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        known, found = _index(truth), _index(_as_truth(truth, results))
        evaluation = _coco("cocoeval").COCOeval(known, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    names = {row["id"]: row["name"] for row in truth["categories"]}
    classes = []
    for k, category in enumerate(evaluation.params.catIds):
        known_ones = precision[:, :, k][precision[:, :, k] > -1]
        figure = 100 * float(known_ones.mean()) if known_ones.size else None
        classes.append({"name": names[category], "AP": figure})
    figures = np.where(evaluation.stats[:6] < 0, np.nan, 100 * evaluation.stats[:6])
    return {**dict(zip(STATISTICS, figures.tolist())), "classes": classes}


def box_of(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] that just hold a mask bool [H, W]; zeros if it is empty."""
    if not mask.any():
        return [0, 0, 0, 0]
    down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(down[0]), int(across[0])
    return [left, top, int(across[-1]) + 1 - left, int(down[-1]) + 1 - top]


def _ids(space: LabelSpace) -> Sequence[int]:
    return space.ids or range(space.classes)


def _coco(module: str) -> ModuleType:
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError:
        raise SegjaxError(
            "COCO's masks and average precision need pycocotools, which is not installed; run"
            " pip install 'segjax[coco]'."
        ) from None
    return getattr(pycocotools, module)


def _content(source: Any, name: str) -> tuple[Any, str]:
    """The content and what to call it in errors."""
    if not isinstance(source, str | PathLike):
        return source, name
    try:
        return json.loads(Path(source).read_text(encoding="utf-8")), str(source)
    except OSError as error:
        raise SegjaxError(f"{source}: it cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise SegjaxError(f"{source}: this is not JSON, or it is truncated ({error}).") from None


def _check_results(truth: Any, truth_name: str, results: Any, name: str) -> None:
    try:
        sizes = {row["id"]: (row["height"], row["width"]) for row in truth["images"]}
        categories = {row["id"] for row in truth["categories"]}
        known = [(row["id"], row["image_id"], row["segmentation"]) for row in truth["annotations"]]
    except (KeyError, TypeError) as error:
        raise SegjaxError(
            f"{truth_name}: this is not a JSON of COCO instances ({type(error).__name__}: {error});"
            " it needs images, annotations and categories."
        ) from None
    for number, image, mask in known:
        if image in sizes and isinstance(mask, Mapping):
            _check_size(mask, sizes[image], f"{truth_name}: annotation {number}")
    for number, row in enumerate(results):
        where = f"{name}: result {number}"
        try:
            image, category, mask = row["image_id"], row["category_id"], row["segmentation"]
            float(row["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise SegjaxError(
                f"{where}: it lacks {error}; a result has image_id, category_id, segmentation and"
                " score."
            ) from None
        for what, value, values in (
            ("image_id", image, sizes),
            ("category_id", category, categories),
        ):
            if value not in values:
                raise SegjaxError(
                    f"{where}: {what} {value} is not in {truth_name}; both must be of one split."
                )
        _check_size(mask, sizes[image], where)


def _check_size(rle: Mapping[str, Any], size: Size, name: str) -> None:
    if tuple(rle["size"]) != tuple(size):
        height, width = rle["size"]
        raise SegjaxError(
            f"{name}: its mask is {width} x {height} pixels, the image {size[1]} x {size[0]}; masks"
            " must be made at the size of the original image."
        )


def _as_truth(truth: Mapping[str, Any], results: Sequence[Row]) -> Row:
    """Results laid out as `COCO.loadRes` does, which fails where there are none."""
    codec = _coco("mask")
    masks = [_compressed(row["segmentation"]) for row in results]
    rows = [
        {
            **row,
            "id": number,
            "segmentation": mask,
            "area": float(codec.area(mask)),
            "bbox": codec.toBbox(mask).tolist(),
            "iscrowd": 0,
        }
        for number, (row, mask) in enumerate(zip(results, masks), 1)
    ]
    return {**truth, "annotations": rows}


def _compressed(rle: Mapping[str, Any]) -> Row:
    if isinstance(rle["counts"], list):
        return _coco("mask").frPyObjects(dict(rle), *rle["size"])
    return dict(rle)


def _index(content: Mapping[str, Any]) -> Any:
    coco = _coco("coco").COCO()
    # Evaluation marks the rows; they are the caller's.
    coco.dataset = {**content, "annotations": [dict(row) for row in content["annotations"]]}
    coco.createIndex()
    return coco
