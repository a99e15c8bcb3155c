"""The training loop: from a config and a workdir to a trained system.

A workdir belongs to one config. Run again on it, training resumes at the newest checkpoint and
gives, bit for bit, what an uninterrupted run gives (on the same devices). These fields may change
in between, as they do not change what is learned: log, checkpoint, eval, mesh, accumulate,
data.workers, data.data_dir and data.eval_split; and `steps`, where the schedule is constant (other
schedules stretch with it, so a longer training is another one).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax import config as configs
from segjax import importers, runtime, systems
from segjax.config import ConfigDict
from segjax.data import datasets, loader, set_transforms
from segjax.data.hierarchies import Hierarchy
from segjax.data.prepared import Dataset
from segjax.errors import SegjaxError
from segjax.inference import measure
from segjax.inference.windows import Settings
from segjax.structs import System
from segjax.training import checkpoints as saving
from segjax.training import optimizer as optimizers
from segjax.training import schedules, sharding, state, step
from segjax.training.checkpoints import Checkpoints
from segjax.training.logs import Logs, records, write_json
from segjax.training.signals import Interrupted, Signals
from segjax.training.state import TrainState
from segjax.training.step import Totals

Metrics = dict[str, Any]

PARTS = ("backbone", "model")
"""What of a pretrained file a training can begin with."""

FREE = (
    "log.",
    "checkpoint.",
    "eval.",
    "mesh.",
    "accumulate",
    "data.workers",
    "data.data_dir",
    "data.eval_split",
)
"""Fields that may change between a run and its resumption."""


def train(
    config: ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> Metrics:
    """Trains, or resumes, and evaluates.

    Args:
        config: a complete config, see `segjax.config.load`.
        workdir: a folder for everything that comes of it; made if need be.
        devices: what to train on; all devices if left out.

    Returns:
        The metrics of the last evaluation, among them `config.eval.metric`, and "step".

    Raises:
        SegjaxError: anything the user can mend.
        Interrupted: the process was asked to end; the state is saved.
    """
    runtime.setup()
    if "://" in str(workdir):
        raise SegjaxError(
            f"{workdir}: a workdir is a path of the file system; mount the bucket (gcsfuse, or a"
            " shared disk) and name the mounted folder."
        )
    workdir = Path(workdir).absolute()
    try:
        with Signals() as signals:
            with signals.at_once(_abandon):
                run = _prepare(config, workdir, devices)
            try:
                return _run(run, signals)
            finally:
                run.checkpoints.close()
    except OSError as error:
        if not saving.is_disk_full(error):
            raise
        raise SegjaxError(
            f"{workdir}: the disk is full ({error.filename or error}); free some space and run the"
            " same command again to resume."
        ) from error


@dataclasses.dataclass
class _Run:
    """What stays the same during a training, and the state it begins with."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh
    system: System
    train_set: Dataset
    eval_set: Dataset
    checkpoints: Checkpoints
    state: TrainState
    train_step: Callable[[TrainState, Totals, dict[str, jax.Array]], tuple[TrainState, Totals]]
    fresh_totals: Callable[[], Totals]
    story: list[str]

    @functools.cached_property
    def hierarchy(self) -> Hierarchy | None:
        """The class tree that the config names; None leaves it to the dataset."""
        return systems.hierarchy_of(self.config) if self.config.hierarchy.tree else None

    @property
    def position(self) -> dict[str, Any]:
        """With the step, all that decides which batches come next."""
        return {
            "seed": self.config.seed,
            "batch": self.config.data.batch,
            "dataset": self.train_set.fingerprint,
            "examples": len(self.train_set),
        }

    def meta(self, at: int, **more: Any) -> dict[str, Any]:
        return {
            "step": at,
            "config": self.config.to_dict(),
            "position": self.position,
            "metrics": more,
        }


# --------------------------------------------------------------------------------------------------
# Before the first step


