"""Evaluation of systems that answer with masks: panoptic quality, mask AP and mean IoU.

Every image once, at its own resolution, over all devices. Of a panoptic or a semantic result only
the counts leave the device; masks of instances leave it as bits.
"""

from __future__ import annotations

import collections
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from segjax.data import hierarchies
from segjax.data.hierarchies import Hierarchy
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import mask_runner, result_files
from segjax.inference.evaluation import Dataset, Metrics
from segjax.inference.mask_runner import MaskRunner, Results, Settings, View
from segjax.metrics import average_precision, confusion, levels
from segjax.metrics import panoptic as quality
from segjax.structs import IGNORE, Array, Panoptic, Size, System, Variables

ROWS = 32
"""Tables of true segments are filled up to a multiple of this, so that few shapes are compiled."""

Take = Callable[[str, Mapping[str, Any], Results], None]


class Picture(NamedTuple):
    """An image of the dataset with its segments, for looking at.

    Attributes:
        name: the dataset's name for it.
        image: uint8 [H, W, 3].
        truth: int32 [H, W], 0 for void, else 1 + the segment's row; and the classes of the rows.
        found: the same of the prediction.
    """

    name: str
    image: np.ndarray
    truth: tuple[np.ndarray, list[int]]
    found: tuple[np.ndarray, list[int]]


class Group(NamedTuple):
    """Images that are run together.

    Attributes:
        images: their numbers in the dataset, fewer than there are rows in a last group.
        plans: the views of each row; those of the first image again for what fills up.
        sizes: (height, width) of each row.
    """

    images: list[int]
    plans: list[list[View]]
    sizes: list[Size]


def evaluate(
    system: System,
    variables: Variables,
    dataset: Dataset,
    settings: Settings | Mapping[str, Any],
    mesh: Mesh | None = None,
    progress: str | None = None,
    pictures: int = 0,
    take: Take | None = None,
    hierarchy: Hierarchy | None = None,
) -> Metrics:
    """The figures that the tasks of `config.eval` have.

    Args:
        system: what predicts.
        variables: its variables, on the mesh or anywhere.
        dataset: images with labels, and with segments for panoptic and instance.
        settings: `config.eval`, or `mask_runner.Settings`.
        mesh: devices to share the work, by default all. Several processes call this together.
        progress: text before a progress bar with the time left; None shows nothing.
        pictures: how many examples to return, spread over the dataset.
        take: is given (name, example, results on the host) of every image of this process.
        hierarchy: the tree above the classes; None for that of the label space.

    Returns:
        `images`, their number; for "semantic" mIoU, mAcc, aAcc and `classes` as
        `confusion.summary` gives them, and where the classes have a tree of two or more levels
        what `levels.summary` gives; for "panoptic" PQ, SQ and RQ of all classes, and `panoptic`,
        which is `metrics.panoptic.summary`; for "instance" AP and `instance`, which is
        `average_precision.evaluate`. With `pictures`, also a list of `Picture`.

    Raises:
        SegjaxError: settings that can't be, another number of classes, a tree of other classes,
            segments that the dataset doesn't have, or an unreadable example.
    """
    settings = Settings.of(settings)
    space = dataset.label_space
    if not len(dataset):
        raise SegjaxError("the evaluation split is empty; there is nothing to evaluate on.")
    if space.classes != system.classes:
        raise SegjaxError(
            f"config.model.classes is {system.classes}, but {space.name} has {space.classes}"
            " classes; evaluate on the dataset that the model was trained for."
        )
    hierarchy = hierarchies.of(space) if hierarchy is None else hierarchy
    hierarchies.check_leaves(hierarchy, space)
    runner = MaskRunner(system, variables, space.is_thing, settings, mesh)
    tally = _Tally(runner, dataset, settings.tasks, hierarchy)
    groups = plan_groups(dataset.sizes(), runner)
    wanted = {int(i) for i in np.linspace(0, len(dataset) - 1, min(pictures, len(dataset)))}
    drawn: list[Picture] = []
    batches = _loaded(groups, dataset, runner)
    if progress is not None and jax.process_index() == 0:
        batches = track(batches, len(groups), progress)
    for group, examples in batches:
        shown = {row: example.shown for row, example in examples.items()}
        results = runner.results(runner.run(shown, group.plans), group.plans, group.sizes)
        raw = {row: example.raw for row, example in examples.items()}
        tally.take(group, raw, results)
        for row, example in raw.items():
            if row >= len(group.images):
                continue
            if take is not None:
                take(str(example["name"]), example, runner.row(results, row))
            if group.images[row] in wanted and results.panoptic is not None:
                drawn.append(_picture(example, runner.row(results.panoptic, row)))
    metrics = {**tally.metrics(), "images": len(dataset)}
    if pictures:
        metrics["pictures"] = drawn
    return metrics


