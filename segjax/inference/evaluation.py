"""Evaluation of a system on a dataset: every image once, at its own resolution, over all devices.

Which images go together is planned from the stored sizes, the same on every process; a process
decodes only its own. Scores stay on the device that made them, and of each image only twelve
integers per class are kept, there too, until the end.
"""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from segjax.data.labels import LabelSpace
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import windows
from segjax.inference.runner import Plan, Runner, Scores, Windows, windows_of
from segjax.inference.windows import Settings
from segjax.metrics import confusion
from segjax.structs import IGNORE, Array, Size, System, Variables

Metrics = dict[str, Any]


class Dataset(Protocol):
    """What evaluation needs of `segjax.data.prepared.Dataset`."""

    label_space: LabelSpace

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def sizes(self) -> np.ndarray: ...


class Group(NamedTuple):
    """Images that are run together.

    Attributes:
        images: their numbers in the dataset, fewer than `count` in a last group.
        plans: of each of these.
        size: (height, width) that holds all of them.
        count: rows on the devices.
    """

    images: list[int]
    plans: list[Plan]
    size: Size
    count: int


class Picture(NamedTuple):
    """An image of the dataset with what was predicted, for looking at.

    Attributes:
        name: the dataset's name for it.
        image: uint8 [H, W, 3].
        truth: int16 [H, W], IGNORE where unlabelled.
        labels: int16 [H, W].
        regions: int32 [H, W] region numbers, or None.
        centres: float32 [N, 2], (y, x) of the regions' tokens, or None.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    regions: np.ndarray | None
    centres: np.ndarray | None


def evaluate(
    system: System,
    variables: Variables,
    dataset: Dataset,
    settings: Settings | Mapping[str, Any],
    mesh: Mesh | None = None,
    progress: str | None = None,
    pictures: int = 0,
) -> Metrics:
    """Mean IoU and accuracies of a system, as mmsegmentation measures them.

    Args:
        system: what predicts.
        variables: its variables, on the mesh or anywhere.
        dataset: images with labels; see `Dataset`.
        settings: `config.eval`, or `Settings`.
        mesh: devices to share the work, by default all. Several processes call this together.
        progress: text before a progress bar with the time left; None shows nothing.
        pictures: how many examples to return, spread over the dataset.

    Returns:
        mIoU, mAcc, aAcc and `classes` as `confusion.summary` gives them, and `images`, their
        number. With `pictures`, also `pictures`: a list of `Picture` (empty but on process 0).

    Raises:
        SegjaxError: settings that can't be, another number of classes, or an unreadable example.
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
    runner = Runner(system, variables, settings, mesh, regions=pictures > 0)
    groups = plan_groups(dataset.sizes(), runner)
    wanted = _spread(groups, runner, pictures)
    drawn: list[Picture] = []
    total = runner.zero_areas()
    last: Array | None = None
    batches = _loaded(groups, dataset, runner)
    if progress is not None and jax.process_index() == 0:
        batches = track(batches, len(groups), progress)
    for group, examples in batches:
        rows = {row: example.windows for row, example in examples.items()}
        scores = runner.run(rows, group.plans[0], group.count)
        # The rows that fill up a last group repeat an image, without labels.
        plans = dict(enumerate(group.plans[i % len(group.plans)] for i in range(group.count)))
        inputs = runner.assembly_inputs(plans, group.size, group.count)
        semantic = runner.put({row: e.semantic for row, e in examples.items()}, group.count)
        if last is not None:
            jax.block_until_ready(last)  # no more than two groups are on the devices
        total, labels = runner.count_areas(total, scores, inputs, group.plans[0], semantic)
        last = labels
        for row, example in examples.items():
            if row < len(group.images) and group.images[row] in wanted:
                drawn.append(_picture(runner, group, row, example, labels, scores))
    areas = confusion.to_host(runner.fetch(total))
    metrics = confusion.summary(areas, space.names)
    metrics["images"] = len(dataset)
    if pictures:
        metrics["pictures"] = drawn
    return metrics


def plan_groups(sizes: np.ndarray, runner: Runner) -> list[Group]:
    """Every image in exactly one group; images of a group have windows of the same shapes.

    Args:
        sizes: int [N, 2], (height, width) of each image.
        runner: says how many go together.
    """
    alike: dict[Any, list[tuple[Size, int, Plan]]] = collections.defaultdict(list)
    for number, size in enumerate(sizes.tolist()):
        plan = windows.plan(tuple(size), runner.settings)
        key = tuple((copy.window, copy.grid) for copy in plan)
        alike[key].append((windows.output_size(tuple(size)), number, plan))
    groups = []
    for key in sorted(alike):
        members = sorted(alike[key], key=lambda member: member[:2])
        while members:
            count = runner.group_size(members[0][2], len(members))
            part, members = members[:count], members[count:]
            size = tuple(max(member[0][axis] for member in part) for axis in (0, 1))
            groups.append(Group([m[1] for m in part], [m[2] for m in part], size, count))
    return groups


