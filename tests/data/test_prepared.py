"""Preparation is all or nothing, done once, and read back as it was given."""

from __future__ import annotations

import errno
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from segjax.data import builder, datasets, images, labels, prepared
from segjax.data.prepared import Record, Source
from segjax.errors import SegjaxError

SHAPES = {"name": "shapescapes", "size": (24, 32), "train": 6, "validation": 2}


def load(data_dir, split="train"):
    return datasets.load(SHAPES, split, str(data_dir))


def a_source(count=3, classes=4, read=None):
    names = tuple(f"class {i}" for i in range(classes))
    space = labels.LabelSpace("few", names, ((0, 0, 0),) * classes, (False,) * classes)

    def record(index):
        image = np.full((5, 7, 3), index, np.uint8)
        semantic = np.full((5, 7), classes - 1, np.int16)
        semantic[0] = -1
        return Record(images.encode_png(image), (5, 7), semantic)

    return Source(
        dataset="few",
        split="train",
        label_space=space,
        key="k",
        segments=False,
        names=lambda: [f"n{i}" for i in range(count)],
        read=read or record,
    )


@pytest.mark.parametrize("classes", [2, 255, 256, 300])
def test_ignore_and_the_last_class_survive_any_number_of_classes(tmp_path, classes):
    """255 classes still fit into 8 bits beside the unlabelled value; more take 16."""
    found = prepared.prepare(a_source(classes=classes), tmp_path)
    assert (found[1]["semantic"][0] == -1).all()
    assert (found[1]["semantic"][1:] == classes - 1).all()
    assert found[1]["semantic"].dtype == np.int16
    assert (found[2]["image"] == 2).all()


def test_order_is_that_of_the_source(tmp_path):
    found = prepared.prepare(a_source(count=30), tmp_path)
    assert [found[i]["name"] for i in range(30)] == [f"n{i}" for i in range(30)]
    assert found[-1]["name"] == "n29"
    with pytest.raises(IndexError):
        found[30]


def test_a_fault_leaves_nothing_that_looks_complete(tmp_path):
    def read(index):
        if index == 2:
            raise SegjaxError("two.png: broken.")
        return a_source().read(index)

    with pytest.raises(SegjaxError, match=r"two\.png"):
        prepared.prepare(a_source(read=read), tmp_path)
    assert not list(tmp_path.glob("segjax_few/*/*"))
    assert len(prepared.prepare(a_source(), tmp_path)) == 3


def test_a_full_disk_is_told_with_the_place(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builder, "write", full)
    with pytest.raises(SegjaxError, match=r"segjax_few.*No space left.*another data_dir"):
        prepared.prepare(a_source(), tmp_path)
    assert not list(tmp_path.glob("segjax_few/train*/*"))


def test_an_interruption_leaves_nothing_that_looks_complete(tmp_path):
    def read(index):
        if index == 1:
            raise KeyboardInterrupt
        return a_source().read(index)

    with pytest.raises(KeyboardInterrupt):
        prepared.prepare(a_source(read=read), tmp_path)
    assert len(prepared.prepare(a_source(), tmp_path)) == 3


def test_a_killed_preparation_is_begun_anew_and_cleaned_up(tmp_path):
    """SIGKILL cannot be tidied up after; the next run must not take the rest for the whole."""
    script = textwrap.dedent(f"""
        import os, signal
        from segjax.data import prepared
        from segjax.data.datasets import shapescapes
        source = shapescapes.source("train", size=(24, 32), train=6)
        read = source.read
        def deadly(index):
            if index == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(index)
        import dataclasses
        prepared.prepare(dataclasses.replace(source, read=deadly), {str(tmp_path)!r})
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == -9
    assert list(tmp_path.glob("segjax_shapescapes/*/*incomplete*"))
    assert len(load(tmp_path)) == 6
    assert not list(tmp_path.glob("segjax_shapescapes/*/*incomplete*"))


def _load_in_process(data_dir, barrier, results):
    barrier.wait()
    dataset = load(data_dir)
    results.put((len(dataset), dataset.fingerprint, int(dataset[5]["image"].sum())))


def test_two_processes_may_prepare_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path), barrier, results)
    running = [context.Process(target=_load_in_process, args=arguments) for _ in range(2)]
    for process in running:
        process.start()
    first, second = (results.get(timeout=120) for _ in running)
    for process in running:
        process.join()
    assert first == second and first[0] == 6


def test_without_locks_the_later_process_takes_the_copy_of_the_earlier(tmp_path, monkeypatch):
    """Some network disks know no locks: both write, one renames first."""
    source = a_source()
    path = prepared._path(source, tmp_path)

    def read(index):
        if index == 1 and not path.exists():
            prepared._write(a_source(), path)  # the other process
        return source.read(index)

    prepared._write(a_source(read=read), path)
    assert len(prepared.Dataset(path)) == 3


def test_a_damaged_copy_is_named(tmp_path):
    path = load(tmp_path).path
    next(path.glob("*.array_record*")).unlink()
    with pytest.raises(SegjaxError, match=r"damaged.*delete this folder"):
        load(tmp_path)[0]


def test_a_corrupt_stored_image_is_named(tmp_path):
    def read(index):
        record = a_source().read(index)
        if index == 1:  # a header and an end, and nothing right between
            record = record._replace(image=record.image[:60] + b"\0" * 30 + images.PNG_END)
        return record

    found = prepared.prepare(a_source(read=read), tmp_path)
    with pytest.raises(SegjaxError, match=r"n1 of .*segjax_few"):
        found[1]
    assert found[2]["name"] == "n2"


def test_datasets_are_picklable(tmp_path):
    found = load(tmp_path)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again[3]["image"], found[3]["image"])
    assert again.fingerprint == found.fingerprint


def test_data_dir_is_the_argument_else_the_environment_else_home(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert prepared.directory("") == Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert prepared.directory("") == tmp_path
    assert prepared.directory("/x/y") == Path("/x/y")
    with pytest.raises(SegjaxError, match=r"gs://bucket/x.*mount"):
        prepared.directory("gs://bucket/x")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SegjaxError, match="choose another data_dir"):
        load(tmp_path / "file/below")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"name": "shapescape"}, "no dataset 'shapescape' .did you mean 'shapescapes'"),
        ({}, "no dataset ''"),
        (
            {"name": "ade20k", "manualdir": "x"},
            r"dataset\.manualdir .* did you mean .*\.manual_dir",
        ),
        ({"name": "folder"}, r"dataset\.root is missing; folder needs it"),
    ],
)
def test_unknown_datasets_and_options_are_named(dataset, message):
    with pytest.raises(SegjaxError, match=message):
        datasets.load(dataset, "train")


def test_tensorflow_is_never_imported(tmp_path):
    """Preparing, reading, augmenting and batching, in a fresh process."""
    script = textwrap.dedent(f"""
        import sys
        from segjax.data import check, datasets, loader
        options = {SHAPES!r}
        check.check(datasets.source(options, "train"))
        dataset = datasets.load(options, "train", {str(tmp_path)!r})
        augment = dict(scale=(32, 24), ratio=(0.5, 2.0), crop=(16, 16), cat_max_ratio=0.75,
                       flip=0.5, photometric=True)
        batches = loader.train_batches(dataset, augment, 2)
        next(batches)
        batches.close()
        assert "tensorflow" not in sys.modules
        print("done")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "done", done.stderr