def _prepare(config: ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None) -> _Run:
    """Everything is checked before anything is computed."""
    mesh = sharding.make_mesh(config.mesh.axes, devices)
    sharding.check_batch(mesh, config.data.batch, config.accumulate)
    schedules.check(config.schedule, config.steps)
    Settings.of(config.eval)
    system = systems.of_config(config)
    if config.init.layout and not Path(config.init.checkpoint).exists():
        raise SegjaxError(
            f"config.init.checkpoint: there is no file '{config.init.checkpoint}' to start from."
        )
    if config.init.part not in PARTS:
        raise SegjaxError(f"config.init.part: '{config.init.part}' is none of {', '.join(PARTS)}.")
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    _check_workdir(config, workdir, checkpoints)
    train_set, eval_set = _datasets(config)
    space = train_set.label_space
    if space.classes != system.classes:
        raise SegjaxError(
            f"config.model.classes is {system.classes}, but {space.name} has {space.classes}"
            f" classes; set config.model.classes={space.classes}."
        )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.save(config, workdir / "config.json")
        part = workdir / ".label_space.json"
        space.save(part)
        part.replace(workdir / "label_space.json")
        systems.keep_hierarchy(config, workdir)
    _together("segjax_workdir")

    optimizer = optimizers.make(config.optimizer, config.schedule, config.steps)
    abstract = _abstract_state(config, system, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    restored = checkpoints.restore(abstract)
    story = []
    if restored is None:
        if config.init.layout:
            begun, told = _begun_state(config, system, optimizer, shardings)
        else:
            begun = _fresh_state(config, system, optimizer, shardings)
            told = "starts from random parameters"
        story.append(told)
    else:
        begun, meta = restored
        begun = _completed(begun, config, optimizer, shardings)
        at = int(begun.step)
        story.append(
            f"resumes from step {at} of {checkpoints.folder}"
            if at
            else "starts from imported parameters"
        )
    run = _Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        system=system,
        train_set=train_set,
        eval_set=eval_set,
        checkpoints=checkpoints,
        state=begun,
        train_step=_compiled_later,
        fresh_totals=_compiled_later,
        story=story,
    )
    if restored is not None and int(begun.step):
        _check_position(run, meta)
    if int(begun.step) < config.steps:
        _compile(run, optimizer, shardings)
    return run


def _abandon(stop: int) -> None:
    """Before the first step there is nothing to save."""
    raise Interrupted(128 + stop)


def _check_workdir(config: ConfigDict, workdir: Path, checkpoints: Checkpoints) -> None:
    """A workdir with checkpoints can only be resumed by the config that made it."""
    path = workdir / "config.json"
    if not path.exists() or checkpoints.latest() is None:
        return
    lines = []
    for line in configs.diff(configs.read(path), config):
        field = line.removeprefix("config.").partition(":")[0]
        longer = field == "steps" and config.schedule.name == "constant"
        if not longer and not field.startswith(FREE):
            lines.append(f"  {line}")
    if lines:
        raise SegjaxError(
            f"{workdir}: this workdir was made by another config; take another --workdir, or undo"
            " these changes:\n" + "\n".join(lines)
        )


def _datasets(config: ConfigDict) -> tuple[Dataset, Dataset]:
    """Process 0 first: it may have to prepare the data that the others then find."""

    def both() -> tuple[Dataset, Dataset]:
        data = config.data
        splits = (data.train_split, data.eval_split)
        train_set, eval_set = (datasets.load(data.dataset, s, data.data_dir) for s in splits)
        return train_set, eval_set

    found = both() if jax.process_index() == 0 else None
    _together("segjax_data")
    return found or both()


