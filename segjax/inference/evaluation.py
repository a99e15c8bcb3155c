"""Evaluation of a system on a dataset: every image once, at its own resolution, over all devices.

Which images go together is planned from the stored sizes, the same on every process; a process
decodes only its own. Scores stay on the device that made them, and of each image only twelve
integers per class are kept, there too, until the end. Where the classes have a tree, a confusion
matrix is kept besides, from which every level is scored. `Details` show where a system fails: the
confusion matrix, the score of every image, and the worst and the best of them.
"""

from __future__ import annotations

import bisect
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

from segjax.data import hierarchies
from segjax.data.hierarchies import Hierarchy
from segjax.data.labels import LabelSpace
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import windows
from segjax.inference.runner import Plan, Runner, Windows, windows_of
from segjax.inference.windows import Settings
from segjax.metrics import confusion, levels
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


class Judged(NamedTuple):
    """A picture with its scores.

    Attributes:
        picture: without regions.
        iou: mean over the classes that occur in its truth, 0..1.
        accuracy: share of its labelled pixels that are predicted rightly, 0..1.
    """

    picture: Picture
    iou: float
    accuracy: float


class Details(NamedTuple):
    """Where a system fails.

    Attributes:
        pairs: int64 [K, K], labelled pixels by class, rows truth, columns prediction.
        iou: float64 [N], of every image as `Judged` has it, in the dataset's order; NaN for an
            image without labels.
        accuracy: float64 [N], likewise.
        worst: images of the lowest IoU, the lowest first.
        best: images of the highest, the highest first; none of them is among the worst.
        seen: images with labels that worst and best are taken from: all of them on one process,
            those that process 0 read on several. There are none but on process 0.
    """

    pairs: np.ndarray
    iou: np.ndarray
    accuracy: np.ndarray
    worst: list[Judged]
    best: list[Judged]
    seen: int


