"""Prepared datasets: ArrayRecord files that TFDS writes once and segjax reads at random.

A dataset module says what there is (a `Source`); `prepare` writes it and `Dataset` reads it. Images
are stored as the bytes of their files. TensorFlow is not needed, and not imported.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from segjax.data import images
from segjax.data.labels import LabelSpace
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.structs import Size

VERSION = "1.0.0"
"""Of the stored form; another one makes existing copies be written anew."""


class Record(NamedTuple):
    """One example before it is stored.

    Attributes:
        image: the bytes of the image file (of any format that `images.read_image` reads).
        size: (height, width) of the image.
        semantic: int16 [H, W] class numbers, IGNORE where unlabelled.
        segments: int32 [H, W], index into the lists below, -1 for void; or [L, H, W], L layers,
            where instances overlap (each lies in one layer); None without instances.
        segment_class: int [S].
        segment_is_crowd: bool [S].
        segment_area: float [S], area of each segment in pixels as the dataset states it, which is
            what panoptic quality and average precision count; () for the pixels drawn.
        mask: uint8 [H, W], grey, 255 where the object is, of datasets for refinement.
        coarse_mask: likewise, the mask to be refined.
    """

    image: bytes
    size: Size
    semantic: np.ndarray
    segments: np.ndarray | None = None
    segment_class: Sequence[int] = ()
    segment_is_crowd: Sequence[bool] = ()
    segment_area: Sequence[float] = ()
    mask: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What a dataset module found, before anything is prepared.

    Attributes:
        dataset: name of the dataset, e.g. "ade20k".
        split: name of the split.
        label_space: what the class numbers mean.
        key: a short text that differs whenever the prepared copy would.
        segments: whether records have segments.
        names: lists the examples, e.g. "train/ADE_train_00000001". Raises SegjaxError when there
            are none.
        read: reads an example by its index in `names`. Raises SegjaxError naming the file.
        masks: which of "mask" and "coarse_mask" the records have.
    """

    dataset: str
    split: str
    label_space: LabelSpace
    key: str
    segments: bool
    names: Callable[[], Sequence[str]]
    read: Callable[[int], Record]
    masks: tuple[str, ...] = ()


class Dataset:
    """Random access to the examples of a prepared split. Picklable; threads may share it.

    `dataset[i]` is a dict: `image` uint8 [H, W, 3] RGB; `semantic` int16 [H, W], IGNORE where
    unlabelled; `name` str; and for datasets with instances `segments` int32 [H, W] (index into the
    lists, -1 void; [L, H, W] for an image whose instances overlap), `segment_class` int32 [S],
    `segment_is_crowd` bool [S], `segment_is_thing` bool [S], `segment_area` float64 [S] (pixels,
    as the dataset states them). Datasets for refinement have `mask` uint8 [H, W], grey, 255 where
    the object is, and `coarse_mask` alike where they ship one.

    Attributes:
        label_space: what the class numbers mean.
        fingerprint: equal for equal content; a resumed training checks it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the prepared copy at `path`; `load` of a dataset module finds or makes it."""
        self.path = Path(path)
        self._opened: Any = None
        self._lock = threading.Lock()
        source, metadata = _open(self.path)
        self._opened = source
        self._length = len(source)
        self._sizes = np.array(metadata["sizes"], np.int32).reshape(-1, 2)
        self._has_segments = bool(metadata["segments"])
        self._masks = tuple(metadata.get("masks", ()))
        self.label_space = LabelSpace.load(self.path / "label_space.json")
        self.fingerprint = "/".join(self.path.parts[-3:])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self._length <= index < self._length:
            raise IndexError(f"{self.fingerprint} has {self._length} examples, not {index}.")
        try:
            stored = self._source()[int(index) % self._length]
        except SegjaxError:
            raise
        except Exception as error:
            raise SegjaxError(_damaged(self.path, error)) from error
        name = _text(stored["name"])
        where = f"{name} of {self.path}"
        example = {
            "image": images.read_image(stored["image"], where),
            "semantic": _read_label_png(stored["semantic"], where).astype(np.int16),
            "name": name,
        }
        if self._has_segments:
            example |= self._segments(stored, example["semantic"].shape, where)
        for mask in self._masks:
            example[mask] = _read_png(stored[mask], where)
        return example

    def _segments(self, stored: dict[str, Any], size: Size, where: str) -> dict[str, np.ndarray]:
        segments = _read_label_png(stored["segments"], where)
        if len(segments) != size[0]:  # the layers lie below one another
            segments = segments.reshape(-1, *size)
        classes = np.asarray(stored["segment_class"], np.int32)
        areas = stored.get("segment_area")
        if areas is None:  # a copy older than this field
            areas = _areas(segments, len(classes))
        return {
            "segments": segments,
            "segment_class": classes,
            "segment_is_crowd": np.asarray(stored["segment_is_crowd"], bool),
            "segment_is_thing": np.asarray(self.label_space.is_thing, bool)[classes],
            "segment_area": np.asarray(areas, np.float64),
        }

    def sizes(self) -> np.ndarray:
        """int32 [N, 2]: (height, width) of every image, without reading any."""
        return self._sizes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _source(self) -> Any:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = _open(self.path)[0]
        return self._opened


