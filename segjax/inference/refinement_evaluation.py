"""Evaluation of systems that sharpen masks: IoU and boundary accuracy, before and after.

Every image is refined once, at its own resolution, on one device; several devices and processes
share the images. What is counted is the 8-bit mask that the official programs write.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from segjax.data import images as image_files
from segjax.data.progress import meter
from segjax.errors import SegjaxError
from segjax.inference import draw, refinement
from segjax.inference.evaluation import Dataset, Metrics
from segjax.inference.refinement import Progress
from segjax.metrics import boundary
from segjax.structs import System, Variables
from segjax.training.sharding import replicated

NAMES = {"IoU": "iou", "mBA": "mba", "coarse_IoU": "coarse_iou", "coarse_mBA": "coarse_mba"}
"""Of `evaluate`'s figures, by those of `boundary.Scores`."""

Take = Callable[[str, Mapping[str, Any], np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to refine; the fields of `config.eval` of the same names.

    Attributes:
        max_memory: what a device may hold, as `refinement.memory` reads it; "" for no bound.
        small_objects: see `boundary.Scores`; by default as the official program counts.
    """

    max_memory: str = ""
    small_objects: str = "published"

    def __post_init__(self) -> None:
        refinement.memory(self.max_memory)

    @classmethod
    def of(cls, settings: Settings | Mapping[str, Any]) -> Settings:
        """From `config.eval`; fields that don't concern refinement are left out."""
        if isinstance(settings, cls):
            return settings
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: settings[name] for name in names if name in settings})


