"""Progress of long host work: a bar with an ETA on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
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