def prepare(source: Source, data_dir: str | os.PathLike[str] = "") -> Dataset:
    """Opens the prepared copy of `source`, writing it first when there is none.

    The copy appears all at once, when it is complete. A second process that wants the same copy
    waits for the first one.

    Raises:
        SegjaxError: an example that cannot be read, or a full disk.
    """
    path = _path(source, data_dir)
    if not (path / "dataset_info.json").exists():
        with _exclusive(path.parent.parent / f"{path.parent.name}.lock") as alone:
            if not (path / "dataset_info.json").exists():
                _write(source, path, clean=alone)
    return Dataset(path)


def prepare_official(
    dataset: str,
    split: str,
    data_dir: str | os.PathLike[str],
    find: Callable[[], Source],
    manual_dir: str | os.PathLike[str] = "",
    manual: str = "",
) -> Dataset:
    """`prepare(find())`; or, where the default manual directory is gone, the newest existing copy.

    The default is that of the dataset, or of `manual` where several share their files. Copies of
    data that lies elsewhere (see `custom_key`) are not taken for the official one.
    """
    if not manual_dir and not manual_directory(manual or dataset, data_dir).is_dir():
        root = directory(data_dir) / f"segjax_{dataset}"
        ready = [
            file
            for file in root.glob(f"{split}-*/{VERSION}/dataset_info.json")
            if not file.parts[-3].startswith(f"{split}-custom")
        ]
        if ready:
            newest = Dataset(max(ready, key=lambda file: file.stat().st_mtime).parent)
            print(
                f"{dataset}: the original files are gone; using {len(newest)} examples prepared in"
                f" {newest.path}.",
                file=sys.stderr,
            )
            return newest
    return prepare(find(), data_dir)


def custom_key(key: str, *options: Any) -> str:
    """Marks a key as not official if any of the options was given."""
    return f"custom-{key}" if any(options) else key


def directory(data_dir: str | os.PathLike[str] = "") -> Path:
    """Where prepared data lies: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = os.fspath(data_dir) or os.environ.get("TFDS_DATA_DIR", "") or "~/tensorflow_datasets"
    if "://" in chosen:
        raise SegjaxError(
            f"data_dir {chosen}: examples are read at random, which a bucket does not allow; copy"
            " the data to a disk or mount the bucket."
        )
    return Path(chosen).expanduser().absolute()


def manual_directory(dataset: str, data_dir: str | os.PathLike[str] = "") -> Path:
    """Where what a user downloads by hand is looked for."""
    return directory(data_dir) / "downloads" / "manual" / dataset


def key_of(*facts: Any) -> str:
    """Twelve hexadecimal digits that stand for the facts."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _path(source: Source, data_dir: str | os.PathLike[str]) -> Path:
    space = source.label_space
    key = f"{source.split}-{source.key}-{key_of(space)[:6]}"
    return directory(data_dir) / f"segjax_{source.dataset}" / key / VERSION


