"""Coarse masks as files: one object, a map of class numbers, or COCO's panoptic PNG with its JSON.

A refined mask is written in the form that it was read in.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segjax.data import images
from segjax.errors import SegjaxError
from segjax.inference import draw, result_files
from segjax.inference.refinement import as_grey
from segjax.metrics.average_precision import box_of

KINDS = ("auto", "binary", "labels", "panoptic")

Name = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class MaskFile:
    """What a file holds.

    Attributes:
        kind: "binary", "labels" or "panoptic".
        values: binary: uint8 [H, W], grey. labels: int32 [H, W]. panoptic: int32 [H, W], segment
            ids, 0 for none.
        palette: of a palette PNG of labels, its colours; else None.
        deep: whether labels have 16 bits.
    """

    kind: str
    values: np.ndarray
    palette: bytes | None = None
    deep: bool = False


def read(path: Name, kind: str = "auto") -> MaskFile:
    """Reads a mask.

    "auto" takes a palette or 16-bit picture for labels, a coloured one for segment ids, and a grey
    one for a mask of one object if it is stored in colours, or if its values are 0 and 1, or 0 and
    255 with others along the object's edge alone. Other grey values may be certainties or class
    numbers, which is for the caller to say.

    Args:
        path: PNG, or another form without loss.
        kind: of KINDS.

    Raises:
        SegjaxError: it can't be read, doesn't hold that kind, or its kind is ambiguous.
    """
    if kind not in KINDS:
        raise SegjaxError(f"there is no kind of mask '{kind}'; take one of {', '.join(KINDS)}.")
    data, name = images._bytes(path, "")
    colour, palette, deep = _decoded(data, name)
    if colour is not None:
        grey = colour[..., 0]
        is_grey = bool((colour == grey[..., None]).all())
        if kind == "panoptic" or (kind == "auto" and not is_grey):
            return MaskFile("panoptic", result_files.ids_of(colour))
        if kind == "labels" or not is_grey:
            raise SegjaxError(
                f"{name}: it is in colour; a mask of one object is grey, and class numbers are a"
                " grey or palette PNG (segment ids of a panoptic PNG are --kind=panoptic)."
            )
        return MaskFile("binary", as_grey(grey, name))
    else:
        if kind == "panoptic":
            raise SegjaxError(
                f"{name}: a panoptic PNG is in colour (id = R + 256 G + 65536 B); this one is not,"
                " so take --kind=labels."
            )
        values = images.read_labels(data, name)
    if kind == "labels" or (kind == "auto" and (palette is not None or deep)):
        return MaskFile("labels", values, palette, deep)
    if kind == "auto" and not _is_clear(values):
        raise SegjaxError(
            f"{name}: its grey values (up to {values.max()}) may be certainties or class numbers;"
            " say which with --kind=binary or --kind=labels."
        )
    return MaskFile("binary", as_grey(values, name))


def _is_clear(values: np.ndarray) -> bool:
    """Whether grey values can only be a mask of one object: 0 and 1, or 0 and 255 with shades so
    narrow that no 5 x 5 pixels are all of them."""
    found = set(np.unique(values).tolist())
    if found <= {0, 1} or found <= {0, 255}:
        return True
    if not {0, 255} <= found or len(found) < 5:
        return False
    shades = ((values > 0) & (values < 255)).astype(np.uint8)
    return not cv2.erode(shades, np.ones((5, 5), np.uint8), borderValue=0).any()


def _decoded(data: bytes, name: str) -> tuple[np.ndarray | None, bytes | None, bool]:
    """uint8 [H, W, 3] of a picture in colour, else None; the colours of a palette picture, else
    None; and whether it has 16 bits."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            mode, form = picture.mode, picture.format
            if mode in images._LABEL_MODES or form == "JPEG":
                palette = picture.getpalette() if mode == "P" else None
                deep = mode.startswith("I")
                if form == "JPEG":  # which is refused with its reason
                    images.read_labels(data, name)
                return None, None if palette is None else bytes(palette), deep
            if mode not in ("RGB", "RGBA", "LA"):
                raise SegjaxError(f"{name}: masks of mode {mode} are not read; save it as a PNG.")
            array = np.array(picture.convert("RGBA"))
    except SegjaxError:
        raise
    except Exception as error:
        raise SegjaxError(images._unreadable(data, name, error)) from None
    if (array[..., 3] != 255).any():
        raise SegjaxError(
            f"{name}: the mask is transparent in places, so it is unclear whether colour or"
            " transparency says where the object is; save it as a grey PNG."
        )
    return array[..., :3], None, False


