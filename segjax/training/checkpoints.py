"""Checkpoints: Orbax behind one module, plus checksums, fallback and plain messages.

    W/checkpoints/<step>/    the latest few, written in the background
    W/best/<step>/           the one with the best evaluation
    W/damaged/<step>/        moved here when it turned out to be unreadable

Each holds three items: `variables` (params, the other collections, ema if there is one),
`optimizer` (step, rng, opt_state) and `meta`, a JSON dict. A directory gets its final name when all
of it is written, so a killed save leaves the older ones as they were. Orbax restores flipped bytes
without a word; therefore `meta` holds a checksum of every array, which restoring verifies.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import segjax
from segjax.errors import SegjaxError
from segjax.structs import Variables
from segjax.training.optimizer import paths
from segjax.training.state import TrainState

PyTree = Any
Meta = dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir.

    Attributes:
        folder: W/checkpoints.
    """

    def __init__(self, workdir: str | Path, keep: int = 2) -> None:
        self._workdir = Path(workdir).absolute()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self.folder = self._workdir / "checkpoints"

    def steps(self) -> list[int]:
        """The steps there are, oldest first."""
        return _steps(self.folder)

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState, meta: Meta) -> None:
        """Begins to write a checkpoint; returns when `state` may change.

        Raises:
            SegjaxError: the disk is full (here or in the save before).
        """
        if self._manager is None:
            self._manager = _manager(self.folder, self._keep)
        items = _items(state)
        with self._explained():
            self._manager.save(int(state.step), args=_save_args(items, meta), force=True)

    def wait(self) -> None:
        """Waits until everything is on disk. Raises like `save`."""
        if self._manager is not None:
            with self._explained():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        if self._manager is not None:
            try:
                self.wait()
            finally:
                manager, self._manager = self._manager, None
                with contextlib.suppress(Exception):  # what failed has been said
                    manager.close()

    def save_best(self, state: TrainState, meta: Meta) -> None:
        """Writes the best checkpoint, then removes the one it replaces."""
        folder = self._workdir / "best"
        with self._explained():
            checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
            checkpointer.save(
                folder / str(int(state.step)), args=_save_args(_items(state), meta), force=True
            )
            checkpointer.close()
        if jax.process_index() == 0:
            for step in _steps(folder):
                if step != int(state.step):
                    shutil.rmtree(folder / str(step), ignore_errors=True)

    def best_meta(self) -> Meta | None:
        """`meta` of the best checkpoint, or None."""
        for step in reversed(_steps(self._workdir / "best")):
            with contextlib.suppress(Exception):
                return _read_meta(self._workdir / "best" / str(step))
        return None

    def restore(self, abstract: TrainState) -> tuple[TrainState, Meta] | None:
        """The newest checkpoint that is whole, placed as `abstract` says.

        Damaged newer ones are named in a warning and moved to W/damaged. Of a checkpoint without
        an optimizer (an imported one) the fields that it doesn't have stay abstract.

        Args:
            abstract: ShapeDtypeStructs with shardings; any mesh will do.

        Returns:
            The state and its `meta`, or None when there is no checkpoint.

        Raises:
            SegjaxError: all are damaged, or the newest belongs to another model.
        """
        variables, optimizer = _items(abstract)

        def read(path: Path) -> tuple[dict[str, PyTree], Meta]:
            meta = _read_meta(path)
            if any(name.startswith("optimizer/") for name in meta["leaves"]):
                target = {"variables": variables, "optimizer": optimizer}
            else:
                target = {"variables": {k: v for k, v in variables.items() if k != "ema"}}
            return _read_items(path, target, meta), meta

        found = _newest_whole(self.folder, read, move_to=self._workdir / "damaged")
        if found is None:
            return None
        items, meta, _ = found
        return _state_from(items, abstract), meta

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for folder in (self.folder, self._workdir / "best"):
                for part in folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(part, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """A full disk in one sentence."""
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._remove_unfinished()
            kept = self.latest()
            raise SegjaxError(
                f"{self._workdir}: the disk is full, so the checkpoint was not saved"
                + (f"; that of step {kept} is whole" if kept is not None else "")
                + ". Free some space and run the same command again to resume."
            ) from error


def load_variables(workdir: str | Path, which: str = "best") -> tuple[dict[str, PyTree], int, Meta]:
    """The variables to evaluate or predict with, as NumPy arrays.

    Args:
        workdir: of a training or an import. Nothing in it is changed.
        which: "best" or "last"; when that one doesn't exist, the other is taken.

    Returns:
        ({"params": the averaged ones if the run has them, ...}, step, meta).

    Raises:
        SegjaxError: there is no checkpoint, or none that can be read.
    """
    if which not in ("best", "last"):
        raise SegjaxError(f"there is no checkpoint '{which}'; take best or last.")
    folders = [Path(workdir).absolute() / name for name in ("best", "checkpoints")]

    def read(path: Path) -> tuple[dict[str, PyTree], Meta]:
        meta = _read_meta(path)
        return _read_items(path, {"variables": None}, meta), meta

    for folder in folders if which == "best" else folders[::-1]:
        found = _newest_whole(folder, read)
        if found is not None:
            items, meta, step = found
            variables = dict(items["variables"])
            average = variables.pop("ema", None)
            return (variables if average is None else {**variables, "params": average}), step, meta
    raise SegjaxError(
        f"{workdir}: there is no checkpoint in it; train or import one with this --workdir."
    )


def save_variables(
    workdir: str | Path, variables: Variables, step: int = 0, meta: Mapping[str, Any] | None = None
) -> None:
    """Writes variables without optimizer as W/checkpoints/<step>, whole or not at all.

    Raises:
        SegjaxError: W has checkpoints already, or the disk is full.
    """
    checkpoints = Checkpoints(workdir)
    if checkpoints.steps():
        raise SegjaxError(
            f"{checkpoints.folder}: there are checkpoints already; take another workdir or remove"
            " them."
        )
    variables = jax.tree.map(np.asarray, {name: dict(tree) for name, tree in variables.items()})
    with checkpoints._explained():
        manager = _manager(checkpoints.folder, keep=1)
        manager.save(step, args=_save_args((variables, None), dict(meta or {})), force=True)
        manager.wait_until_finished()
        manager.close()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is among the causes of an error (TensorStore only says it in words)."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


# --------------------------------------------------------------------------------------------------
# What is stored


def _items(state: TrainState) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """(variables, optimizer) as plain dicts; `opt_state` as {path: leaf}."""
    average = {} if state.ema is None else {"ema": state.ema}
    variables = {"params": state.params, **state.stats, **average}
    moments = dict(zip(paths(state.opt_state), jax.tree.leaves(state.opt_state), strict=True))
    moments = {name.replace("/", "."): leaf for name, leaf in moments.items()}
    return variables, {"step": state.step, "rng": state.rng, "opt_state": moments}


def _state_from(items: dict[str, PyTree], abstract: TrainState) -> TrainState:
    """The inverse of `_items`, on the structure of `abstract`."""
    variables = dict(items["variables"])
    state = abstract.replace(
        params=variables.pop("params"), ema=variables.pop("ema", None), stats=variables
    )
    if "optimizer" not in items:
        return state
    stored = items["optimizer"]
    names = [name.replace("/", ".") for name in paths(abstract.opt_state)]
    leaves = [stored["opt_state"][name] for name in names]
    structure = jax.tree.structure(abstract.opt_state)
    return state.replace(
        step=stored["step"],
        rng=stored["rng"],
        opt_state=jax.tree.unflatten(structure, leaves),
    )


def _save_args(items: tuple[PyTree, PyTree | None], meta: Meta) -> ocp.args.Composite:
    trees = {name: tree for name, tree in zip(("variables", "optimizer"), items) if tree}
    meta = {**meta, "versions": _versions(), "leaves": _described(trees)}
    return ocp.args.Composite(
        meta=ocp.args.JsonSave(meta),
        **{name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()},
    )


def _versions() -> dict[str, str]:
    return {
        "segjax": segjax.__version__,
        "jax": jax.__version__,
        "orbax": str(getattr(ocp, "__version__", "")),
        "numpy": np.__version__,
    }


def _described(trees: dict[str, PyTree]) -> dict[str, Any]:
    """{path: [shape, dtype, checksum]} of all leaves."""
    leaves = jax.tree.leaves(trees)
    sums = checksums(leaves)
    return {
        path: [list(leaf.shape), str(leaf.dtype), value]
        for path, leaf, value in zip(paths(trees), leaves, sums, strict=True)
    }


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder, options=options)


