"""The compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import tiny_config

from segjax import systems
from segjax.training import loop, state, step
from segjax.training import optimizer as optimizers


@pytest.fixture(scope="module")
def setting():
    config = tiny_config("--config.schedule.warmup_steps=0")
    system = systems.build(config.model)
    optimizer = optimizers.make(config.optimizer, config.schedule, config.steps)
    begun = loop._state_of(config, system, optimizer)
    rng = np.random.default_rng(0)
    semantic = rng.integers(-1, 12, (8, 32, 32)).astype(np.int16)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, 32, 32, 3), np.uint8)),
        "semantic": jnp.asarray(semantic),
        "image_size": jnp.full((8, 2), 32),
        "valid": jnp.ones(8, bool),
    }
    return system, optimizer, begun, batch


def one_step(setting, accumulate=1, ema=0.9):
    system, optimizer, begun, batch = setting
    totals = step.zero_totals(system, begun, batch, accumulate)
    return jax.jit(step.make_step(system, optimizer, accumulate, ema))(begun, totals, batch)


@pytest.fixture(scope="module")
def whole(setting):
    return one_step(setting)


def test_accumulation_is_the_large_batch(setting, whole):
    """Parameters, moments, averages and batch norm statistics: stochastic depth included."""
    sliced = one_step(setting, accumulate=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole, sliced)


def test_every_kind_of_state_moves(setting, whole):
    begun, after = setting[2], whole[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), begun, after)
    assert moved.step and not moved.rng
    for part in (moved.params["head"], moved.stats):
        assert all(jax.tree.leaves(part))
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, begun.ema, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.ema, expected)


def test_totals_count_steps_and_what_is_not_finite(setting, whole):
    system, optimizer, begun, batch = setting
    assert whole[1]["steps"] == 1 and whole[1]["bad"] == 0
    broken = begun.replace(params=jax.tree.map(lambda p: p * jnp.nan, begun.params))
    totals = step.zero_totals(system, begun, batch, 1)
    _, totals = jax.jit(step.make_step(system, optimizer, 1, 0.9))(broken, totals, batch)
    assert totals["bad"] == 1


def test_nothing_is_compiled_after_step_2(tmp_path, monkeypatch):
    """Counts XLA compilations by the batch that was drawn before each."""
    compiled, drawn = [], [0]
    listener = lambda event, *_, **__: (  # noqa: E731
        compiled.append(drawn[0]) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    jax.monitoring.register_event_duration_secs_listener(listener)
    draw = loop._Trainer._draw

    def counted(self, batches):
        drawn[0] += 1
        return draw(self, batches)

    monkeypatch.setattr(loop._Trainer, "_draw", counted)
    monkeypatch.setattr(loop.measure, "evaluate", lambda *_, **__: {"mIoU": 0.0})
    seldom = ("--config.checkpoint.every=100", "--config.eval.every=100")
    loop.train(tiny_config(*seldom, "--config.log.every=1"), tmp_path)
    assert compiled and drawn[0] == 6
    assert not [n for n in compiled if 2 < n < 6], compiled


def test_state_does_not_depend_on_the_mesh_it_is_born_on():
    config = tiny_config()
    system = systems.build(config.model)
    optimizer = optimizers.make(config.optimizer, config.schedule, config.steps)
    states = []
    for axes, count in (((("fsdp", -1),), 8), ((("data", 1),), 1)):
        mesh = loop.sharding.make_mesh(axes, jax.devices()[:count])
        config.mesh.rules = ((".*", "fsdp"),)
        abstract = loop._abstract_state(config, system, optimizer, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        states.append(loop._fresh_state(config, system, optimizer, shardings))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(states[0]))
    moments = states[0].opt_state[0].mu["head"]["classifier"]["kernel"].sharding
    assert moments == states[0].params["head"]["classifier"]["kernel"].sharding
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *states)
    assert isinstance(states[0], state.TrainState)
