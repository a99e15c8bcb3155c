"""How a training ends when it is asked to: SIGTERM of a preempted machine, Ctrl-C of a person."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(SystemExit):
    """SIGTERM (code 143) or Ctrl-C (code 130) ended the training; its state is saved."""


class Signals:
    """SIGTERM and Ctrl-C become a flag that the loop reads between steps; the second Ctrl-C acts
    at once.

    Several processes must stop after the same step: JAX's preemption service sees to that for
    SIGTERM, and Ctrl-C is not caught.
    """

    def __init__(self) -> None:
        self._stop = 0
        self._before: dict[int, Any] = {}
        self._action: Callable[[int], None] | None = None

    def __enter__(self) -> Signals:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, at: int) -> int:
        """The signal that asks to stop after step `at`, or 0."""
        if jax.process_count() > 1:
            return signal.SIGTERM * int(multihost_utils.reached_preemption_sync_point(at))
        return self._stop

    @contextlib.contextmanager
    def at_once(self, action: Callable[[int], None]) -> Iterator[None]:
        """Inside, a signal calls `action` where it arrives; nothing there changes the state."""
        self._action = action
        try:
            if self._stop:
                action(self._stop)
            yield
        finally:
            self._action = None

    def _received(self, number: int, _: FrameType | None) -> None:
        self._stop = number
        for one, handler in self._before.items():
            signal.signal(one, handler)
        if self._action is not None:
            self._action(number)