class _Example(NamedTuple):
    windows: Windows
    semantic: np.ndarray
    raw: Mapping[str, Any]


def _loaded(
    groups: Sequence[Group], dataset: Dataset, runner: Runner
) -> Iterator[tuple[Group, dict[int, _Example]]]:
    """This process's rows of each group; threads read one group ahead."""
    pool = futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1), "evaluation")

    def begin(group: Group) -> dict[int, futures.Future[_Example]]:
        return {
            row: pool.submit(_example, group, row, dataset)
            for row in runner.local_rows(group.count)
        }

    try:
        ahead = begin(groups[0])
        for number, group in enumerate(groups):
            ready = {row: future.result() for row, future in ahead.items()}
            if number + 1 < len(groups):
                ahead = begin(groups[number + 1])
            yield group, ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _example(group: Group, row: int, dataset: Dataset) -> _Example:
    semantic = np.full(group.size, IGNORE, np.int16)
    if row >= len(group.images):  # filling
        plan = group.plans[row % len(group.plans)]
        blank = np.zeros((plan[0].rows.original, plan[0].columns.original, 3), np.uint8)
        return _Example(windows_of(blank, plan), semantic, {})
    number = group.images[row]
    example, plan = dataset[number], group.plans[row]
    image, labels = example["image"], example["semantic"]
    planned = (plan[0].rows.original, plan[0].columns.original)
    if image.shape[:2] != planned or labels.shape != planned:
        raise SegjaxError(
            f"{example.get('name', number)}: its image is {image.shape[:2]} and its labels are"
            f" {labels.shape}, but its stored size is {planned}; prepare the dataset anew."
        )
    semantic[: labels.shape[0], : labels.shape[1]] = labels
    return _Example(windows_of(image, plan), semantic, example)


def _spread(groups: Sequence[Group], runner: Runner, count: int) -> set[int]:
    """`count` images of those that process 0 reads, spread over the dataset; none elsewhere."""
    if not count or jax.process_index() != 0:
        return set()
    here = sorted(
        group.images[row]
        for group in groups
        for row in runner.local_rows(group.count)
        if row < len(group.images)
    )
    return {here[int(i)] for i in np.linspace(0, len(here) - 1, min(count, len(here)))}


def _picture(
    runner: Runner, group: Group, row: int, example: _Example, labels: Array, scores: Scores
) -> Picture:
    raw = example.raw
    height, width = raw["image"].shape[:2]
    return Picture(
        name=str(raw.get("name", group.images[row])),
        image=raw["image"],
        truth=raw["semantic"],
        labels=runner.row(labels, row)[:height, :width],
        regions=runner.region_map(scores, group.plans[row], row, group.count),
        centres=runner.token_centres(group.plans[row]),
    )


# --------------------------------------------------------------------------------------------------
# Reports


def table(metrics: Metrics) -> Any:
    """The figures per class, a `rich` table."""
    from rich.markup import escape
    from rich.table import Table

    rows = Table(title=f"{metrics['images']} images")
    rows.add_column("", justify="right", style="dim")
    rows.add_column("class")
    for name in ("IoU", "Acc", "labelled pixels"):
        rows.add_column(name, justify="right")
    for number, row in enumerate(metrics["classes"]):
        shown = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("IoU", "Acc")]
        rows.add_row(str(number), escape(row["name"]), *shown, f"{row['labelled']:,}")
    rows.add_section()
    labelled = sum(row["labelled"] for row in metrics["classes"])
    rows.add_row("", "mean", f"{metrics['mIoU']:.2f}", f"{metrics['mAcc']:.2f}", f"{labelled:,}")
    return rows


def print_table(metrics: Metrics) -> None:
    """Prints the figures per class and a line with the means."""
    from rich.console import Console

    Console().print(table(metrics))
    print(summary_line(metrics))


def summary_line(metrics: Metrics) -> str:
    """The figures in one line."""
    return (
        f"mIoU {metrics['mIoU']:.2f}  mAcc {metrics['mAcc']:.2f}  aAcc {metrics['aAcc']:.2f}"
        f"  ({metrics['images']} images)"
    )


def write_metrics(metrics: Metrics, path: str | os.PathLike[str]) -> None:
    """Writes the figures as JSON, whole or not at all; NaN becomes null. Pictures are left out."""
    path = Path(path)

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    kept = {name: value for name, value in metrics.items() if name != "pictures"}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(plain(kept), indent=2) + "\n", encoding="utf-8")
    part.replace(path)