class Picture(NamedTuple):
    """An image of the dataset with its masks, for looking at.

    Attributes:
        name: the dataset's name for it.
        image: uint8 [H, W, 3].
        truth, coarse, refined: bool [H, W].
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    coarse: np.ndarray
    refined: np.ndarray


def evaluate(
    system: System,
    variables: Variables,
    dataset: Dataset,
    settings: Settings | Mapping[str, Any],
    mesh: Mesh | None = None,
    progress: str | None = None,
    pictures: int = 0,
    take: Take | None = None,
) -> Metrics:
    """How much better the refined masks are than the coarse ones.

    Args:
        system: what refines.
        variables: its variables, on the mesh or anywhere.
        dataset: whose examples have `image`, `mask` and `coarse_mask`.
        settings: `config.eval`, or `Settings`.
        mesh: devices to share the work, by default all. Several processes call this together.
        progress: text before a progress bar with the time left; None shows nothing.
        pictures: how many examples to return, spread over the dataset.
        take: is given (name, example, refined mask uint8 [H, W]) of every image of this process.

    Returns:
        In per cent `IoU` (pooled over all images) and `mBA` (mean over them), `coarse_IoU` and
        `coarse_mBA`; `images`, their number; and `without_boundary`, as `boundary.Scores` has them;
        `turns`, IoU and mBA of the masks after each turn of the system, the last being the above.
        With `pictures`, also a list of `Picture` (empty but on process 0).

    Raises:
        SegjaxError: settings that can't be, an empty dataset, one without coarse masks, or an
            unreadable example.
    """
    settings = Settings.of(settings)
    if not len(dataset):
        raise SegjaxError("the evaluation split is empty; there is nothing to evaluate on.")
    mine = list(range(jax.process_index(), len(dataset), jax.process_count()))
    spread = np.linspace(0, len(mine) - 1, min(pictures, len(mine)))
    wanted = {mine[int(place)] for place in spread} if jax.process_index() == 0 else set()
    drawn: list[Picture] = []
    scores: dict[int, boundary.Scores] = {}  # by turn
    crew = _Crew(system, variables, dataset, refinement.memory(settings.max_memory), mesh)
    shown = progress if jax.process_index() == 0 else None
    with contextlib.nullcontext() if shown is None else meter(shown) as told:
        for number, example, masks in crew.refined(mine, told):
            name, truth, coarse = str(example["name"]), example["mask"], example["coarse_mask"]
            for turn, mask in enumerate(masks):
                if turn not in scores:
                    scores[turn] = boundary.Scores(settings.small_objects)
                scores[turn].update(truth, coarse, mask)
            if take is not None:
                take(name, example, masks[-1])
            if number in wanted:
                binary = map(boundary.foreground, (truth, coarse, masks[-1]))
                drawn.append(Picture(name, example["image"], *binary))
    turns = _greatest(len(scores))
    if turns < 1 or (scores and len(scores) != turns):
        raise SegjaxError("images were refined in different numbers of turns; score them apart.")
    results = [
        _of_all_processes(scores.get(turn, boundary.Scores())).result() for turn in range(turns)
    ]
    last = results[-1]
    metrics: Metrics = {ours: last[theirs] for ours, theirs in NAMES.items()}
    metrics |= {name: last[name] for name in ("images", "without_boundary")}
    metrics["turns"] = [{"IoU": row["iou"], "mBA": row["mba"]} for row in results]
    if pictures:
        metrics["pictures"] = drawn
    return metrics


class _Crew:
    """A system on each of this process's devices."""

    def __init__(
        self,
        system: System,
        variables: Variables,
        dataset: Dataset,
        max_memory: int | None,
        mesh: Mesh | None,
    ) -> None:
        self._system, self._dataset, self._max_memory = system, dataset, max_memory
        devices = _devices(mesh)
        whole = jax.tree.map(_whole, variables)
        self._members = len(devices)
        self._free: queue.SimpleQueue[Variables] = queue.SimpleQueue()
        for device in devices:
            self._free.put(jax.device_put(whole, device))

    def refined(
        self, numbers: Sequence[int], progress: Progress | None
    ) -> Iterator[tuple[int, Mapping[str, Any], list[np.ndarray]]]:
        """The examples of these numbers in order, each with the mask uint8 [H, W] of every turn.

        Every device works on one of them, and one more is read ahead. A single device waits while
        the caller does something with what it got.
        """
        areas = self._dataset.sizes()[list(numbers)].astype(np.int64).prod(axis=1)
        done, total = np.zeros(len(numbers)), int(areas.sum())

        def told(place: int) -> Progress | None:
            def of_image(part: int, of: int) -> None:
                done[place] = areas[place] * (part / max(of, 1))
                progress(int(done.sum()), total)

            return None if progress is None else of_image

        def result(place: int, example: futures.Future[Mapping[str, Any]]) -> Any:
            return example.result(), self._masks(example.result(), told(place))

        reader = futures.ThreadPoolExecutor(1, "reading")
        workers = futures.ThreadPoolExecutor(self._members, "refining")
        read: collections.deque[futures.Future[Mapping[str, Any]]] = collections.deque()
        begun: collections.deque[futures.Future[Any]] = collections.deque()
        try:
            for place, number in enumerate(numbers):
                for other in range(place + len(begun), len(numbers))[: self._members - len(begun)]:
                    for later in range(other + len(read), len(numbers))[: 2 - len(read)]:
                        read.append(reader.submit(self._example, numbers[later]))
                    begun.append(workers.submit(result, other, read.popleft()))
                yield number, *begun.popleft().result()
        finally:
            for pool in (reader, workers):
                pool.shutdown(wait=True, cancel_futures=True)

    def _example(self, number: int) -> Mapping[str, Any]:
        example = self._dataset[number]
        for name in ("mask", "coarse_mask"):
            if name not in example:
                raise SegjaxError(
                    f"{example.get('name', number)}: it has no {name.replace('_', ' ')} to refine"
                    " or compare with; set config.data.dataset and config.data.eval_split to one"
                    " with coarse masks."
                )
        return example

    def _masks(self, example: Mapping[str, Any], progress: Progress | None) -> list[np.ndarray]:
        image, coarse, truth = example["image"], example["coarse_mask"], example["mask"]
        name = str(example["name"])
        refinement.check_sizes(image, truth, f"the mask of {name}")
        refinement.check_sizes(image, coarse, f"the coarse mask of {name}")
        variables = self._free.get()
        try:
            every = refinement.turns(
                self._system,
                variables,
                image,
                coarse,
                max_memory=self._max_memory,
                progress=progress,
            )
            return [boundary.grey(probability) for probability in every]
        finally:
            self._free.put(variables)