# --------------------------------------------------------------------------------------------------
# Reading


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _newest_whole(folder: Path, read: Any, move_to: Path | None = None) -> Any:
    """(items, meta, step) of the newest step that is whole; None when there are no steps.

    Processes agree on what could be read before they compute checksums together.
    """
    steps = _steps(folder)
    damaged = []
    for step in reversed(steps):
        error = None
        try:
            items, meta = read(folder / str(step))
        except SegjaxError:
            raise
        except Exception as caught:
            error = caught
        if jax.process_count() > 1 and move_to is not None:  # one process's damage is everyone's
            whole = multihost_utils.process_allgather(np.array(error is None))
            if error is None and not whole.all():
                error = ValueError("another process could not read it")
        if error is None:
            try:
                _verify(items, meta)
            except (ValueError, KeyError) as caught:
                error = caught
        if error is None:
            if move_to is not None:
                _move([folder / str(one) for one in damaged], move_to)
            return items, meta, step
        damaged.append(step)
        first = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        warnings.warn(
            f"{folder / str(step)}: this checkpoint is damaged ({first})"
            + (f"; taking an older one{' and moving it to ' + str(move_to)}" if move_to else "")
            + ".",
            stacklevel=3,
        )
    if not steps:
        return None
    listed = ", ".join(map(str, steps))
    raise SegjaxError(
        f"{folder}: no checkpoint can be read (damaged: steps {listed}); restore the folder from a"
        " copy, or remove it to start anew."
    )