def _write(source: Source, path: Path, clean: bool = False) -> None:
    """Writes the copy. `clean` removes what killed processes left; only safe under a lock."""
    from segjax.data import builder  # TFDS takes half a second to import

    names = source.names()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob("*incomplete*") if clean else ():
            shutil.rmtree(leftover, ignore_errors=True)
        builder.write(source, names, path)
    except SegjaxError as error:
        raise SegjaxError(f"{error} (segjax data check lists all faults at once.)") from None
    except Exception as error:
        # Without locks (some network disks) another process may have been first.
        if (path / "dataset_info.json").exists():
            return
        if isinstance(error, OSError) or shutil.disk_usage(_existing(path)).free < 2**26:
            raise SegjaxError(
                f"{path}: the prepared copy cannot be written ({error}); free some space or choose"
                " another data_dir."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # only succeeds when nothing was written


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def examples(source: Source, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Reads all records as they are stored, in order, a few ahead of the writer; shows progress."""
    threads = min(os.cpu_count() or 1, 32)
    ahead: collections.deque[futures.Future] = collections.deque()
    with futures.ThreadPoolExecutor(threads) as pool:
        try:
            text = f"Preparing {source.dataset} {source.split}"
            for index in track(range(len(names)), len(names), text):
                while index + len(ahead) < len(names) and len(ahead) < 2 * threads:
                    later = index + len(ahead)
                    ahead.append(pool.submit(_stored, source, later, names[later]))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _stored(source: Source, index: int, name: str) -> dict[str, Any]:
    """One example as the builder writes it; the greatest value of a label PNG means unlabelled."""
    record = source.read(index)
    plain = images.is_plain(record.image)  # then the loader reads the file's own bytes fast
    image = record.image if plain else images.encode_png(images.read_image(record.image, name))
    example = {
        "name": name,
        "height": record.size[0],
        "width": record.size[1],
        "image": image,
        "semantic": _label_png(record.semantic, label_depth(source.label_space)),
    }
    if source.segments:
        count = len(record.segment_class)
        areas = record.segment_area
        if len(areas) != count:
            areas = _areas(record.segments, count)
        layers = record.segments.reshape(-1, record.segments.shape[-1])
        example["segments"] = _label_png(layers, np.uint16)
        example["segment_class"] = [int(label) for label in record.segment_class]
        example["segment_is_crowd"] = [bool(crowd) for crowd in record.segment_is_crowd]
        example["segment_area"] = [float(area) for area in areas]
    for mask in source.masks:
        example[mask] = images.encode_png(getattr(record, mask))
    return example


def _areas(segments: np.ndarray, count: int) -> np.ndarray:
    """int [count]: pixels drawn of each segment."""
    return np.bincount((segments + 1).ravel(), minlength=count + 1)[1:]


def label_depth(space: LabelSpace) -> type[np.uint8] | type[np.uint16]:
    """The pixel type that `semantic` is stored in."""
    return np.uint8 if space.classes <= 255 else np.uint16


def _label_png(labels: np.ndarray, depth: type[np.uint8] | type[np.uint16]) -> bytes:
    return images.encode_png(np.where(labels < 0, np.iinfo(depth).max, labels).astype(depth))


def _read_label_png(data: bytes, name: str) -> np.ndarray:
    """int32 [H, W], -1 where unlabelled."""
    stored = _read_png(data, name)
    labels = stored.astype(np.int32)
    labels[stored == np.iinfo(stored.dtype).max] = -1
    return labels


def _read_png(data: bytes, name: str) -> np.ndarray:
    """uint8 or uint16 [H, W], as stored."""
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise SegjaxError(f"{name}: its label map is damaged; delete this prepared copy.")
    return stored


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    """TFDS's data source over a prepared directory, undecoded, and our metadata."""
    from segjax.data import builder

    try:
        return builder.open_source(path)
    except Exception as error:
        raise SegjaxError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path}: the prepared copy is damaged ({type(error).__name__}: {error}); delete this"
        " folder and run again."
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Holds a lock file, and says so when it has to wait; gives False where there are no locks."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise SegjaxError(
            f"{path.parent}: prepared data cannot be written there ({error.strerror}); choose"
            " another data_dir."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process prepares {path.stem}; waiting for it.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