def write(path: Name, values: np.ndarray, like: MaskFile) -> None:
    """Writes a mask as `like` was: grey levels uint8, labels with their palette and depth, or
    segment ids as colours; whole or not at all.

    Raises:
        SegjaxError: a name that doesn't end in .png, or a place that cannot be written.
    """
    check_name(path)
    if like.kind == "panoptic":
        draw.write(images.encode_png(result_files.colours_of(values)), path)
    elif like.palette is not None:
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(like.palette)
        draw.save(picture, path)
    else:
        depth = np.uint16 if like.deep else np.uint8
        draw.write(images.encode_png(values.astype(depth)), path)


def check_name(path: Name) -> None:
    """Raises a SegjaxError unless a mask can be written there without loss."""
    if Path(path).suffix.lower() != ".png":
        raise SegjaxError(f"{path}: masks are written as PNG, without loss; name it .png.")


# --------------------------------------------------------------------------------------------------
# The JSON beside panoptic PNGs


class PanopticTable:
    """The segments of panoptic PNGs, as COCO's JSON lists them."""

    def __init__(self, path: Name) -> None:
        """Reads a JSON.

        Raises:
            SegjaxError: it is missing, or isn't one.
        """
        self.path = Path(path)
        try:
            self.content = json.loads(self.path.read_text(encoding="utf-8"))
            self._rows = {row["file_name"]: row for row in self.content["annotations"]}
            for row in self._rows.values():
                {int(segment["id"]) for segment in row["segments_info"]}
        except OSError as error:
            raise SegjaxError(f"{self.path}: it cannot be read ({error.strerror}).") from None
        except (KeyError, TypeError, ValueError) as error:
            raise SegjaxError(
                f"{self.path}: this is not a panoptic JSON ({type(error).__name__}: {error}); it"
                " needs annotations with file_name and segments_info."
            ) from None

    def row(self, name: str, ids: np.ndarray) -> dict[str, Any]:
        """The row of a PNG; `ids` int [H, W] are its segment ids.

        Raises:
            SegjaxError: there is none, or it doesn't list a segment that the PNG has.
        """
        if name not in self._rows:
            raise SegjaxError(f"{self.path}: it has no annotation whose file_name is {name}.")
        row = self._rows[name]
        listed = {int(segment["id"]) for segment in row["segments_info"]}
        if strays := sorted(set(np.unique(ids).tolist()) - {0} - listed):
            raise SegjaxError(
                f"{name}: segment {strays[0]} is not in {self.path.name}; both must be of one"
                " result."
            )
        return row

    def write(self, path: Name, rows: list[dict[str, Any]], names: Mapping[str, str]) -> None:
        """Writes the JSON of these rows; all else stays as it was read.

        Args:
            path: of the new JSON.
            rows: of `refined_row`, with their old file names.
            names: new file names by the old ones.
        """
        kept = {row["image_id"] for row in rows if "image_id" in row}
        content = dict(self.content)
        content["annotations"] = [{**row, "file_name": names[row["file_name"]]} for row in rows]
        if "images" in content:
            content["images"] = [row for row in content["images"] if row.get("id") in kept]
        result_files.write_json(path, content)


def refined_row(row: Mapping[str, Any], ids: np.ndarray) -> dict[str, Any]:
    """The row of a panoptic JSON for changed segment ids int [H, W]: area and bbox are those of the
    new pixels, segments that lost them all are left out, and all else (ids, categories, crowds)
    stays."""
    segments = []
    for segment in row["segments_info"]:
        mask = ids == int(segment["id"])
        if mask.any():
            segments.append({**segment, "area": int(mask.sum()), "bbox": box_of(mask)})
    return {**row, "segments_info": segments}
