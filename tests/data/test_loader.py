"""Batches are a function of seed and step, whoever makes them; failures arrive as sentences."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from segjax.data import datasets, images, loader, prepared
from segjax.data.datasets import shapescapes
from segjax.errors import SegjaxError

AUGMENT = {
    "scale": (48, 32),
    "ratio": (0.5, 2.0),
    "crop": (32, 24),
    "cat_max_ratio": 0.75,
    "flip": 0.5,
    "photometric": True,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    options = {"name": "shapescapes", "size": (32, 48), "train": 10}
    return datasets.load(options, "train", str(tmp_path_factory.mktemp("data")))


def take(dataset, count, batch=4, **options):
    batches = loader.train_batches(dataset, AUGMENT, batch, **options)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_equal(first, second):
    assert [names for _, names in first] == [names for _, names in second]
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_has_the_contracts_arrays(dataset):
    batch, names = take(dataset, 1)[0]
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((4, 32, 24, 3), "uint8"),
        "semantic": ((4, 32, 24), "int16"),
        "image_size": ((4, 2), "int32"),
        "valid": ((4,), "bool"),
    }
    assert len(names) == 4 and all(name.startswith("train/") for name in names)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_do_not_change_the_batches(dataset, workers):
    """Eight batches of four from ten examples: three epochs and their seams."""
    assert_equal(take(dataset, 8, seed=5), take(dataset, 8, seed=5, workers=workers))


def test_a_run_resumes_at_any_step(dataset):
    whole = take(dataset, 9, seed=1)
    for step in (1, 4, 8):
        assert_equal(whole[step:], take(dataset, 9 - step, seed=1, start_step=step))
    assert_equal(whole[3:6], take(dataset, 3, seed=1, start_step=3, workers=2))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batch(dataset, processes):
    whole = take(dataset, 5, seed=2, start_step=2)
    parts = [
        take(dataset, 5, seed=2, start_step=2, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    joined = []
    for step in range(5):
        names = [name for part in parts for name in part[step][1]]
        arrays = [part[step][0] for part in parts]
        joined.append(({k: np.concatenate([a[k] for a in arrays]) for k in arrays[0]}, names))
    assert_equal(whole, joined)


def test_every_epoch_shows_every_example_once_in_its_own_order(dataset):
    names = [name for _, part in take(dataset, 15, batch=2) for name in part]
    epochs = [names[start : start + 10] for start in (0, 10, 20)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_an_example_is_augmented_differently_every_time(dataset):
    shown = collections.defaultdict(set)
    for batch, names in take(dataset, 10):
        for image, name in zip(batch["image"], names):
            shown[name].add(image.tobytes())
    assert all(len(pictures) == 4 for pictures in shown.values())


def test_another_seed_gives_other_batches(dataset):
    first, second = take(dataset, 1, seed=0)[0], take(dataset, 1, seed=1)[0]
    assert first[1] != second[1] or (first[0]["image"] != second[0]["image"]).any()


def test_settings_may_be_a_config_dict(dataset):
    from ml_collections import ConfigDict

    batches = loader.train_batches(dataset, ConfigDict(AUGMENT), 4)
    batch, names = next(batches)
    batches.close()
    assert_equal([(batch, names)], take(dataset, 1))


def test_a_batch_that_processes_cannot_share_is_refused(dataset):
    with pytest.raises(SegjaxError, match=r"config\.data\.batch is 5.*multiple of the 2"):
        loader.train_batches(dataset, AUGMENT, 5, process_count=2)


def test_an_empty_dataset_is_refused():
    with pytest.raises(SegjaxError, match="empty"):
        loader.train_batches([], AUGMENT, 4)


@pytest.fixture(scope="module")
def with_a_corrupt_image(tmp_path_factory):
    """Example 6 of 10 has a header and an end, and garbage between them."""
    import dataclasses

    source = shapescapes.source("train", size=(32, 48), train=10)

    def read(index):
        record = source.read(index)
        if index == 6:
            record = record._replace(image=record.image[:60] + bytes(40) + images.PNG_END)
        return record

    path = tmp_path_factory.mktemp("corrupt")
    return prepared.prepare(dataclasses.replace(source, read=read, key="corrupt"), path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_with_its_name(with_a_corrupt_image, workers):
    batches = loader.train_batches(with_a_corrupt_image, AUGMENT, 2, workers=workers)
    try:
        with pytest.raises(SegjaxError, match=r"train/000006 of .*: ") as caught:
            for _ in range(6):
                next(batches)
        with pytest.raises(SegjaxError) as again:  # and does not go on as if nothing had been
            next(batches)
        assert again.value is caught.value
    finally:
        batches.close()


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_worker_is_an_error_and_no_hang(dataset, after):
    before = set(multiprocessing.active_children())
    batches = loader.train_batches(dataset, AUGMENT, 4, workers=2)
    try:
        for _ in range(after + 1):
            next(batches)
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        os.kill(next(iter(workers)).pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(
            SegjaxError, match=r"worker process .* was killed.*config\.data\.workers"
        ):
            for _ in range(50):
                next(batches)
        assert time.monotonic() - start < 20
    finally:
        batches.close()
    assert set(multiprocessing.active_children()) <= before


def test_closing_ends_the_workers_and_the_batches(dataset):
    before = set(multiprocessing.active_children())
    batches = loader.train_batches(dataset, AUGMENT, 4, workers=1)
    next(batches)
    batches.close()
    batches.close()
    assert set(multiprocessing.active_children()) <= before
    assert list(batches) == []


def test_a_program_that_forgets_to_close_ends_quietly(dataset):
    script = textwrap.dedent(f"""
        from segjax.data import loader, prepared
        dataset = prepared.Dataset({str(dataset.path)!r})
        batches = loader.train_batches(dataset, {AUGMENT!r}, 4)
        next(batches)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_examples_than_a_batch_fill_it_again_and_again(tmp_path, count):
    options = {"name": "shapescapes", "size": (32, 48), "train": count}
    few = datasets.load(options, "train", str(tmp_path))
    names = [name for _, part in take(few, 3, batch=4) for name in part]
    assert len(names) == 12 and len(set(names)) == count
    assert max(names.count(name) for name in names) == 12 // count


def test_workers_ignore_what_is_sent_to_the_whole_group(dataset):
    """Ctrl-C reaches every process of a terminal; the trainer needs its workers a while longer."""
    before = set(multiprocessing.active_children())
    batches = loader.train_batches(dataset, AUGMENT, 4, workers=1)
    try:
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - before
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        for _ in range(6):
            next(batches)
        assert worker.is_alive()
    finally:
        batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_any_other_failure_of_an_example_keeps_its_type(dataset, workers):
    batches = loader.train_batches(Failing(), AUGMENT, 2, workers=workers)
    try:
        with pytest.raises(ZeroDivisionError):
            next(batches)
    finally:
        batches.close()


class Failing:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ZeroDivisionError("a fault of ours, not of the data")
