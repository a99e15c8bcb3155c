"""Progress of long host work: a bar with an ETA on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

QUIET_SECONDS = 10.0
"""Between two lines where there is no terminal."""


def track(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """Yields `items`; shows on stderr how many of `total` are done and how long the rest takes."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=text, total=total, console=Console(stderr=True))
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= QUIET_SECONDS and done < total:
            shown = now
            left = (now - start) / done * (total - done)
            print(f"{text}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    if seconds >= QUIET_SECONDS:
        print(f"{text}: {total}/{total}, took {seconds:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def meter(text: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with (done, total) of work that calls back; shows as `track` does
    how far it is and how long the rest takes."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    start = shown = time.monotonic()
    first: tuple[float, int] | None = None  # before it, programs are compiled

    def told(done: int, total: int) -> None:
        nonlocal shown, first
        now = time.monotonic()
        first = first or (now, done)
        if now - shown >= QUIET_SECONDS and first[1] < done < total:
            shown = now
            left = (now - first[0]) / (done - first[1]) * (total - done)
            share = f"{100 * done / total:.0f}%, {left:.0f} s left"
            print(f"{text}: {share}", file=sys.stderr, flush=True)

    yield told
    seconds = time.monotonic() - start
    if seconds >= QUIET_SECONDS:
        print(f"{text}: took {seconds:.0f} s", file=sys.stderr, flush=True)
