"""Pictures of results: overlays, palette images, region maps, and panels to compare.

Arrays are uint8 RGB [H, W, 3]; labels are int [H, W] with negative values where there are none.
What has text is a PIL picture.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError

if TYPE_CHECKING:
    from segjax.inference.predictor import Result

PAPER = (255, 255, 255)
INK = (34, 34, 34)
FAINT = (110, 110, 110)
PANEL = 448
"""Pixels of the longer side of a panel."""

Palette = Sequence[tuple[int, int, int]]


# --------------------------------------------------------------------------------------------------
# Pixels


def colours(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """The palette's colour of each pixel; black where there is no label."""
    table = np.array([*palette, (0, 0, 0)], np.uint8)
    known = (labels >= 0) & (labels < len(palette))
    return table[np.where(known, labels, len(palette))]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: Palette, alpha: float = 0.6
) -> np.ndarray:
    """Lays the colours of the labels over an image.

    Args:
        image: uint8 [H, W, 3].
        labels: int [H, W]; where negative, the image is darkened and striped.
        palette: K colours.
        alpha: share of the colours, 0..1.

    Returns:
        uint8 [H, W, 3].
    """
    if not 0 <= alpha <= 1:
        raise SegjaxError(f"alpha is {alpha}; take a number from 0 (image) to 1 (colours).")
    mixed = cv2.addWeighted(image, 1 - alpha, colours(labels, palette), alpha, 0)
    unlabelled = labels < 0
    if unlabelled.any():
        mixed[unlabelled] = image[unlabelled] // 3
        width = max(min(labels.shape) // 40, 2)
        y, x = np.indices(labels.shape, sparse=True)
        mixed[unlabelled & ((x + y) % (4 * width) < width)] = 96
    return mixed


def borders(labels: np.ndarray) -> np.ndarray:
    """bool [H, W], True where a pixel differs from the one on its right or below it."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def outline(image: np.ndarray, labels: np.ndarray, colour: Sequence[int] = PAPER) -> np.ndarray:
    """A copy of the image with half-transparent lines where labels change."""
    drawn = image.copy()
    where = borders(labels)
    drawn[where] = (drawn[where].astype(np.uint16) + 2 * np.array(colour, np.uint16)) // 3
    return drawn


def mean_colours(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Every region in the mean colour of its pixels. `regions` int [H, W], any numbers."""
    _, number = np.unique(regions, return_inverse=True)
    number = number.reshape(-1)
    count = np.bincount(number)
    means = [np.bincount(number, image[..., c].reshape(-1)) / count for c in range(3)]
    return np.stack(means, -1).round().astype(np.uint8)[number].reshape(image.shape)


def random_colours(regions: np.ndarray) -> np.ndarray:
    """Every region in a colour of its own; a region keeps it from image to image."""
    number = regions.astype(np.uint32)
    hue = (number * np.uint32(2654435761)) >> np.uint32(8)  # Knuth's multiplicative hash
    hsv = np.stack([hue % 180, 110 + (hue >> 8) % 90, 190 + (hue >> 4) % 60], -1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def regions_picture(
    image: np.ndarray,
    regions: np.ndarray,
    centres: np.ndarray | None = None,
    fill: str = "mean",
    factor: int = 1,
) -> np.ndarray:
    """The learned regions: filled, with borders, and a dot at the token that each belongs to.

    Args:
        image: uint8 [H, W, 3].
        regions: int [H, W], region numbers.
        centres: float [N, 2], (y, x) of the tokens, or None for no dots.
        fill: "mean" colour of the image, "random" colours, or "image" for the image itself.
        factor: the picture is enlarged so many times, lines and dots staying thin.

    Returns:
        uint8 [factor*H, factor*W, 3].
    """
    fills = {
        "mean": lambda: mean_colours(image, regions),
        "random": lambda: cv2.addWeighted(image, 0.35, random_colours(regions), 0.65, 0),
        "image": lambda: image,
    }
    if fill not in fills:
        raise SegjaxError(f"fill is '{fill}'; take one of {', '.join(fills)}.")
    drawn = outline(enlarged(fills[fill](), factor), enlarged(regions, factor))
    if centres is None or not len(centres):
        return drawn
    area = drawn.shape[0] * drawn.shape[1] / len(centres)
    radius = 1.0 if area < 150 else min(max(np.sqrt(area) / 16, 1.5), 6.0)
    shift = 4  # OpenCV's fixed point for places between pixels
    for y, x in np.asarray(centres, float) * factor * 2**shift:
        place = (round(x - 2 ** (shift - 1)), round(y - 2 ** (shift - 1)))
        for grown, colour in ((1.0, (20, 20, 20)), (0.0, (255, 214, 0))):
            size = round((radius + grown) * 2**shift)
            cv2.circle(drawn, place, size, colour, -1, cv2.LINE_AA, shift)
    return drawn


def enlarged(array: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel becomes factor x factor pixels."""
    if factor == 1:
        return array
    return np.repeat(np.repeat(array, factor, axis=0), factor, axis=1)


# --------------------------------------------------------------------------------------------------
# Files


def label_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """A palette picture whose pixel values are the labels (255 where there are none).

    With more than 256 classes, a 16-bit grey picture instead (65535 where there are none).
    """
    if len(palette) > 256:
        return Image.fromarray(np.where(labels < 0, 65535, labels).astype(np.uint16))
    picture = Image.fromarray(np.where(labels < 0, 255, labels).astype(np.uint8))
    picture.putpalette(np.array(palette, np.uint8).tobytes())
    return picture


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a picture, whole or not at all, in the format of the name's ending.

    Raises:
        SegjaxError: an ending that no format has, or a place that cannot be written.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    form = Image.registered_extensions().get(suffix)
    if form is None or form not in Image.SAVE:
        raise SegjaxError(f"{path}: pictures aren't written as '{suffix}'; name it .png or .jpg.")
    options: dict[str, Any] = {"JPEG": {"quality": 92}, "PNG": {"compress_level": 4}}
    data = io.BytesIO()
    picture.save(data, form, **options.get(form, {}))
    write(data.getbuffer(), path)


def write(data: bytes | memoryview, path: str | os.PathLike[str]) -> None:
    """Writes bytes beside `path`, then moves them there, so that the file is whole or absent."""
    folder, name = os.path.split(os.fspath(path))
    part = os.path.join(folder, f".{name}.{os.getpid()}")
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError as error:
        raise SegjaxError(f"{path}: it cannot be written ({error.strerror}).") from None
    finally:
        if os.path.exists(part):
            os.unlink(part)


# --------------------------------------------------------------------------------------------------
# Pictures with text


class Entry(NamedTuple):
    """A line of a legend; colour None is the striped "unlabelled"."""

    name: str
    colour: tuple[int, int, int] | None


def legend(entries: Sequence[Entry], width: int, size: int = 14) -> Image.Image:
    """Colour boxes with names, in as many rows as the width asks for.

    Args:
        entries: what to show.
        width: pixels.
        size: of the letters.
    """
    font = _font(size)
    box, line, gap = size, round(size * 1.75), round(size * 0.5)
    x, y, places = gap, gap, []
    for entry in entries:
        name = _fitting(entry.name, width - 4 * gap - box, font)
        needed = box + gap + round(font.getlength(name)) + 2 * gap
        if x + needed > width and x > gap:
            x, y = gap, y + line
        places.append((x, y, name, entry.colour))
        x += needed
    picture = Image.new("RGB", (width, y + line if entries else 0), PAPER)
    draw = ImageDraw.Draw(picture)
    for x, y, name, colour in places:
        frame = (x, y, x + box, y + box)
        draw.rectangle(frame, fill=tuple(colour) if colour else (60, 60, 60), outline=FAINT)
        if colour is None:
            draw.line((x + 1, y + box - 1, x + box - 1, y + 1), fill=(150, 150, 150), width=2)
        draw.text((x + box + gap, y + box / 2), name, fill=INK, font=font, anchor="lm")
    return picture


def drawn(result: Result, alpha: float = 0.6, with_legend: bool = True) -> Image.Image:
    """The overlay of a result, with a legend of the classes that occur, the largest first.

    With a legend, an image too small for letters is enlarged.
    """
    image, labels, space = result.image, result.labels, result.label_space
    factor = -(-360 // max(image.shape[:2])) if with_legend else 1
    image, labels = enlarged(image, factor), enlarged(labels, factor)
    thick = max(round(max(labels.shape) / 900), 1)
    picture = overlay(image, labels, space.palette, alpha)
    edge = borders(labels)
    if thick > 1:
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((thick, thick), np.uint8)) > 0
    picture[edge] = picture[edge] // 3 + 160
    if not with_legend:
        return Image.fromarray(picture)
    size = int(np.clip(max(labels.shape) / 48, 13, 64))
    return _below(
        Image.fromarray(picture),
        legend(_entries([labels], space, shares=True), labels.shape[1], size),
    )


def panels(result: Result, truth: np.ndarray | None = None) -> Image.Image:
    """Image, truth (if given), prediction and regions (if there are) of a result side by side."""
    return side_by_side(
        result.image,
        result.labels,
        result.label_space,
        truth=truth,
        regions=result.regions(),
        centres=result.token_centres(),
    )


def side_by_side(
    image: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    truth: np.ndarray | None = None,
    regions: np.ndarray | None = None,
    centres: np.ndarray | None = None,
) -> Image.Image:
    """image | truth | prediction | regions with titles, over a legend of the classes in them.

    Args:
        image: uint8 [H, W, 3].
        labels: int [H, W], the prediction.
        space: the classes.
        truth: int [H, W], or None to leave that panel out.
        regions: int [H, W] region numbers, or None likewise.
        centres: float [N, 2], (y, x) of the regions' tokens, or None.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > PANEL:
        height, width = (max(round(side * PANEL / longer), 1) for side in (height, width))
        if centres is not None:
            centres = centres * (height / image.shape[0], width / image.shape[1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        labels, truth, regions = (
            None if a is None else _nearest(a, (height, width)) for a in (labels, truth, regions)
        )
    factor = max(round(PANEL / max(height, width)), 1)

    def with_labels(labels: np.ndarray) -> np.ndarray:
        big = enlarged(labels, factor)
        return outline(overlay(enlarged(image, factor), big, space.palette, 0.7), big)

    shown = [("image", enlarged(image, factor))]
    if truth is not None:
        shown.append(("truth", with_labels(truth)))
    shown.append(("prediction", with_labels(labels)))
    if regions is not None:
        shown.append(("regions", regions_picture(image, regions, centres, "mean", factor)))
    both = [labels] if truth is None else [truth, labels]
    row = _row([title for title, _ in shown], [picture for _, picture in shown])
    return _below(row, legend(_entries(both, space), row.width))


def _row(titles: Sequence[str], pictures: Sequence[np.ndarray], gap: int = 8) -> Image.Image:
    font = _font(15)
    top = 26
    height = pictures[0].shape[0]
    width = sum(picture.shape[1] + gap for picture in pictures) + gap
    row = Image.new("RGB", (max(width, 240), top + height + gap), PAPER)
    draw, x = ImageDraw.Draw(row), gap
    for title, picture in zip(titles, pictures):
        name = _fitting(title, picture.shape[1], font)
        draw.text((x, top / 2), name, fill=INK, font=font, anchor="lm")
        row.paste(Image.fromarray(picture), (x, top))
        x += picture.shape[1] + gap
    return row


def _below(above: Image.Image, below: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (above.width, above.height + below.height), PAPER)
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height))
    return whole


def _entries(maps: Sequence[np.ndarray], space: LabelSpace, shares: bool = False) -> list[Entry]:
    """The classes in any of the maps, the largest first."""
    known = [labels[labels >= 0].reshape(-1) for labels in maps]
    count = sum(np.bincount(labels, minlength=space.classes) for labels in known)
    total = max(sum(labels.size for labels in maps), 1)
    entries = []
    for label in sorted(np.flatnonzero(count), key=lambda label: -count[label]):
        share = 100 * count[label] / total
        text = f"  {share:.0f}%" if share >= 1 else "  <1%"
        entries.append(Entry(space.names[label] + text * shares, space.palette[label]))
    if any((labels < 0).any() for labels in maps):
        entries.append(Entry("unlabelled", None))
    return entries


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = ((np.arange(n) * m) // n for n, m in zip(size, labels.shape))
    return labels[rows[:, None], columns]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fitting(text: str, width: float, font: Any) -> str:
    """The text, shortened with an ellipsis to the width."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
