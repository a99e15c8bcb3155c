"""Training batches by Grain. A batch is a function of (seed, step) alone.

It does not depend on the number of worker processes, on the number of hosts, or on restarts: each
process of a run of P gets rows [p*b, (p+1)*b) of the global batch of P*b, and a resumed training
begins at any step at no cost, so the step is all the state there is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from segjax.data import set_transforms
from segjax.data.prepared import Dataset
from segjax.errors import SegjaxError

BATCHES_AHEAD = 2
"""Finished batches that wait, per worker process (or for the thread without workers)."""

ENDLESS = 2**48
"""Examples before the end; more would be too many for Grain's arithmetic in doubles."""


class TrainBatches:
    """An endless iterator of (batch, names); see `train_batches`."""

    def __init__(self, batches: grain.IterDataset) -> None:
        self._running = [iter(batches)]
        self._failure: SegjaxError | None = None
        # Also ends when the program does, or with the last reference: Grain's own way is too late.
        self.close = weakref.finalize(self, _end, self._running)
        """Ends the worker processes and threads; there are no batches after it."""

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> tuple[dict[str, np.ndarray], list[str]]:
        if self._failure is not None:
            raise self._failure
        if not self._running:
            raise StopIteration
        try:
            item = next(self._running[0])
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            item = SegjaxError(
                "a worker process of the data loader was killed (often for memory); lower"
                " config.data.workers or free memory, and run again to resume."
            )
        if isinstance(item, SegjaxError):
            self._failure = item
            self.close()
            raise item
        return item["batch"], list(item["names"])


def _end(running: list[grain.DatasetIterator]) -> None:
    running.pop().close()


def train_batches(
    dataset: Dataset,
    augment: Mapping[str, Any],
    batch: int,
    seed: int = 0,
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Augmented batches from `start_step` on, without end; every epoch has its own order.

    Args:
        dataset: anything with a length whose items are examples (and which can be pickled, if there
            are workers).
        augment: the settings of `set_transforms.train_example`.
        batch: images of the global batch; a multiple of `process_count`.
        seed: decides order and augmentation.
        start_step: number of the first batch.
        workers: worker processes; 0 works in a thread of this process, which starts at once.
        process_index: this process among those of the run.
        process_count: how many processes the run has.

    Returns:
        An iterator of (dict for this process: `image` uint8 [b, h, w, 3], `semantic` int16
        [b, h, w], `image_size` int32 [b, 2], `valid` bool [b], all True, and the segments that
        `augment` asks for, see `set_transforms.batch_shapes`; of the recipe "refine" `coarse_mask`
        and `mask` uint8 [b, h, w] in place of `semantic`; the b names). It raises SegjaxError for
        an unreadable example and for a worker that died. Close it after use.

    Raises:
        SegjaxError: an empty dataset, or a batch that the processes can't share evenly.
    """
    if not len(dataset):
        raise SegjaxError("the training split is empty; there is nothing to train on.")
    if batch < 1 or batch % process_count:
        raise SegjaxError(
            f"config.data.batch is {batch}; it must be a positive multiple of the {process_count}"
            " processes."
        )
    local = batch // process_count
    examples = (
        grain.MapDataset.source(_Guarded(dataset))
        .seed(seed % 2**32)
        .shuffle()
        .repeat(ENDLESS // len(dataset))
        .random_map(_Augment(augment))
        .batch(local, batch_fn=_collate)
        .slice(slice(start_step * process_count + process_index, None, process_count))
    )
    # Threads only read ahead; OpenCV lets go of the interpreter lock while it works.
    threads = 1 if workers else min(2, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BATCHES_AHEAD)
    batches = examples.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain asks for flags, also outside absl.app
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BATCHES_AHEAD),
            worker_init_fn=_start_worker,
        )
    return TrainBatches(batches)


class _Guarded:
    """A dataset whose unreadable examples are errors as values, so that they pass through Grain and
    between processes as they are."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any] | SegjaxError:
        try:
            return self._dataset[index]
        except SegjaxError as error:
            return error


class _Augment(grain.transforms.RandomMap):
    def __init__(self, augment: Mapping[str, Any]) -> None:
        self._augment = {name: _plain(value) for name, value in augment.items()}

    def random_map(
        self, element: dict[str, Any] | SegjaxError, rng: np.random.Generator
    ) -> dict[str, Any] | SegjaxError:
        if isinstance(element, SegjaxError):
            return element
        try:
            arrays = set_transforms.train_example(element, self._augment, rng)
        except SegjaxError as error:
            return error
        return {"arrays": arrays, "name": element["name"]}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _collate(elements: Sequence[dict[str, Any] | SegjaxError]) -> dict[str, Any] | SegjaxError:
    for element in elements:
        if isinstance(element, SegjaxError):
            return element
    arrays = [element["arrays"] for element in elements]
    batch = {name: np.stack([item[name] for item in arrays]) for name in arrays[0]}
    batch["valid"] = np.ones(len(arrays), bool)
    return {"batch": batch, "names": [element["name"] for element in elements]}


def _start_worker(index: int, count: int) -> None:
    """What a worker process does first."""
    cv2.setNumThreads(0)
    # Ctrl-C and SIGTERM go to the whole process group; the parent decides when workers end.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a parent that was killed would live on for ever."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        time.sleep(2)
    os._exit(1)
