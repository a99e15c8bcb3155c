"""Ways of doing the same thing, timed against each other in one run.

A `Contest` names them, segjax's first. They take turns, so what else the machine does falls on all
of them; reported are each one's median, and the median over the rounds of its time over segjax's.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from segjax.data.progress import track
from segjax.errors import SegjaxError

OURS = "segjax"
"""The name of the side that the others are compared with."""

PAUSE = 0.02
"""Seconds before a turn, in which the other side's threads go to sleep."""

TURN = 0.1
"""Seconds that a turn lasts at least, by repetition; at most MOST times."""

MOST = 20

Report = dict[str, Any]


class Side(NamedTuple):
    """One way.

    Attributes:
        run: does it once and returns when it's done.
        temporary: peak bytes beyond inputs and outputs, None where unknown.
        before: what comes before a turn, untimed; by default one `run`.
    """

    run: Callable[[], Any]
    temporary: int | None = None
    before: Callable[[], Any] | None = None


class Goal(NamedTuple):
    """How many times the time and the temporary bytes of segjax the other side should take."""

    time: float
    temporary: float = 0.0


class Contest(NamedTuple):
    """What is measured.

    Attributes:
        sides: by name, OURS first.
        errors: by side, how far its result was from ours when it was checked.
        absent: by side, why it can't take part.
        goals: by side.
        images: per run, where images per second are what counts.
        close: called at the end.
    """

    sides: Mapping[str, Side]
    errors: Mapping[str, float] = {}
    absent: Mapping[str, str] = {}
    goals: Mapping[str, Goal] = {}
    images: int = 0
    close: Callable[[], Any] | None = None


# --------------------------------------------------------------------------------------------------
# Time


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of one run, of each side in each round. Rounds begin with another side in turn."""
    names = list(sides)
    for name in names:  # the first run may still load and compile something
        sides[name].run()
    guess = {name: _seconds(sides[name].run, 1) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            side = sides[name]
            time.sleep(PAUSE)
            (side.before or side.run)()
            guess[name] = _seconds(side.run, int(np.clip(TURN / guess[name], 1, MOST)))
            samples[name].append(guess[name])
    return samples


def _seconds(run: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return max(time.perf_counter() - start, 1e-9) / times


def measure(name: str, contest: Contest, rounds: int) -> Report:
    """One row of the report."""
    try:
        samples = alternate(contest.sides, rounds)
    finally:
        if contest.close is not None:
            contest.close()
    ours = samples[OURS]
    sides = {}
    for side, (_, temporary, _) in contest.sides.items():
        times = samples[side]
        median = statistics.median(times)
        found: Report = {
            "median_s": median,
            "fastest_s": min(times),
            "slowest_s": max(times),
            "samples_s": times,
            "temporary_bytes": temporary,
        }
        if contest.images:
            found["images_per_s"] = contest.images / median
        if side != OURS:
            found["ratio"] = statistics.median(theirs / our for theirs, our in zip(times, ours))
            least = contest.sides[OURS].temporary
            known = temporary is not None and least is not None
            found["temporary_ratio"] = temporary / max(least, 1) if known else None
            found["error"] = contest.errors.get(side)
        if goal := contest.goals.get(side):
            enough = (found["temporary_ratio"] or 0.0) >= goal.temporary
            found["goal"] = goal._asdict()
            found["reached"] = bool(found["ratio"] >= goal.time and enough)
        sides[side] = found
    absent = dict(contest.absent)
    return {"name": name, "sides": sides, "absent": absent, "load": os.getloadavg()[0]}


def measure_all(contests: Iterable[tuple[str, Callable[[], Contest]]], rounds: int) -> list[Report]:
    """All rows. A contest is made (and its results checked) when its turn comes; one that can't be
    held has no sides, and `absent` says why."""
    contests, rows = list(contests), []
    for name, make in track(contests, len(contests), "bench"):
        try:
            rows.append(measure(name, make(), rounds))
        except SegjaxError as error:  # hours of other rows are not lost for it
            absent = {"all sides": str(error)}
            rows.append({"name": name, "sides": {}, "absent": absent, "load": os.getloadavg()[0]})
    return rows


# --------------------------------------------------------------------------------------------------
# Equality


def error_of(ours: Any, theirs: Any) -> float:
    """The largest difference over the largest magnitude; of integers the share that differs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return np.inf
    if np.issubdtype(theirs.dtype, np.integer):
        return float((ours != theirs).mean())
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    return float(error) if np.isfinite(error) else np.inf