def plan_groups(sizes: np.ndarray, runner: MaskRunner) -> list[Group]:
    """Every image in exactly one group; images of a group have views of the same padded sizes, and
    results of the same size."""
    alike: dict[Any, list[tuple[int, list[View], Size]]] = collections.defaultdict(list)
    for number, size in enumerate(map(tuple, sizes.tolist())):
        plan = runner.planned(size)
        key = (tuple(view.padded for view in plan), mask_runner.bucket(size))
        alike[key].append((number, plan, size))
    groups = []
    for key in sorted(alike):
        members = alike[key]
        for first in range(0, len(members), runner.shards):
            part = members[first : first + runner.shards]
            rows = part + [part[0]] * (runner.shards - len(part))
            groups.append(Group([m[0] for m in part], [m[1] for m in rows], [m[2] for m in rows]))
    return groups


class _Example(NamedTuple):
    shown: list[np.ndarray]
    raw: Mapping[str, Any]


def _loaded(
    groups: Sequence[Group], dataset: Dataset, runner: MaskRunner
) -> Iterator[tuple[Group, dict[int, _Example]]]:
    """This process's rows of each group; threads read one group ahead."""

    def example(group: Group, row: int) -> _Example:
        raw = dataset[group.images[row] if row < len(group.images) else group.images[0]]
        if raw["image"].shape[:2] != group.sizes[row]:
            raise SegjaxError(
                f"{raw['name']}: its image is {raw['image'].shape[:2]}, but its stored size is"
                f" {group.sizes[row]}; prepare the dataset anew."
            )
        return _Example([mask_runner.view_of(raw["image"], v) for v in group.plans[row]], raw)

    def begin(group: Group) -> dict[int, futures.Future[_Example]]:
        rows = runner.local_rows(len(group.plans))
        return {row: pool.submit(example, group, row) for row in rows}

    pool = futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1), "evaluation")
    try:
        ahead = begin(groups[0])
        for number, group in enumerate(groups):
            ready = {row: future.result() for row, future in ahead.items()}
            if number + 1 < len(groups):
                ahead = begin(groups[number + 1])
            yield group, ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Tally:
    """Counts what the tasks need, group by group."""

    def __init__(
        self, runner: MaskRunner, dataset: Dataset, tasks: Sequence[str], hierarchy: Hierarchy
    ) -> None:
        self._runner, self._space, self._tasks = runner, dataset.label_space, tasks
        self._hierarchy = hierarchy
        classes = self._space.classes
        self._pairs = np.zeros((classes, classes), np.int64)
        self._quality = quality.Counts.zeros(classes)
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._sizes: dict[str, Size] = {}

    def take(
        self, group: Group, examples: Mapping[int, Mapping[str, Any]], results: Results
    ) -> None:
        for example in examples.values():
            if set(self._tasks) != {"semantic"} and "segments" not in example:
                raise SegjaxError(
                    f"{example['name']}: this dataset has no segments, which"
                    f" config.eval.tasks={tuple(self._tasks)} asks for; take a panoptic or an"
                    " instance dataset."
                )
        real = {row: e for row, e in examples.items() if row < len(group.images)}
        count, room = len(group.plans), mask_runner.bucket(_largest(group.sizes))
        if results.semantic is not None:
            truth = {r: _within(e["semantic"], room, IGNORE) for r, e in examples.items()}
            pairs = _pairs(self._runner.split, self._space.classes)(
                results.semantic, self._runner.put(truth, count)
            )
            for row in real:
                self._pairs += self._runner.row(pairs, row)
        if results.panoptic is not None:
            self._count_segments(examples, real, results.panoptic, count, room)
        if results.instances is not None:
            for row, example in real.items():
                self._list_instances(example, self._runner.row(results.instances, row))

    def _count_segments(
        self,
        examples: Mapping[int, Mapping[str, Any]],
        real: Mapping[int, Mapping[str, Any]],
        found: Panoptic,
        count: int,
        room: Size,
    ) -> None:
        truth = {}
        for row, example in examples.items():
            segments = example["segments"]
            if segments.ndim == 3:
                raise SegjaxError(
                    f"{example['name']}: its segments overlap; panoptic quality is for datasets"
                    " whose segments do not."
                )
            truth[row] = _within(segments.astype(np.int32), room, -1)
        # Every process must compile the same program, so the table's length is agreed on.
        most = _greatest(max(len(e["segment_class"]) for e in examples.values()))
        rows = -(-max(most, 1) // ROWS) * ROWS
        queries = found.segment_class.shape[1]
        shared = _shared(self._runner.split, rows, queries)(
            self._runner.put(truth, count), found.segment_map
        )
        for row, example in real.items():
            table = example["segment_class"]
            self._quality += quality.from_image(
                self._runner.row(shared, row),
                _filled(table, rows, -1),
                _filled(example["segment_is_crowd"], rows, False),
                self._runner.row(found.segment_class, row),
                self._space.classes,
                _filled(example["segment_area"], rows, 0) if "segment_area" in example else None,
                name=str(example["name"]),
            )

    def _list_instances(self, example: Mapping[str, Any], found: Any) -> None:
        name, size = str(example["name"]), example["image"].shape[:2]
        self._sizes[name] = size
        self._truth += average_precision.annotations(
            name,
            example["segments"],
            example["segment_class"],
            example["segment_is_crowd"],
            self._space,
            example.get("segment_area"),
        )
        self._found += result_files.instances(found, self._space, name, size)

    def metrics(self) -> Metrics:
        metrics: Metrics = {}
        if "panoptic" in self._tasks:
            fields = ("iou", "matched", "false", "missed")
            summed = [_summed(getattr(self._quality, field)) for field in fields]
            found = quality.summary(
                quality.Counts(*summed), self._space.is_thing, self._space.names
            )
            metrics |= {name: found["all"][name] for name in ("PQ", "SQ", "RQ")}
            metrics["panoptic"] = found
        if "instance" in self._tasks:
            truth, found, sizes = _gathered([self._truth, self._found, self._sizes])
            content = average_precision.ground_truth(sizes, truth, self._space)
            metrics["instance"] = average_precision.evaluate(content, found)
            metrics["AP"] = metrics["instance"]["AP"]
        if "semantic" in self._tasks:
            pairs = _summed(self._pairs)
            (areas,) = levels.areas(pairs, np.arange(len(pairs))[:, None])
            metrics |= confusion.summary(areas, self._space.names)
            if len(self._hierarchy.levels) > 1:
                metrics |= levels.summary(pairs, self._hierarchy.ancestors, self._hierarchy.levels)
        return metrics


def _picture(example: Mapping[str, Any], found: Panoptic) -> Picture:
    height, width = example["image"].shape[:2]
    table = [int(label) for label in found.segment_class if label >= 0]
    truth = example["segments"].astype(np.int32) + 1
    return Picture(
        name=str(example["name"]),
        image=example["image"],
        truth=(truth, [int(label) for label in example["segment_class"]]),
        found=(np.asarray(found.segment_map)[:height, :width], table),
    )


# --------------------------------------------------------------------------------------------------
# Parts


@functools.cache
def _pairs(split: NamedSharding, classes: int) -> Callable[[Array, Array], Array]:
    return jax.jit(
        lambda labels, truth: confusion.image_pairs(labels, truth, classes), out_shardings=split
    )


@functools.cache
def _shared(split: NamedSharding, true: int, found: int) -> Callable[[Array, Array], Array]:
    def one(truth: Array, predicted: Array) -> Array:
        return quality.intersections(truth, predicted, true, found)

    return jax.jit(jax.vmap(one), out_shardings=split)


def _largest(sizes: Sequence[Size]) -> Size:
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def _within(labels: np.ndarray, room: Size, value: int) -> np.ndarray:
    rows, columns = (whole - part for whole, part in zip(room, labels.shape))
    return np.pad(labels, ((0, rows), (0, columns)), constant_values=value)


def _filled(values: np.ndarray, count: int, value: Any) -> np.ndarray:
    values = np.asarray(values)
    return np.concatenate([values, np.full(count - len(values), value, values.dtype)])


def _greatest(value: int) -> int:
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.array(value))))


