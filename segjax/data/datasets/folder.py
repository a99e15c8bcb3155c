"""A user's own images and masks.

    ROOT/names.txt                 one class name a line, in the order of the mask values
    ROOT/images/train/a.jpg        ROOT/masks/train/a.png
    ROOT/images/validation/b.jpg   ROOT/masks/validation/b.png

or images/ and masks/ without the split folders; then a tenth, chosen by name, is held back. Images
are of any format; masks are grey or palette PNGs of class numbers. Folders may be nested.
"""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path

from segjax.data import pairs, prepared
from segjax.data.labels import LabelSpace, from_names_file
from segjax.data.pairs import Pair
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError

ALIASES = {"train": ("train", "training"), "validation": ("validation", "val", "valid")}


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    root: str,
    names: str = "",
    images: str = "images",
    masks: str = "masks",
    ignore: tuple[int, ...] = (255,),
    reduce_zero_label: bool = False,
    held_back: float = 0.1,
) -> Dataset:
    """Loads a split; the prepared copy is made anew whenever a file is added, removed or changed.

    Args:
        split: "train" or "validation" (or any folder below images/ and masks/).
        data_dir: where prepared data lies.
        root: the folder that holds the rest.
        names: the file of class names (see `labels.from_names_file`); default: names.txt or
            names.json in `root`.
        images: folder of images, relative to `root`.
        masks: folder of masks, relative to `root`; matched by the name without suffix.
        ignore: mask values that are not counted.
        reduce_zero_label: label 0 is not counted, and label v is class v - 1.
        held_back: share of images for validation where there are no split folders.
    """
    options = dict(
        root=root,
        names=names,
        images=images,
        masks=masks,
        ignore=ignore,
        reduce_zero_label=reduce_zero_label,
        held_back=held_back,
    )
    return prepared.prepare(source(split, data_dir, **options), data_dir)


def label_space(*, root: str, names: str = "", **options: object) -> LabelSpace:
    """The classes of the names file."""
    home = _root(root)
    if names:
        path = home / Path(names).expanduser()
        return from_names_file(path if path.exists() else Path(names), name=home.name)
    text = home / "names.txt"
    other = home / "names.json"
    return from_names_file(other if other.exists() and not text.exists() else text, home.name)


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    root: str,
    names: str = "",
    images: str = "images",
    masks: str = "masks",
    ignore: tuple[int, ...] = (255,),
    reduce_zero_label: bool = False,
    held_back: float = 0.1,
) -> Source:
    """The files of a split. Options as in `load`."""
    home = _root(root)
    space = label_space(root=root, names=names)
    ignore = tuple(ignore) if isinstance(ignore, tuple | list) else (ignore,)
    found = _pairs(home, split, images, masks, held_back)
    stats = [
        (pair.name, *(_stat(path) for path in (pair.image, pair.mask))) for pair in found
    ]  # the listing is the key: changes are noticed
    return pairs.source(
        dataset="folder",
        split=split,
        space=space,
        key=prepared.key_of(str(home), stats, ignore, reduce_zero_label),
        pairs=lambda: found,
        class_numbers=pairs.plain_class_numbers(space, ignore, reduce_zero_label),
    )


def _root(root: str) -> Path:
    if not root:
        raise SegjaxError("config.data.dataset.root is empty; set it to the folder of your data.")
    home = Path(root).expanduser().absolute()
    if not home.is_dir():
        raise SegjaxError(f"config.data.dataset.root: there is no folder {home}.")
    return home


def _pairs(home: Path, split: str, images: str, masks: str, held_back: float) -> list[Pair]:
    image_root, mask_root = home / images, home / masks
    for folder in (image_root, mask_root):
        if not folder.is_dir():
            raise SegjaxError(
                f"{folder}: this folder is missing; put images into {image_root} and masks of the"
                f" same names into {mask_root}, or both into train/ and validation/ below them."
            )
    split_folder = _split_folder(image_root, split)
    if split_folder:
        mask_folder = _split_folder(mask_root, split)
        if not mask_folder:
            raise SegjaxError(
                f"{mask_root}: it has no folder {split_folder} beside {image_root / split_folder}."
            )
        image_root, mask_root = image_root / split_folder, mask_root / mask_folder
    elif any(_split_folder(image_root, name) for name in ALIASES):
        raise SegjaxError(f"{image_root}: it has no folder {split} for the split '{split}'.")

    masks_by_stem: dict[str, Path] = {}
    for path in pairs.find_files(mask_root):
        stem = _stem(path, mask_root)
        if stem not in masks_by_stem or path.suffix.lower() == ".png":
            masks_by_stem[stem] = path
    found: dict[str, Pair] = {}
    for path in pairs.find_files(image_root):
        stem = _stem(path, image_root)
        if stem in found:
            raise SegjaxError(
                f"{path}: {found[stem].image.name} has the same name; one mask can't tell which is"
                " meant, so rename one of them."
            )
        found[stem] = Pair(stem, path, masks_by_stem.get(stem, mask_root / f"{stem}.png"))
    stems = sorted(found)
    if not split_folder:
        stems = _held_back(stems, split, held_back)
    if not stems:
        what = "no image files" if not found else f"too few images for the split '{split}'"
        raise SegjaxError(f"{image_root}: there are {what}; the dataset is empty.")
    return [found[stem] for stem in stems]


def _split_folder(root: Path, split: str) -> str:
    names = ALIASES.get(split, (split,))
    return next((name for name in names if (root / name).is_dir()), "")


def _held_back(stems: list[str], split: str, share: float) -> list[str]:
    """Divides by a hash of the name, so that an added image does not move the others."""
    if split not in ALIASES:
        raise SegjaxError(
            f"config.data: without split folders there are train and validation, not '{split}'."
        )
    rank = {
        stem: int(hashlib.sha256(stem.encode()).hexdigest()[:12], 16) / 16**12 for stem in stems
    }
    held = {stem for stem in stems if rank[stem] < share}
    if share > 0 and not held and len(stems) > 1:
        held = {min(stems, key=rank.get)}
    if held and len(held) == len(stems) and share < 1:
        held.remove(max(stems, key=rank.get))
    return [stem for stem in stems if (stem in held) == (split == "validation")]


def _stem(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _stat(path: Path) -> tuple[str, int, int] | str:
    try:
        stat = path.stat()
    except OSError:
        return path.name
    return path.name, stat.st_size, stat.st_mtime_ns