def evaluate(
    system: System,
    variables: Variables,
    dataset: Dataset,
    settings: Settings | Mapping[str, Any],
    mesh: Mesh | None = None,
    progress: str | None = None,
    pictures: int = 0,
    details: bool = False,
    extremes: int = 6,
    hierarchy: Hierarchy | None = None,
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
        details: whether to return `Details` too; pixels are then counted a second time.
        extremes: how many of the worst and of the best images these hold.
        hierarchy: the tree above the classes; None for that of the label space. With one, pixels
            are counted a second time too.

    Returns:
        mIoU, mAcc, aAcc and `classes` as `confusion.summary` gives them, and `images`, their
        number. Where the classes have a tree of two or more levels, also `mIoU^1` (of the leaves),
        `mIoU^2`, ... and `levels`, see `levels.summary`. With `pictures`, also `pictures`: a list
        of `Picture` (empty but on process 0). With `details`, also `details`.

    Raises:
        SegjaxError: settings that can't be, another number of classes, a tree of other classes, or
            an unreadable example.
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
    has_tree = len(hierarchy.levels) > 1
    runner = Runner(system, variables, settings, mesh, regions=pictures > 0)
    groups = plan_groups(dataset.sizes(), runner)
    wanted = _spread(groups, runner, pictures)
    drawn: list[Picture] = []
    judge = _Judge(runner, len(dataset), extremes) if details else None
    total = runner.zero_areas()
    pairs = runner.zero_pairs() if details or has_tree else None
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
                drawn.append(
                    _picture(runner, group, row, example, labels)._replace(
                        regions=runner.region_map(scores, group.plans[row], row, group.count),
                        centres=runner.token_centres(group.plans[row]),
                    )
                )
        if pairs is not None:
            pairs, of_images = runner.count_pairs(pairs, labels, semantic)
            if judge is not None:
                judge.take(group, examples, labels, of_images)
    areas = confusion.to_host(runner.fetch(total))
    metrics = confusion.summary(areas, space.names)
    metrics["images"] = len(dataset)
    if pictures:
        metrics["pictures"] = drawn
    if pairs is None:
        return metrics
    matrix = confusion.to_host(runner.fetch(pairs))
    if has_tree:
        metrics |= levels.summary(matrix, hierarchy.ancestors, hierarchy.levels)
    if judge is not None:
        metrics["details"] = judge.details(matrix)
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


def _picture(runner: Runner, group: Group, row: int, example: _Example, labels: Array) -> Picture:
    raw = example.raw
    height, width = raw["image"].shape[:2]
    return Picture(
        name=str(raw.get("name", group.images[row])),
        image=raw["image"],
        truth=raw["semantic"],
        labels=runner.row(labels, row)[:height, :width],
        regions=None,
        centres=None,
    )


class _Judge:
    """Gathers `Details` group by group; holds no more pictures than it may return.

    A group is looked at when the next is on its way, so that the devices do not wait.
    """

    def __init__(self, runner: Runner, images: int, extremes: int) -> None:
        self._runner, self._keep = runner, extremes
        self._iou, self._accuracy = np.full((2, images), np.nan)
        self._worst: list[tuple[tuple[float, int], Judged]] = []
        self._best: list[tuple[tuple[float, int], Judged]] = []
        self._seen = 0
        self._before: tuple[Group, dict[int, _Example], Array, Array] | None = None

    def take(
        self, group: Group, examples: dict[int, _Example], labels: Array, areas: Array
    ) -> None:
        """Remembers a group with the areas of its images, and looks at the one before."""
        before, self._before = self._before, (group, examples, labels, areas)
        if before is not None:
            self._look(*before)

    def details(self, pairs: np.ndarray) -> Details:
        """What was gathered, with the confusion matrix of all; takes no more."""
        if self._before is not None:
            self._look(*self._before)
            self._before = None
        # With few images, the same would be among the worst and among the best.
        worst, best = self._worst[: -(-self._seen // 2)], self._best[: self._seen // 2]
        return Details(
            pairs=pairs,
            iou=self._iou,
            accuracy=self._accuracy,
            worst=[judged for _, judged in worst],
            best=[judged for _, judged in best],
            seen=self._seen,
        )

    def _look(
        self, group: Group, examples: dict[int, _Example], labels: Array, areas: Array
    ) -> None:
        of_images = self._runner.fetch(areas)[: len(group.images)]
        self._iou[group.images] = confusion.present_iou(of_images)
        self._accuracy[group.images] = [confusion.pixel_accuracy(area) for area in of_images]
        for row, number in enumerate(group.images):
            if jax.process_index() != 0 or row not in examples or np.isnan(self._iou[number]):
                continue
            self._seen += 1
            iou = float(self._iou[number])
            wanted = [
                (kept, key)
                for kept, key in ((self._worst, (iou, number)), (self._best, (-iou, -number)))
                if len(kept) < self._keep or (kept and key < kept[-1][0])
            ]
            if not wanted:
                continue
            picture = _picture(self._runner, group, row, examples[row], labels)
            judged = Judged(picture, iou, float(self._accuracy[number]))
            for kept, key in wanted:
                bisect.insort(kept, (key, judged), key=lambda entry: entry[0])
                del kept[self._keep :]


# --------------------------------------------------------------------------------------------------
# Reports


def table(metrics: Metrics, title: str) -> Any:
    """The figures per class, a `rich` table."""
    from rich.markup import escape
    from rich.table import Table

    rows = Table(title=title)
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
    """Prints the figures per class, those of the levels above, and a line with the means."""
    from rich.console import Console

    console = Console()
    console.print(table(metrics, f"{metrics['images']} images"))
    for level in metrics.get("levels", ()):
        console.print(table(level, f"level {level['level']}"))
    print(summary_line(metrics))


def summary_line(metrics: Metrics) -> str:
    """The figures in one line."""
    above = [f"mIoU^{level['level']}" for level in metrics.get("levels", ())]
    shown = [f"{name} {metrics[name]:.2f}" for name in ("mIoU", *above, "mAcc", "aAcc")]
    return f"{'  '.join(shown)}  ({metrics['images']} images)"


def write_metrics(metrics: Metrics, path: str | os.PathLike[str]) -> None:
    """Writes the figures as JSON, whole or not at all; NaN becomes null.

    Pictures and details are left out.
    """
    path = Path(path)

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    left_out = ("pictures", "details")
    kept = {name: value for name, value in metrics.items() if name not in left_out}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(plain(kept), indent=2) + "\n", encoding="utf-8")
    part.replace(path)
