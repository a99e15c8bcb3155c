"""Checkpoints under damage."""

import errno
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax.errors import SegjaxError
from segjax.training import checkpoints, sharding
from segjax.training.state import TrainState

# Orbax's event loop is closed while TensorStore still reports the error of a damaged file.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step, seed=None, ema=True):
    rng = np.random.default_rng(step if seed is None else seed)
    params = {"a": {"kernel": rng.normal(size=(16, 8))}, "b": rng.normal(size=(24,))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        stats={"batch_stats": {"mean": jnp.arange(3.0)}},
        opt_state=({"mu": params}, jnp.asarray(step, jnp.int32)),
        rng=jnp.asarray([1, 2], jnp.uint32),
        ema=jax.tree.map(lambda x: x + 1, params) if ema else None,
    )


def abstract(state, devices=1):
    """Where to restore to: split over `devices` of them."""
    mesh = sharding.make_mesh((("data", -1),), jax.devices()[:devices])

    def place(leaf):
        split = leaf.ndim and leaf.shape[0] % devices == 0
        spec = PartitionSpec("data") if split else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def put(state, devices):
    return jax.tree.map(
        lambda x, to: jax.device_put(x, to.sharding), state, abstract(state, devices)
    )


def save(workdir, *steps, **options):
    saver = checkpoints.Checkpoints(workdir, keep=3)
    for step in steps:
        saver.save(make_state(step, **options), {"note": step})
    saver.close()
    return saver


def damage(workdir, step, change):
    """Changes the file that holds most of a checkpoint's arrays."""
    files = [f for f in (workdir / "checkpoints" / str(step)).rglob("d/*") if f.is_file()]
    target = max(files, key=lambda file: file.stat().st_size)
    target.write_bytes(change(target.read_bytes()))


def flipped(data):
    """One changed bit amid the arrays."""
    data = bytearray(data)
    data[len(data) // 4] ^= 0x10
    return bytes(data)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_what_is_saved_comes_back_on_any_number_of_devices(tmp_path):
    state = make_state(7)
    saver = checkpoints.Checkpoints(tmp_path)
    saver.save(put(state, 8), {"note": "hello"})
    saver.close()
    for devices in (8, 4, 1):
        target = abstract(state, devices)
        restored, meta = checkpoints.Checkpoints(tmp_path).restore(target)
        assert_same(restored, state)
        assert restored.params["b"].sharding == target.params["b"].sharding
        assert meta["note"] == "hello" and "jax" in meta["versions"]


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    """save() returns before the files are written; the step that follows reuses the memory."""
    state = put(make_state(1), 8)
    expected = jax.tree.map(np.array, state)
    saver = checkpoints.Checkpoints(tmp_path)
    saver.save(state, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    saver.close()
    restored, _ = checkpoints.Checkpoints(tmp_path).restore(abstract(make_state(1)))
    assert_same(restored, expected)


def test_the_latest_few_are_kept(tmp_path):
    assert save(tmp_path, 1, 2, 3, 4, 5).steps() == [3, 4, 5]


def test_the_best_replaces_the_one_before(tmp_path):
    saver = checkpoints.Checkpoints(tmp_path)
    assert saver.best_meta() is None
    for step in (4, 2):
        saver.save_best(make_state(step), {"metrics": {"mIoU": 1.0 * step}})
        assert [path.name for path in (tmp_path / "best").iterdir()] == [str(step)]
    assert saver.best_meta()["metrics"]["mIoU"] == 2.0


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], flipped, lambda _: b""])
def test_a_damaged_newest_falls_back_and_is_named(tmp_path, change):
    save(tmp_path, 1, 2)
    damage(tmp_path, 2, change)
    saver = checkpoints.Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"checkpoints/2: this checkpoint is damaged"):
        restored, _ = saver.restore(abstract(make_state(0)))
    assert_same(restored, make_state(1))
    assert (tmp_path / "damaged" / "2").is_dir()
    saver.save(make_state(2), {})  # its place is free again
    saver.close()
    assert saver.steps() == [1, 2]


