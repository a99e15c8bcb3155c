"""Results as files that the datasets' own tools read; each appears whole or not at all.

COCO's panoptic form serves every label space, Cityscapes' too: the category of a segment is the id
that the label space gives its class, or the class number where it has none.

    rows = [panoptic_image(folder, name, found, space, image_id) for each image]
    panoptic_json(f"{folder}.json", rows, images, space)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import images as image_files
from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.inference.draw import write
from segjax.metrics.average_precision import box_of, encode, unpack
from segjax.structs import Instances, Panoptic, Size

Row = dict[str, Any]
Folder = str | PathLike[str]

# --------------------------------------------------------------------------------------------------
# Panoptic


def panoptic_image(
    folder: Folder,
    name: str,
    found: Panoptic,
    space: LabelSpace,
    image_id: int | str,
    size: Size | None = None,
) -> Row:
    """Writes `folder`/`name`.png, whose colours are segment ids: R + 256 G + 65536 B, 0 for void.

    Args:
        folder: made if it is missing.
        name: of the image, without ending.
        found: arrays of the device or of NumPy.
        space: the classes.
        image_id: of the image.
        size: (height, width) of the image where the map is larger.

    Returns:
        The image's row of `panoptic_json`.
    """
    height, width = size or found.segment_map.shape
    ids = np.asarray(found.segment_map)[:height, :width].astype(np.int32)
    file_name = f"{name}.png"
    write(image_files.encode_png(colours_of(ids)), Path(folder) / file_name)
    segments = []
    for number, label in enumerate(np.asarray(found.segment_class).tolist(), 1):
        if label < 0:
            continue
        mask = ids == number
        segments.append(
            {
                "id": number,
                "category_id": _ids(space)[label],
                "isthing": int(space.is_thing[label]),
                "area": int(mask.sum()),
                "bbox": box_of(mask),
                "iscrowd": 0,
            }
        )
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def panoptic_json(
    path: Folder, rows: Sequence[Row], images: Mapping[Any, Size], space: LabelSpace
) -> None:
    """Writes the JSON beside a folder of panoptic PNGs.

    Args:
        path: of the JSON.
        rows: of `panoptic_image`.
        images: (height, width) by image id.
        space: the classes.
    """
    names = {row["image_id"]: row["file_name"] for row in rows}
    content = {
        "images": [
            {"id": key, "file_name": names.get(key, ""), "height": height, "width": width}
            for key, (height, width) in images.items()
        ],
        "annotations": list(rows),
        "categories": categories(space),
    }
    write_json(path, content)


def categories(space: LabelSpace) -> list[Row]:
    """The classes as COCO's panoptic JSON lists them."""
    return [
        {"id": number, "name": name, "isthing": int(thing), "color": list(colour)}
        for number, name, thing, colour in zip(
            _ids(space), space.names, space.is_thing, space.palette
        )
    ]


def read_panoptic(
    path: Folder, space: LabelSpace, folder: Folder = ""
) -> Iterator[tuple[Row, np.ndarray]]:
    """Reads panoptic results, anybody's, one image at a time.

    Args:
        path: of the JSON.
        space: the classes.
        folder: of the PNGs; by default the JSON's path without its ending.

    Yields:
        The image's row of the JSON, and its segment ids int32 [H, W].

    Raises:
        SegjaxError: a file is missing or broken, an id is only in the PNG or only in the JSON, or a
            category is unknown.
    """
    path = Path(path)
    folder = Path(folder) if folder else path.with_suffix("")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        tables = [
            {int(segment["id"]): int(segment["category_id"]) for segment in row["segments_info"]}
            for row in rows
        ]
        files = [folder / row["file_name"] for row in rows]
    except OSError as error:
        raise SegjaxError(f"{path}: it cannot be read ({error.strerror}).") from None
    except (KeyError, TypeError, ValueError) as error:
        raise SegjaxError(
            f"{path}: this is not a panoptic JSON ({type(error).__name__}: {error}); it needs"
            " annotations with file_name and segments_info (id, category_id)."
        ) from None
    known = set(_ids(space))
    for row, table, file in zip(rows, tables, files):
        ids = ids_of(image_files.read_image(file))
        drawn = set(np.unique(ids).tolist()) - {0}
        if len(table) != len(row["segments_info"]):
            raise SegjaxError(f"{path}: two segments of {file.name} have the same id.")
        if strays := sorted(drawn - set(table)):
            raise SegjaxError(
                f"{file}: segment {strays[0]} is not in {path.name}; both must be of one result."
            )
        if gone := sorted(set(table) - drawn):
            raise SegjaxError(
                f"{file}: segment {gone[0]} of {path.name} has no pixel in it; leave segments"
                " without pixels out of the JSON."
            )
        for number, category in table.items():
            if category not in known:
                raise SegjaxError(
                    f"{path}: segment {number} of {file.name} has category_id {category}, which is"
                    f" none of {space.name}."
                )
        yield row, ids


