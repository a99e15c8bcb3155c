"""Images with one mask each: what `folder`, `ade20k` and `cityscapes` are made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax.data import images
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Record, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE, Size

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "dib", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "mpo"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)


class Pair(NamedTuple):
    """An image file, its mask file (where it should be, if it is missing), and their name."""

    name: str
    image: Path
    mask: Path


def source(
    dataset: str,
    split: str,
    space: LabelSpace,
    key: str,
    pairs: Callable[[], Sequence[Pair]],
    class_numbers: Callable[[np.ndarray, str], np.ndarray],
) -> Source:
    """A source of image and mask files.

    Args:
        dataset: name of the dataset.
        split: name of the split.
        space: what the class numbers mean.
        key: see `Source`.
        pairs: lists the files; called once.
        class_numbers: (int32 [H, W] values of a mask file, its name) to int16 [H, W] class numbers;
            raises SegjaxError for values that can't be.
    """
    listed: list[Sequence[Pair]] = []

    def all_pairs() -> Sequence[Pair]:
        if not listed:
            listed.append(pairs())
        return listed[0]

    def read(index: int) -> Record:
        pair = all_pairs()[index]
        data, size = read_sized(pair.image)
        if not pair.mask.is_file():
            raise SegjaxError(f"{pair.image}: its mask is missing; it should be {pair.mask}.")
        values = images.read_labels(pair.mask)
        check_size(pair.mask, values.shape, pair.image, size)
        return Record(image=data, size=size, semantic=class_numbers(values, str(pair.mask)))

    return Source(
        dataset=dataset,
        split=split,
        label_space=space,
        key=key,
        segments=False,
        names=lambda: [pair.name for pair in all_pairs()],
        read=read,
    )


def read_sized(path: Path) -> tuple[bytes, Size]:
    """The bytes of an image file and the (height, width) of the picture.

    Raises:
        SegjaxError: the file is missing, truncated or not an image.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SegjaxError(f"{path}: the image is missing.") from None
    except OSError as error:
        raise SegjaxError(f"{path}: it cannot be opened ({error.strerror}).") from None
    return data, images.image_size(data, str(path))


def check_size(mask: Path, mask_size: Size, image: Path, image_size: Size) -> None:
    """Raises SegjaxError unless both are of one size, (height, width)."""
    if tuple(mask_size) == tuple(image_size):
        return
    turned = tuple(mask_size) == tuple(image_size)[::-1]
    remedy = (
        "the photograph carries an EXIF rotation that the mask lacks; rotate one of them"
        if turned
        else "bring one to the size of the other (masks by nearest neighbour)"
    )
    raise SegjaxError(
        f"{mask}: the mask is {mask_size[1]} x {mask_size[0]} pixels, but its image {image.name} is"
        f" {image_size[1]} x {image_size[0]}; {remedy}."
    )


def plain_class_numbers(
    space: LabelSpace, ignore: Sequence[int] = (255,), reduce_zero_label: bool = False
) -> Callable[[np.ndarray, str], np.ndarray]:
    """How mask values become class numbers.

    Args:
        space: if it has ids, those are the mask values of the classes.
        ignore: mask values that are not counted.
        reduce_zero_label: label 0 isn't counted either, and every other label v is class v - 1.

    Returns:
        The function that `source` wants. It refuses values that are neither classes nor ignored.
    """
    ignored = [value for value in ignore if value not in space.ids]

    def class_numbers(values: np.ndarray, name: str) -> np.ndarray:
        skip = np.isin(values, ignored)
        if space.ids:
            numbers = space.from_ids(values)
            wrong = (numbers == IGNORE) & ~skip
            if wrong.any():
                raise SegjaxError(
                    f"{name}: value {values[wrong].min()} is the id of no class of {space.name},"
                    f" and is not among the ignored values {tuple(ignore)}."
                )
            return numbers
        if reduce_zero_label:
            skip |= values == 0
        numbers = values - int(reduce_zero_label)
        wrong = ((numbers >= space.classes) | (numbers < 0)) & ~skip
        if wrong.any():
            raise SegjaxError(
                _out_of_range(name, int(values[wrong].max()), space, reduce_zero_label)
            )
        return np.where(skip, IGNORE, numbers).astype(np.int16)

    return class_numbers


def _out_of_range(name: str, label: int, space: LabelSpace, reduced: bool) -> str:
    if reduced:
        return (
            f"{name}: label {label} is not below {space.classes + 1}; with reduce_zero_label the"
            f" {space.classes} classes of {space.name} are labels 1 to {space.classes}."
        )
    return (
        f"{name}: label {label} is not below the {space.classes} classes of {space.name}; if label"
        ' 0 means "other", set data.dataset.reduce_zero_label=True.'
    )


def find_files(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All image files below `root`, sorted; hidden files and folders are left out."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def missing(what: str, where: Path, page: str, archives: str, layout: str) -> SegjaxError:
    """The one message about data that has to be downloaded by hand."""
    return SegjaxError(
        f"{what} is not at {where}. Download {archives} from {page} and unpack so that there is\n"
        + "\n".join(f"    {where}/{line}" for line in layout.strip().splitlines())
        + "\nor set config.data.dataset.manual_dir to where it lies."
    )
