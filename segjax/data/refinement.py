"""Objects with an exact mask, and perhaps a coarse one: what datasets for refinement are made of.

Masks are grey, 255 where the object is. Those of a published test set lie beside each other:

    X_im.jpg    the image
    X_gt.png    the exact mask
    X_seg.png   the coarse mask, of some segmentation network
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segjax.data import images, pairs, prepared
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Record, Source
from segjax.errors import SegjaxError

MASKS = ("mask", "coarse_mask")

THRESHOLD = 128
"""A pixel belongs to the object where its grey value is above this."""

LABEL_SPACE = LabelSpace(
    name="object",
    names=("background", "object"),
    palette=((0, 0, 0), (255, 170, 0)),
    is_thing=(False, True),
)


class Triple(NamedTuple):
    """The files of an example; `coarse` is None where there is none."""

    name: str
    image: Path
    mask: Path
    coarse: Path | None = None


def source(
    dataset: str,
    split: str,
    key: str,
    triples: Callable[[], Sequence[Triple]],
    coarse: bool,
) -> Source:
    """A source of such files.

    Args:
        dataset: name of the dataset.
        split: name of the split.
        key: see `Source`.
        triples: lists the files; called once.
        coarse: whether the examples have coarse masks.
    """
    listed: list[Sequence[Triple]] = []

    def all_triples() -> Sequence[Triple]:
        if not listed:
            listed.append(triples())
        return listed[0]

    def read(index: int) -> Record:
        triple = all_triples()[index]
        data, size = pairs.read_sized(triple.image)
        mask = read_mask(triple.mask, triple.image, size)
        _check_truth(mask, triple.mask)
        coarse_mask = read_mask(triple.coarse, triple.image, size) if coarse else None
        return record(data, mask, coarse_mask)

    return Source(
        dataset=dataset,
        split=split,
        label_space=LABEL_SPACE,
        key=key,
        segments=False,
        names=lambda: [triple.name for triple in all_triples()],
        read=read,
        masks=MASKS if coarse else MASKS[:1],
    )


def record(image: bytes, mask: np.ndarray, coarse_mask: np.ndarray | None) -> Record:
    """What is stored of an object; the class map follows from the mask."""
    semantic = (mask > THRESHOLD).astype(np.int16)
    return Record(image, mask.shape, semantic, mask=mask, coarse_mask=coarse_mask)


def read_mask(path: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads a mask as grey levels.

    Colours become their grey level (also those of a palette, as in the published code), 1-bit
    pictures 0 and 255, 16-bit values v round(v / 257); transparency is dropped.

    Args:
        path: of the mask.
        image: the photograph it belongs to, for messages.
        size: (height, width) of the photograph.

    Returns:
        uint8 [H, W].

    Raises:
        SegjaxError: missing, unreadable, of another size than the image, or stored as 0 and 1.
    """
    if not path.is_file():
        raise SegjaxError(f"{image}: its mask is missing; it should be {path}.")
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            if picture.mode.startswith("I"):
                wide = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
                mask = ((wide + 128) // 257).astype(np.uint8)
            else:
                mask = np.array(picture.convert("L"))
    except Exception:
        images.read_image(path)  # says what is wrong with it
        raise
    pairs.check_size(path, mask.shape, image, size)
    if mask.max() == 1:
        raise SegjaxError(
            f"{path}: its values are 0 and 1, which may be meant as a mask or as black; multiply"
            " them by 255, which is the value of the object."
        )
    return mask


def _check_truth(mask: np.ndarray, path: Path) -> None:
    greatest = int(mask.max())
    if 0 < greatest <= THRESHOLD:
        raise SegjaxError(
            f"{path}: its greatest grey value is {greatest}, so no pixel counts as object (that is"
            f" above {THRESHOLD}); store the object as 255 in a grey PNG (of a palette picture the"
            " colours are read)."
        )


@dataclasses.dataclass(frozen=True)
class TestSet:
    """A published test set: a folder of X_im.*, X_gt.png and X_seg.png.

    Attributes:
        dataset: its name.
        title: how messages call it.
        folders: for each split, where the files may lie below the manual directory.
        page: where it is downloaded.
        archives: what is.
        layout: lines that show the files.
        image_of: the X of the image for the X of a mask.
    """

    dataset: str
    title: str
    folders: Mapping[str, Sequence[str]]
    page: str
    archives: str
    layout: str
    image_of: Callable[[str], str] = str

    def load(
        self,
        split: str,
        data_dir: str | PathLike[str],
        manual_dir: str | PathLike[str],
        coarse: str,
    ) -> Dataset:
        """A split, prepared if need be. Arguments as of `source`."""
        return prepared.prepare_official(
            self.dataset,
            split,
            data_dir,
            lambda: self.source(split, data_dir, manual_dir, coarse),
            manual_dir or coarse,
        )

    def source(
        self,
        split: str,
        data_dir: str | PathLike[str],
        manual_dir: str | PathLike[str],
        coarse: str,
    ) -> Source:
        """The files of a split.

        Args:
            split: one of `folders`.
            data_dir: where prepared data lies.
            manual_dir: holds the files; default <data_dir>/downloads/manual/<dataset>.
            coarse: another folder of X_seg.png, relative to the manual directory.

        Raises:
            SegjaxError: no such split, no files, or a triple that is not complete.
        """
        if split not in self.folders:
            known = " and ".join(self.folders)
            raise SegjaxError(f"{self.dataset} has the splits {known}, not '{split}'.")
        root = Path(manual_dir) if manual_dir else self._manual_directory(data_dir)
        root = root.expanduser()
        places = [root / folder for folder in self.folders[split]]
        home = next((place for place in places if any(place.glob("*_gt.png"))), None)
        if home is None:
            raise pairs.missing(self.title, root, self.page, self.archives, self.layout)
        coarse_root = root / coarse if coarse else home
        if not coarse_root.is_dir():
            raise SegjaxError(
                f"config.data.dataset.coarse: there is no folder {coarse_root}; it should hold the"
                " coarse masks X_seg.png."
            )
        found = self._triples(home, coarse_root)
        return source(
            dataset=self.dataset,
            split=split,
            key=prepared.custom_key(key_of_files(found), manual_dir, coarse),
            triples=lambda: [triple._replace(name=f"{split}/{triple.name}") for triple in found],
            coarse=True,
        )

    def _manual_directory(self, data_dir: str | PathLike[str]) -> Path:
        return prepared.manual_directory(self.dataset, data_dir)

    def _triples(self, root: Path, coarse_root: Path) -> list[Triple]:
        """All triples of a folder, by name; none may lack a part."""
        suffix = "_gt.png"
        masks = sorted(path for path in root.iterdir() if path.name.endswith(suffix))
        photos = {
            path.stem.removesuffix("_im"): path
            for path in root.iterdir()
            if path.stem.endswith("_im") and path.suffix.lower() in pairs.IMAGE_SUFFIXES
        }
        found = []
        for mask in masks:
            name = mask.name.removesuffix(suffix)
            photo = photos.get(self.image_of(name))
            if photo is None:
                expected = mask.with_name(f"{self.image_of(name)}_im.jpg")
                raise SegjaxError(f"{mask}: its image is missing; it should be {expected}.")
            coarse = coarse_root / f"{name}_seg.png"
            if not coarse.is_file():
                raise SegjaxError(f"{photo}: its coarse mask is missing; it should be {coarse}.")
            found.append(Triple(name, photo, mask, coarse))
        unused = sorted(set(photos.values()) - {triple.image for triple in found})
        if unused:
            expected = unused[0].with_name(f"{unused[0].stem.removesuffix('_im')}{suffix}")
            raise SegjaxError(
                f"{unused[0]}: its exact mask is missing ({len(unused)} images have none); it"
                f" should be {expected}."
            )
        return found


def key_of_files(triples: Iterable[Triple]) -> str:
    """Changes when a file is added, removed, or changes its size."""
    return prepared.key_of(
        [
            (triple.name, *(path.stat().st_size for path in triple[1:] if path is not None))
            for triple in triples
        ]
    )