def _devices(mesh: Mesh | None) -> list[jax.Device]:
    """This process's devices of a mesh, or all; only one of several that are the same cores."""
    devices = jax.local_devices() if mesh is None else list(mesh.local_devices)
    return devices[:1] if devices[0].platform == "cpu" else devices


def _whole(leaf: Any) -> np.ndarray:
    """A copy on the host of an array that may be spread over the devices of all processes."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if not leaf.is_fully_replicated:
        leaf = jax.jit(lambda x: x, out_shardings=replicated(leaf.sharding.mesh))(leaf)
    return np.asarray(leaf.addressable_data(0))


def _of_all_processes(scores: boundary.Scores) -> boundary.Scores:
    """The scores of all processes' images together; their order does not matter."""
    if jax.process_count() == 1:
        return scores
    pixels, accuracies = scores.sums()  # 64 bits cross as four words of 16
    every = multihost_utils.process_allgather(np.ascontiguousarray(pixels).view(np.uint16))
    rows = _greatest(len(accuracies))
    # Two numbers that no accuracy is fill up the shorter lists.
    filled = np.pad(accuracies, ((0, rows - len(accuracies)), (0, 0)), constant_values=-1)
    found = np.asarray(multihost_utils.process_allgather(filled.view(np.uint16)))
    known = np.ascontiguousarray(found).view(np.float64).reshape(-1, 2)
    together = boundary.Scores()
    together.add(
        np.ascontiguousarray(every).view(np.int64).reshape(-1, 2, 2).sum(axis=0),
        known[~(known < 0).any(axis=1)],
    )
    return together


def _greatest(value: int) -> int:
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.array(value))))


# --------------------------------------------------------------------------------------------------
# Reports


def summary_line(metrics: Metrics) -> str:
    """The figures in one line."""
    shown = [
        f"{name} {metrics[f'coarse_{name}']:.2f} -> {metrics[name]:.2f}"
        f" ({metrics[name] - metrics[f'coarse_{name}']:+.2f})"
        for name in ("IoU", "mBA")
    ]
    return f"{'  '.join(shown)}  ({metrics['images']} images)"


def print_table(metrics: Metrics) -> None:
    """Prints the figures after each turn, and a line with those before and after all."""
    print(f"{'':>9}   {'IoU':>6}  {'mBA':>6}")
    rows = [("coarse", metrics["coarse_IoU"], metrics["coarse_mBA"])]
    rows += [(f"turn {n}", row["IoU"], row["mBA"]) for n, row in enumerate(metrics["turns"], 1)]
    for name, iou, mba in rows:
        print(f"{name:>9}   {iou:6.2f}  {mba:6.2f}")
    if metrics["without_boundary"]:
        print(f"{metrics['without_boundary']} true masks are empty or full; mBA leaves them out.")
    print(summary_line(metrics))


class ResultFolder:
    """The masks as the official eval_post.py reads them: NAME_gt.png, NAME_seg.png (coarse) and
    NAME_mask.png (refined)."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def take(self, name: str, example: Mapping[str, Any], refined: np.ndarray) -> None:
        """Writes the three files of an image."""
        stem = re.sub(r"[^\w.-]+", "_", name.rpartition("/")[2])
        kinds = {"gt": example["mask"], "seg": example["coarse_mask"], "mask": refined}
        for kind, mask in kinds.items():
            draw.write(image_files.encode_png(mask), self.folder / f"{stem}_{kind}.png")