def colours_of(ids: np.ndarray) -> np.ndarray:
    """Segment ids int [H, W] as the colours uint8 [H, W, 3] of a panoptic PNG."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def ids_of(colours: np.ndarray) -> np.ndarray:
    """Segment ids int32 [H, W] of the colours uint8 [H, W, 3] of a panoptic PNG."""
    wide = colours.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


# --------------------------------------------------------------------------------------------------
# Instances


def instances(found: Instances, space: LabelSpace, image_id: int | str, size: Size) -> list[Row]:
    """The instances of an image as COCO's results list them; empty masks are left out.

    Args:
        found: arrays of the device or of NumPy.
        space: the classes.
        image_id: of the image.
        size: (height, width) of the image.
    """
    codes: dict[int, Row] = {}
    rows = []
    for label, query, score, box in _kept(found):
        if query not in codes:
            codes[query] = encode(_mask(found, query, size))
        rows.append(
            {
                "image_id": image_id,
                "category_id": _ids(space)[label],
                "segmentation": codes[query],
                "score": score,
                "bbox": box,
            }
        )
    return rows


def cityscapes_instances(
    folder: Folder, name: str, found: Instances, space: LabelSpace, size: Size
) -> None:
    """Writes `folder`/`name`_pred.txt, a line "mask label-id confidence" for each instance, and the
    masks it names, as cityscapesscripts reads them.

    Args:
        folder: made if it is missing.
        name: of the image, "{city}_{sequence}_{frame}".
        found: arrays of the device or of NumPy.
        space: the classes.
        size: (height, width) of the image.
    """
    lines = []
    for number, (label, query, score, _) in enumerate(_kept(found)):
        file_name = f"{name}_{number}_{space.names[label].replace(' ', '_')}.png"
        mask = 255 * _mask(found, query, size).astype(np.uint8)
        write(image_files.encode_png(mask), Path(folder) / file_name)
        lines.append(f"{file_name} {_ids(space)[label]} {score:.6f}\n")
    # The list comes last: what it names is there.
    write("".join(lines).encode(), Path(folder) / f"{name}_pred.txt")


def painted(found: Instances, size: Size, least: float) -> tuple[np.ndarray, list[int]]:
    """Instances as a map to look at, the surer one on top where two overlap.

    Args:
        found: arrays of the device or of NumPy.
        size: (height, width) of the image.
        least: score below which an instance is left out.

    Returns:
        int32 [H, W], 0 where there is none, else 1 + its place in the list; and their classes.
    """
    chosen = [row for row in _kept(found) if row[2] >= least]
    picture = np.zeros(size, np.int32)
    for number in range(len(chosen), 0, -1):
        picture[_mask(found, chosen[number - 1][1], size)] = number
    return picture, [label for label, *_ in chosen]


def _kept(found: Instances) -> Iterator[tuple[int, int, float, list[int]]]:
    """Class, query, score and box of what is neither dropped nor empty."""
    columns = (found.classes, found.queries, found.scores, found.boxes, found.areas)
    for label, query, score, box, area in zip(*(np.asarray(column).tolist() for column in columns)):
        if label >= 0 and area > 0:
            yield label, query, score, box


def _mask(found: Instances, query: int, size: Size) -> np.ndarray:
    return unpack(np.asarray(found.masks[query]), size[1])[: size[0]]


# --------------------------------------------------------------------------------------------------
# Semantic


def semantic(path: Folder, labels: np.ndarray, space: LabelSpace) -> None:
    """Writes class numbers [H, W] as a grey PNG of the dataset's ids (Cityscapes: label ids).

    A pixel without a class becomes 0, or 255 where 0 is a class.
    """
    own = np.asarray(_ids(space))
    values = np.append(own, 255 if 0 in own else 0)  # the last one for IGNORE, which is -1
    values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
    write(image_files.encode_png(values[np.asarray(labels)]), path)


def write_json(path: Folder, content: Any) -> None:
    """Writes JSON, e.g. the rows of `instances` of all images."""
    write(json.dumps(content).encode(), path)


def _ids(space: LabelSpace) -> Sequence[int]:
    return space.ids or range(space.classes)
