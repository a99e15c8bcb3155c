"""What a training says: console, metrics.jsonl and TensorBoard. Only process 0 writes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import tensorboardX

Record = dict[str, Any]


class Logs:
    """The voice of one run; a context manager.

    Args:
        workdir: where metrics.jsonl and tensorboard/ go.
        steps: the length of the training.
        start: the step it begins at; what the files hold of later steps is removed.
        tensorboard: whether to write for TensorBoard.
        speaks: False on all processes but one: says and writes nothing.
    """

    def __init__(
        self,
        workdir: Path,
        steps: int,
        start: int = 0,
        tensorboard: bool = True,
        speaks: bool = True,
    ) -> None:
        self._path = workdir / "metrics.jsonl"
        self._steps = steps
        self._speaks = speaks
        self._bar = self._board = None
        if not speaks:
            return
        _drop_after(self._path, start)
        if tensorboard:
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start + 1 if start else None
            )
        if sys.stdout.isatty():
            columns = rich.progress
            self._bar = columns.Progress(
                columns.TextColumn("{task.description}"),
                columns.BarColumn(bar_width=16),
                columns.MofNCompleteColumn(),
                columns.TextColumn("{task.fields[note]}"),
                columns.TextColumn("left"),
                columns.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("training", total=steps, completed=start, note="")
            self._bar.start()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """One line for the reader."""
        if not self._speaks:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the bar away, so that something else can show one."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """A line about the steps since the last one."""
        note = (
            f"loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}"
            f"  {values['images_per_second']:.1f} images/s"
            f"  waits for data {100 * values['data_wait']:.0f}%"
        )
        if values.get("overflow"):
            note += f"  {values['overflow']:.1f} segments a step had no room (augment.max_segments)"
        if self._bar is not None:
            short = f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s"
            self._bar.update(self._task, completed=step, note=short)
        else:
            self.say(f"step {step}/{self._steps}  {note}  left {_duration(seconds_left)}")
        self._write({"step": step, "kind": "train", **values})
        self._plot(step, {f"train/{name}": value for name, value in values.items()})

    def evaluation(self, step: int, metrics: Mapping[str, Any], best: bool) -> None:
        """The result of an evaluation."""
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        shown = "  ".join(f"{name} {numbers[name]:.2f}" for name in _FIRST if name in numbers)
        self.say(f"step {step}/{self._steps}  evaluation: {shown}{'  (best so far)' * best}")
        self._write({"step": step, "kind": "eval", **metrics})
        self._plot(step, {f"eval/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        """Ends the bar and flushes the files."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write(self, record: Record) -> None:
        if self._speaks:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, default=_number) + "\n")

    def _plot(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


_FIRST = ("PQ", "AP", "mIoU", "mAcc", "aAcc", "mBA", "IoU", "coarse_mBA", "coarse_IoU")


def records(workdir: Path) -> list[Record]:
    """The lines of metrics.jsonl; a line that a crash cut off is left out."""
    path = workdir / "metrics.jsonl"
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return [record for record in found if isinstance(record, dict) and "step" in record]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=2, default=_number) + "\n", encoding="utf-8")
    part.replace(path)


def _drop_after(path: Path, step: int) -> None:
    """Removes what a run wrote after the checkpoint it now resumes from."""
    if path.exists():
        kept = [record for record in records(path.parent) if record["step"] <= step]
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        part.replace(path)


def _number(value: Any) -> Any:
    """NumPy and JAX numbers for json."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