def _move(damaged: list[Path], to: Path) -> None:
    if jax.process_index() == 0:
        for path in damaged:
            to.mkdir(exist_ok=True)
            shutil.rmtree(to / path.name, ignore_errors=True)
            path.rename(to / path.name)
    if jax.process_count() > 1 and damaged:
        multihost_utils.sync_global_devices("segjax_damaged_moved")


def _read_meta(path: Path) -> Meta:
    meta = json.loads((path / "meta" / "metadata").read_text(encoding="utf-8"))
    if not isinstance(meta["leaves"], dict):
        raise ValueError("meta has no list of leaves")
    return meta


def _read_items(path: Path, targets: dict[str, PyTree | None], meta: Meta) -> dict[str, PyTree]:
    """The items of a checkpoint, not yet verified.

    Args:
        path: the folder of a step.
        targets: item -> tree of ShapeDtypeStructs with shardings, or None for NumPy arrays.
        meta: what `_read_meta` gave.
    """
    result = {}
    for item, target in targets.items():
        stored = {
            name.removeprefix(f"{item}/"): row
            for name, row in meta["leaves"].items()
            if name.startswith(f"{item}/")
        }
        if target is None:
            target = _nested({name: (tuple(row[0]), row[1]) for name, row in stored.items()})
            is_row = lambda node: isinstance(node, tuple)  # noqa: E731
            target = jax.tree.map(
                lambda row: jax.ShapeDtypeStruct(*row[:1], jnp.dtype(row[1])),
                target,
                is_leaf=is_row,
            )
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        else:
            _check_same_model(path, target, stored)
            how = ocp.checkpoint_utils.construct_restore_args(target)
        # Not by a Checkpointer: it waits for the other processes, also for one that has failed.
        handler = ocp.PyTreeCheckpointHandler()
        tree = handler.restore(
            epath.Path(path / item), args=ocp.args.PyTreeRestore(item=target, restore_args=how)
        )
        handler.close()
        result[item] = tree
    return result


def _verify(items: dict[str, PyTree], meta: Meta) -> None:
    """Raises a ValueError where an array differs from its checksum; on all processes together."""
    sums = checksums(jax.tree.leaves(items))
    for name, value in zip(paths(items), sums, strict=True):
        if meta["leaves"][name][2] != value:
            raise ValueError(f"{name} differs from its checksum")


def _check_same_model(path: Path, target: PyTree, stored: dict[str, Any]) -> None:
    wanted = dict(zip(paths(target), jax.tree.leaves(target), strict=True))
    lines = []
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        here = tuple(wanted[name].shape) if name in wanted else "absent"
        there = tuple(stored[name][0]) if name in stored else "absent"
        if here != there:
            lines.append(f"  {name}: {there} in the checkpoint, {here} in the model")
    if lines:
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise SegjaxError(
            f"{path}: this checkpoint belongs to another model (see config.model and"
            f" config.optimizer.ema); take another workdir:\n" + "\n".join(lines[:12]) + more
        )


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        node = tree
        for step in above:
            node = node.setdefault(step, {})
        node[last] = value
    return tree


# --------------------------------------------------------------------------------------------------
# Checksums


def checksums(leaves: list[Any]) -> list[int]:
    """A checksum of each array, the same wherever it lies and however it is split.

    sum_i bits_i * (2 i + 1) mod 2^32 over the elements i: exact in any order of summation, so it is
    computed where the shards are; an odd factor loses no bit, so one changed element always shows.
    """
    if not leaves:
        return []
    if all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves):
        return [_host_checksum(np.asarray(leaf)) for leaf in leaves]
    place = getattr(leaves[0], "sharding", None)
    everywhere = (
        NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None
    )
    return [int(value) for value in np.asarray(_checksums_on(everywhere)(leaves))]


@functools.cache
def _checksums_on(everywhere: NamedSharding | None) -> Callable[[list[jax.Array]], jax.Array]:
    return jax.jit(
        lambda leaves: jnp.stack([_device_checksum(x) for x in leaves]), out_shardings=everywhere
    )


def _device_checksum(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(x.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def _host_checksum(x: np.ndarray) -> int:
    x = np.ascontiguousarray(x).reshape(-1)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.view(f"uint{8 * x.dtype.itemsize}")
    factors = 2 * np.arange(x.size, dtype=np.uint32) + np.uint32(1)
    return int(np.sum(x.astype(np.uint32) * factors, dtype=np.uint32))