def _together(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _check_position(run: _Run, meta: dict[str, Any]) -> None:
    then = meta.get("position") or {}
    for name, now in run.position.items():
        if name in then and then[name] != now:
            raise SegjaxError(
                f"{run.workdir}: the training data changed since this run began ({name}:"
                f" {then[name]} -> {now}); bring back the old data or take another --workdir."
            )


def _abstract_state(
    config: ConfigDict, system: System, optimizer: Any, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes, dtypes and shardings; nothing is allocated."""
    abstract = jax.eval_shape(lambda: _state_of(config, system, optimizer))
    placed = state.state_shardings(abstract, optimizer, mesh, config.mesh.rules)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        placed,
    )


def _state_of(config: ConfigDict, system: System, optimizer: Any) -> TrainState:
    variables = state.initial_variables(system, config.seed, tuple(config.augment.crop))
    return state.from_variables(variables, optimizer, config.seed, config.optimizer.ema)


def _fresh_state(
    config: ConfigDict, system: System, optimizer: Any, shardings: TrainState
) -> TrainState:
    """A first state of random parameters, made where it will lie."""
    return jax.jit(lambda: _state_of(config, system, optimizer), out_shardings=shardings)()


def _begun_state(
    config: ConfigDict, system: System, optimizer: Any, shardings: TrainState
) -> tuple[TrainState, str]:
    """The first state around what config.init names, and what is told of it."""
    init = config.init
    crop = tuple(config.augment.crop)
    variables = jax.jit(lambda: state.initial_variables(system, config.seed, crop))()
    variables = jax.tree.map(np.asarray, variables)  # each process has a whole copy
    heads = systems.heads(config.model, crop) if init.part == "model" else ()
    fresh: list[str] = []
    if init.layout == "segjax":
        stored, _, _ = saving.load_variables(init.checkpoint)
        if init.part == "model":
            variables, fresh = importers.initialise_from_run(
                stored, variables, heads, init.checkpoint
            )
        else:
            variables = importers.backbone_from_run(stored, variables, init.checkpoint)
    else:
        module = getattr(system, "module", None)
        grid = getattr(getattr(module, "backbone", None), "grid", None)
        if init.part == "model":
            variables, fresh = importers.initialise_whole(
                init.layout, init.checkpoint, variables, heads, grid
            )
        else:
            variables = importers.initialise(init.layout, init.checkpoint, variables, grid)
    told = f"starts from the {init.part} of {init.checkpoint} ({init.layout})"
    if fresh:
        told += f"; random heads: {', '.join(sorted(fresh))}"
    return _from_host(variables, config, optimizer, shardings), told


def _from_host(
    variables: Any, config: ConfigDict, optimizer: Any, shardings: TrainState
) -> TrainState:
    """A first state around variables that every process has whole."""
    placed = {"params": shardings.params, **shardings.stats}
    variables = jax.tree.map(
        lambda array, where: jax.make_array_from_callback(
            np.shape(array), where, lambda index: np.asarray(array)[index]
        ),
        dict(variables),
        placed,
    )
    return _from_arrays(variables, config, optimizer, shardings)


def _from_arrays(
    variables: Any, config: ConfigDict, optimizer: Any, shardings: TrainState
) -> TrainState:
    make = jax.jit(
        lambda v: state.from_variables(v, optimizer, config.seed, config.optimizer.ema),
        out_shardings=shardings,
    )
    return make(variables)


def _completed(
    begun: TrainState, config: ConfigDict, optimizer: Any, shardings: TrainState
) -> TrainState:
    """Gives an imported checkpoint the optimizer state that it lacks."""
    if isinstance(begun.step, jax.Array):
        return begun
    return _from_arrays({"params": begun.params, **begun.stats}, config, optimizer, shardings)


def _compiled_later(*_: Any) -> Any:
    raise AssertionError("_compile was not called")


def _compile(run: _Run, optimizer: Any, shardings: TrainState) -> None:
    """Compiles the step ahead, so that its memory is known and it can't be compiled again."""
    config = run.config
    where = sharding.batch_sharding(run.mesh)
    shapes = set_transforms.batch_shapes(config.augment) | {"valid": ((), np.bool_)}
    batch = {
        name: jax.ShapeDtypeStruct((config.data.batch, *shape), dtype, sharding=where)
        for name, (shape, dtype) in shapes.items()
    }
    everywhere = sharding.replicated(run.mesh)
    zeros = jax.jit(
        lambda: step.zero_totals(run.system, run.state, batch, config.accumulate),
        out_shardings=everywhere,
    )
    run.fresh_totals = zeros.lower().compile()
    started = time.time()
    function = jax.jit(
        step.make_step(run.system, optimizer, config.accumulate, config.optimizer.ema),
        in_shardings=(shardings, everywhere, where),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    compiled = function.lower(run.state, run.fresh_totals(), batch).compile()
    run.train_step = compiled
    run.story.append(f"step compiled in {time.time() - started:.0f} s{_costs(compiled)}")


def _costs(compiled: Any) -> str:
    """What the compiler says a step takes on each device."""
    with contextlib.suppress(Exception):  # not every backend tells
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        flops = compiled.cost_analysis()["flops"]
        return f"; per device {held / 2**20:.0f} MiB and {flops / 1e9:.1f} GFLOP a step"
    return ""


def _announce(run: _Run, logs: Logs) -> None:
    """The loud start: all that one would otherwise look up after the fact."""
    config, devices = run.config, run.mesh.devices.flatten()
    axes = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(run.state.params))
    leaves = len(jax.tree.leaves(run.state.params))
    space = run.train_set.label_space
    changed = configs.diff(configs.defaults(), config)
    lines = [
        f"segjax {config.model.system} in {run.workdir}",
        "config (what differs from the defaults; all of it is in config.json):",
        *(f"  {line}" for line in changed),
        f"devices: {len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es);"
        f" mesh {axes}",
        f"parameters: {count:,} in {leaves} arrays, {split} of them split over devices",
        f"data: {space.name}, {space.classes} classes, {len(run.train_set)} training and"
        f" {len(run.eval_set)} evaluation images; {config.steps} steps of {config.data.batch} are"
        f" {config.steps * config.data.batch / len(run.train_set):.1f} epochs",
        *run.story,
    ]
    for line in lines:
        logs.say(line)


# --------------------------------------------------------------------------------------------------
# The steps


def _run(run: _Run, signals: Signals) -> Metrics:
    config, steps = run.config, run.config.steps
    begin = int(run.state.step)
    speaks = jax.process_index() == 0
    with Logs(run.workdir, steps, begin, config.log.tensorboard, speaks) as logs:
        _announce(run, logs)
        trainer = _Trainer(run, signals, logs)
        if begin and trainer.owes_evaluation(begin):
            trainer.evaluate(begin)  # it was interrupted
        if begin < steps:
            trainer.train()
        elif trainer.metrics is None:
            trainer.evaluate(begin)
        metrics = {**trainer.metrics, "step": int(run.state.step)}
        name = config.eval.metric
        logs.say(
            f"done: {name} {metrics.get(name, float('nan')):.2f} at step {metrics['step']};"
            f" everything lies in {run.workdir}."
        )
    return metrics


class _Trainer:
    """The moving part: state, position and clocks."""

    def __init__(self, run: _Run, signals: Signals, logs: Logs) -> None:
        self.run, self.signals, self.logs = run, signals, logs
        self.config = run.config
        self.at = int(run.state.step)
        self.metrics = self._last_metrics()
        best = run.checkpoints.best_meta()
        self.best = best["metrics"].get(self.config.eval.metric, -1.0) if best else -1.0
        self.saved = self.at if self.at or run.checkpoints.latest() is not None else None
        self.checked = self.at
        self.totals: Totals = {}
        self.waited = 0.0
        self.clock = time.perf_counter()

    def train(self) -> None:
        """From the state's step to the last."""
        self.totals = self.run.fresh_totals()
        config, steps = self.config, self.config.steps
        index, count = sharding.process_rows(self.run.mesh, config.data.batch)
        batches = loader.train_batches(
            self.run.train_set,
            config.augment,
            config.data.batch,
            config.seed,
            self.at,
            config.data.workers,
            index,
            count,
        )
        under_way: collections.deque[jax.Array] = collections.deque()
        try:
            batch = self._draw(batches)
            while self.at < steps:
                with jax.transfer_guard("disallow"):  # no hidden copy to or from the device
                    self.run.state, self.totals = self.run.train_step(
                        self.run.state, self.totals, batch
                    )
                self.at += 1
                under_way.append(self.totals["steps"])
                if len(under_way) > 2:  # do not run ahead of the device: batches take memory
                    under_way.popleft().block_until_ready()
                self.logs.advance(self.at)
                self._boundary()
                if self.at < steps:
                    batch = self._draw(batches)
        finally:
            batches.close()

    def _draw(self, batches: Iterator[Any]) -> dict[str, jax.Array]:
        """The next batch on the devices; the step before it is still being computed."""
        started = time.perf_counter()
        try:
            local, _ = next(batches)
        except SegjaxError:
            self.check()
            self.save()
            self.run.checkpoints.wait()
            raise
        self.waited += time.perf_counter() - started
        return sharding.global_batch(local, self.run.mesh, self.config.data.batch)

    def _boundary(self) -> None:
        """What happens between two steps."""
        config, at = self.config, self.at
        last = at == config.steps
        evaluates = last or at % config.eval.every == 0
        saves = last or at % config.checkpoint.every == 0
        stop = self.signals.asked(at)
        if evaluates or saves or stop or at % config.log.every == 0:
            self.check()
        if saves or stop:
            self.save()
        if stop:
            self._leave(stop)
        if evaluates:
            self.evaluate(at)

    def check(self) -> None:
        """Waits for the steps so far, logs them, and notices when they went wrong."""
        if self.at == self.checked:
            return
        totals = {name: float(value) for name, value in jax.device_get(self.totals).items()}
        count = totals.pop("steps")
        if totals.pop("bad"):
            self.run.checkpoints.wait()
            kept = self.run.checkpoints.latest()
            raise SegjaxError(
                f"loss became nan or inf somewhere within steps [{self.checked + 1}, {self.at}]; "
                + (
                    f"the checkpoint of step {kept} is good"
                    if kept is not None
                    else "nothing had been saved yet"
                )
                + ". Lower config.optimizer.learning_rate, lengthen config.schedule.warmup_steps,"
                " or set config.optimizer.clip_norm."
            )
        now = time.perf_counter()
        seconds = max(now - self.clock, 1e-9)
        values = {name: value / count for name, value in totals.items()}
        values["learning_rate"] = float(
            schedules.rate(
                self.config.schedule,
                self.config.optimizer.learning_rate,
                self.config.steps,
                self.at - 1,
            )
        )
        values["images_per_second"] = count * self.config.data.batch / seconds
        values["data_wait"] = self.waited / seconds
        left = (self.config.steps - self.at) * seconds / count
        self.logs.train(self.at, values, left)
        self.totals = self.run.fresh_totals()
        self.checked, self.waited, self.clock = self.at, 0.0, time.perf_counter()

    def save(self) -> None:
        """Begins to write a checkpoint of a state that has been checked."""
        if self.saved != self.at:
            self.run.checkpoints.save(self.run.state, self.run.meta(self.at))
            self.saved = self.at

    def evaluate(self, at: int) -> None:
        """Evaluates, keeps the best, and writes metrics.json."""
        run = self.run
        with self.signals.at_once(self._leave), self.logs.paused():
            metrics = measure.evaluate(
                run.system,
                run.state.trained,
                run.eval_set,
                self.config.eval,
                mesh=run.mesh,
                progress="evaluating",
                hierarchy=run.hierarchy,
            )
        metrics = {**metrics, "step": at}
        is_best = metrics[self.config.eval.metric] > self.best
        if is_best:
            self.best = float(metrics[self.config.eval.metric])
            numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
            run.checkpoints.save_best(run.state, run.meta(at, **numbers))
        # Written last: an evaluation without this line is done again.
        self.logs.evaluation(at, metrics, is_best)
        if jax.process_index() == 0:
            write_json(run.workdir / "metrics.json", metrics)
        self.metrics = metrics
        self.clock, self.waited = time.perf_counter(), 0.0

    def owes_evaluation(self, at: int) -> bool:
        """Whether step `at` was saved, and the evaluation that belongs there never ended."""
        belongs = at == self.config.steps or at % self.config.eval.every == 0
        return _agreed(belongs and (self.metrics is None or self.metrics["step"] != at))

    def _last_metrics(self) -> Metrics | None:
        """What the last evaluation at or before this step gave."""
        done = [r for r in records(self.run.workdir) if r.get("kind") == "eval"]
        done = [record for record in done if record["step"] <= self.at]
        return {k: v for k, v in done[-1].items() if k != "kind"} if done else None

    def _leave(self, stop: int) -> None:
        """Saves, says how to go on, and ends."""
        self.save()
        self.run.checkpoints.wait()
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}.get(stop, f"signal {stop}")
        self.logs.say(
            f"{name}: step {self.at} is saved; run the same command again, or segjax train"
            f" --workdir={self.run.workdir}, to resume."
        )
        raise Interrupted(128 + stop)


def _agreed(flag: bool) -> bool:
    """Process 0's answer: only it has the files for certain."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))