def agree(what: str, ours: Any, theirs: Any, tolerance: float) -> float:
    """The error of `error_of`.

    Raises:
        SegjaxError: it passes the tolerance; there is nothing to compare then.
    """
    error = error_of(ours, theirs)
    if error <= tolerance:
        return error
    raise SegjaxError(
        f"{what}: the two sides disagree (error {error:.1e}, {tolerance:.0e} is allowed), so their"
        " times can't be compared; please report this with the output of segjax bench."
    )


# --------------------------------------------------------------------------------------------------
# JAX


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Side, Any]:
    """`function` of `args` compiled, and what it gives."""
    program = jax.jit(function).lower(*args).compile()

    def run() -> Any:
        return jax.block_until_ready(program(*args))

    return Side(run, temporary_bytes(program)), run()


def temporary_bytes(program: jax.stages.Compiled) -> int | None:
    """What a compiled program needs beside its inputs and outputs, on each device."""
    memory = program.memory_analysis()  # None where a backend doesn't tell
    return None if memory is None else int(memory.temp_size_in_bytes)


# --------------------------------------------------------------------------------------------------
# The report

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "grain", "torch")


def machine() -> Report:
    """Where this runs, as far as it bears on speed."""
    device = jax.devices()[0]
    versions = {}
    for name in (*PACKAGES, "scikit-image"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": device.device_kind,
        "backend": device.platform,
        "processor": _processor(),
        "threads": cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def cores() -> int:
    """The cores this process may use: the threads that XLA takes, and that PyTorch is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


SHORT = 60
"""Reasons of fewer letters stand in the table."""


def publish(
    benchmark: str, settings: Mapping[str, Any], rows: Sequence[Report], out: str = ""
) -> Report:
    """Prints the table, and writes the report to the file `out` as JSON."""
    facts = machine()
    report = {"benchmark": benchmark, "machine": facts, "settings": dict(settings), "rows": rows}
    Console(width=None if os.isatty(1) else 110).print(_table(rows))
    for row in rows:
        for side, reason in row["absent"].items():
            if len(reason) >= SHORT:
                print(f"{row['name']}, {side}: {reason}")
    print(
        f"{facts['backend']} ({facts['device']}, {facts['processor']}), {facts['threads']} threads,"
        f" load {facts['load']:.1f}; jax {facts['versions']['jax']},"
        f" torch {facts['versions']['torch']}. Times are medians; a ratio tells how many times"
        " segjax's time or bytes the other takes."
    )
    if out:
        try:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            Path(out).write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise SegjaxError(f"{out}: it cannot be written ({error.strerror}).") from None
    return report


def _table(rows: Sequence[Report]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for title in ("time", "ratio", "temporary", "ratio", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    for row in rows:
        table.add_row(f"[bold]{row['name']}[/bold]")
        for side, found in row["sides"].items():
            table.add_row(
                f"  {side}",
                _time(found),
                _times(found.get("ratio")),
                _bytes(found["temporary_bytes"]),
                _times(found.get("temporary_ratio")),
                "" if found.get("error") is None else f"{found['error']:.0e}",
                _goal(found),
            )
        for side, reason in row["absent"].items():
            short = f" ({reason})" if len(reason) < SHORT else ", see below"
            table.add_row(f"  {side}: not available{short}")
    return table


def _time(found: Report) -> str:
    if "images_per_s" in found:
        return f"{found['images_per_s']:.1f} images/s"
    return f"{1000 * found['median_s']:.4g} ms"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f} MiB"


def _goal(found: Report) -> str:
    if "goal" not in found:
        return ""
    goal = found["goal"]
    memory = f", {goal['temporary']:.3g}x less" if goal["temporary"] else ""
    return f"{goal['time']:.3g}x{memory}: {'reached' if found['reached'] else 'MISSED'}"