@pytest.mark.filterwarnings("ignore:.*this checkpoint is damaged")
def test_flipped_bits_are_noticed_wherever_they_are(tmp_path):
    """Every byte of the data file in turn is either noticed or was not part of any array."""
    save(tmp_path, 1)
    state = make_state(1)
    folder = tmp_path / "checkpoints" / "1" / "variables"
    file = max((f for f in folder.rglob("d/*")), key=lambda f: f.stat().st_size)
    whole, noticed = file.read_bytes(), 0
    for at in range(0, len(whole), len(whole) // 25):
        data = bytearray(whole)
        data[at] ^= 1
        file.write_bytes(bytes(data))
        try:
            variables, _, _ = checkpoints.load_variables(tmp_path)
        except SegjaxError:
            noticed += 1
            continue
        assert_same(variables["params"], state.ema)
    assert noticed > 10


@pytest.mark.filterwarnings("ignore:.*this checkpoint is damaged")
def test_all_damaged_is_one_sentence(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        damage(tmp_path, step, lambda _: b"")
    with pytest.raises(SegjaxError, match=r"no checkpoint can be read \(damaged: steps 1, 2\)"):
        checkpoints.Checkpoints(tmp_path).restore(abstract(make_state(0)))
    assert checkpoints.Checkpoints(tmp_path).steps() == [1, 2]


@pytest.mark.filterwarnings("ignore:.*this checkpoint is damaged")
def test_damaged_json_falls_back(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text('{"leaves": ')
    restored, meta = checkpoints.Checkpoints(tmp_path).restore(abstract(make_state(0)))
    assert int(restored.step) == 1 and meta["note"] == 1


def test_another_model_is_an_error_that_lists_the_leaves(tmp_path):
    save(tmp_path, 1)
    other = make_state(1)
    other.params["b"] = jnp.zeros(25)
    with pytest.raises(SegjaxError, match=r"b: \(24,\) in the checkpoint, \(25,\) in the model"):
        checkpoints.Checkpoints(tmp_path).restore(abstract(other))
    assert not (tmp_path / "damaged").exists()


def test_full_disk_is_one_sentence_and_the_older_checkpoint_is_whole(tmp_path, monkeypatch):
    saver = checkpoints.Checkpoints(tmp_path)
    saver.save(make_state(1), {})
    saver.wait()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)  # the last thing that a save does
    monkeypatch.setattr(pathlib.Path, "rename", full)
    with pytest.raises(SegjaxError, match=r"disk is full.*that of step 1 is whole") as error:
        saver.save(make_state(2), {})
        saver.wait()
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    saver.close()
    restored, _ = checkpoints.Checkpoints(tmp_path).restore(abstract(make_state(0)))
    assert_same(restored, make_state(1))


def test_tensorstores_words_for_a_full_disk_are_understood():
    inner = ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]")
    try:
        try:
            raise inner
        except ValueError as error:
            raise RuntimeError("saving failed") from error
    except RuntimeError as outer:
        assert checkpoints.is_disk_full(outer)
    assert not checkpoints.is_disk_full(OSError(errno.EACCES, "denied"))


def test_loading_prefers_the_best_and_the_average(tmp_path):
    save(tmp_path, 1, 2)
    assert checkpoints.load_variables(tmp_path, "best")[1] == 2  # there is no best yet
    checkpoints.Checkpoints(tmp_path).save_best(make_state(1), {"metrics": {"mIoU": 3.0}})
    variables, step, meta = checkpoints.load_variables(tmp_path, "best")
    assert step == 1 and meta["metrics"]["mIoU"] == 3.0
    assert set(variables) == {"params", "batch_stats"}
    assert_same(variables["params"], make_state(1).ema)
    assert isinstance(variables["params"]["b"], np.ndarray)
    assert checkpoints.load_variables(tmp_path, "last")[1] == 2


def test_loading_without_checkpoints_says_so(tmp_path):
    with pytest.raises(SegjaxError, match="no checkpoint in it; train or import"):
        checkpoints.load_variables(tmp_path)
    assert not list(tmp_path.iterdir())


def test_imported_variables_are_written_once(tmp_path):
    variables = {"params": {"w": np.arange(4.0, dtype=np.float32)}}
    checkpoints.save_variables(tmp_path, variables, meta={"source": "official.pth"})
    loaded, step, meta = checkpoints.load_variables(tmp_path)
    assert step == 0 and meta["source"] == "official.pth"
    assert_same(loaded, variables)
    with pytest.raises(SegjaxError, match="checkpoints already"):
        checkpoints.save_variables(tmp_path, variables)


def test_checksums_do_not_depend_on_where_an_array_lies():
    state = make_state(3)
    host = jax.tree.map(np.asarray, state)
    sums = [checkpoints.checksums(jax.tree.leaves(t)) for t in (state, put(state, 8), host)]
    assert sums[0] == sums[1] == sums[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_single_change_shows_in_the_checksum(dtype):
    array = np.asarray(jnp.asarray(np.arange(6).reshape(2, 3) % 2, dtype))
    sums = {checkpoints.checksums([array])[0]}
    for index in np.ndindex(2, 3):
        changed = array.copy()
        changed[index] = 1 - changed[index].astype(int)
        sums.add(checkpoints.checksums([changed])[0])
        assert checkpoints.checksums([jnp.asarray(changed)]) == checkpoints.checksums([changed])
    assert len(sums) == 7


def test_meta_is_readable_json(tmp_path):
    save(tmp_path, 1)
    meta = json.loads((tmp_path / "checkpoints" / "1" / "meta" / "metadata").read_text())
    assert meta["leaves"]["variables/params/a/kernel"][:2] == [[16, 8], "float32"]