def _summed(values: np.ndarray) -> np.ndarray:
    """The sum over processes, exact: 64 bits as four words of 16."""
    if jax.process_count() == 1:
        return values
    whole = np.ascontiguousarray(values).view(np.uint16)
    every = np.asarray(multihost_utils.process_allgather(whole))
    return np.stack([np.ascontiguousarray(x).view(values.dtype) for x in every]).sum(axis=0)


def _gathered(parts: list[Any]) -> list[Any]:
    """Lists and dicts of plain values of all processes, joined."""
    if jax.process_count() == 1:
        return parts
    data = np.frombuffer(json.dumps(parts).encode(), np.uint8)
    length = _greatest(len(data))
    padded = np.pad(data, (0, length - len(data)), constant_values=ord(" "))
    every = np.asarray(multihost_utils.process_allgather(padded))
    joined = [json.loads(row.tobytes().decode()) for row in every]
    return [
        functools.reduce(lambda a, b: a | b if isinstance(a, dict) else a + b, column)
        for column in zip(*joined)
    ]


# --------------------------------------------------------------------------------------------------
# Reports


def print_table(metrics: Metrics) -> None:
    """Prints the figures of each task."""
    if "panoptic" in metrics:
        for kind in ("all", "things", "stuff"):
            row = metrics["panoptic"][kind]
            print(
                f"{kind:>7}  PQ {row['PQ']:5.2f}  SQ {row['SQ']:5.2f}  RQ {row['RQ']:5.2f}"
                f"  ({row['n']} classes)"
            )
        for row in metrics["panoptic"]["classes"]:
            shown = "-" if row["PQ"] is None else f"{row['PQ']:.2f}"
            print(
                f"  {row['name']:<28} PQ {shown:>6}  matched {row['matched']}"
                f"  false {row['false']}  missed {row['missed']}"
            )
    if "instance" in metrics:
        figures = metrics["instance"]
        names = average_precision.STATISTICS
        print("  ".join(f"{name} {figures[name]:.2f}" for name in names))
    if "mIoU" in metrics:
        print(f"mIoU {metrics['mIoU']:.2f}  mAcc {metrics['mAcc']:.2f}  aAcc {metrics['aAcc']:.2f}")
        for level in metrics.get("levels", ()):
            print(f"mIoU^{level['level']} {level['mIoU']:.2f}  ({len(level['classes'])} classes)")
    print(f"({metrics['images']} images)")
