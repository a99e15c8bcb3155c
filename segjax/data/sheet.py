"""A contact sheet of training examples as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.labels import LabelSpace

_GAP = 6
_PAPER = 250


def contact_sheet(
    batch: np.ndarray,
    semantic: np.ndarray,
    names: Sequence[str],
    space: LabelSpace,
    columns: int = 4,
    coarse: np.ndarray | None = None,
) -> Image.Image:
    """Draws every image beside its labels, and a legend of the classes that occur.

    Args:
        batch: uint8 [B, H, W, 3] RGB.
        semantic: int [B, H, W]; negative where unlabelled, which is drawn dark and striped.
        names: B captions.
        space: the classes and their colours.
        columns: examples a row.
        coarse: int [B, H, W], other labels that are drawn to the right of the first.

    Returns:
        The sheet, an RGB picture.
    """
    scale = -(-256 // max(batch.shape[1:3]))
    maps = [semantic] if coarse is None else [semantic, coarse]
    tiles = [_tile(image, labels, space, scale) for image, *labels in zip(batch, *maps)]
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    caption = 16
    sheet_width = max(columns * (width + _GAP) + _GAP, 320)
    seen = [label for label in np.unique(semantic) if label >= 0]
    legend = _legend([(space.names[i], space.palette[i]) for i in seen], sheet_width)
    sheet_height = rows * (height + caption + _GAP) + _GAP + legend.height
    sheet = Image.new("RGB", (sheet_width, sheet_height), (_PAPER,) * 3)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for index, (tile, name) in enumerate(zip(tiles, names)):
        row, column = divmod(index, columns)
        x, y = _GAP + column * (width + _GAP), _GAP + row * (height + caption + _GAP)
        sheet.paste(Image.fromarray(tile), (x, y))
        letters = max(width // 6, 4)
        text = name if len(name) <= letters else "…" + name[-letters + 1 :]
        draw.text((x, y + height + 1), text, fill=(60, 60, 60), font=font)
    sheet.paste(legend, (0, sheet_height - legend.height))
    return sheet


def _tile(
    image: np.ndarray, maps: Sequence[np.ndarray], space: LabelSpace, scale: int
) -> np.ndarray:
    """Image and an overlay of each map side by side, uint8 [scale*H, (1 + M)*scale*W, 3]."""
    image = _enlarge(image, scale)
    overlays = [_overlay(image, _enlarge(labels, scale), space) for labels in maps]
    return np.concatenate([image, *overlays], axis=1)


def _overlay(image: np.ndarray, labels: np.ndarray, space: LabelSpace) -> np.ndarray:
    palette = np.array([*space.palette, (0, 0, 0)], np.uint8)
    colour = palette[np.where(labels < 0, len(palette) - 1, labels)]
    overlay = cv2.addWeighted(image, 0.4, colour, 0.6, 0)
    y, x = np.indices(labels.shape)
    overlay[(labels < 0) & ((x + y) % 8 < 2)] = 110
    return overlay


def _enlarge(array: np.ndarray, scale: int) -> np.ndarray:
    return np.repeat(np.repeat(array, scale, axis=0), scale, axis=1)


def _legend(entries: list[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    font = ImageFont.load_default(size=12)
    x, y, line = _GAP, 4, 20
    places = []
    for name, colour in entries:
        needed = 18 + int(font.getlength(name)) + 14
        if x + needed > width and x > _GAP:
            x, y = _GAP, y + line
        places.append((x, y, name, colour))
        x += needed
    legend = Image.new("RGB", (width, y + line + 4), (_PAPER,) * 3)
    draw = ImageDraw.Draw(legend)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=tuple(colour), outline=(90, 90, 90))
        draw.text((x + 18, y), name, fill=(30, 30, 30), font=font)
    return legend
