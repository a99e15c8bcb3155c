"""The training step: a pure function, compiled once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from segjax.structs import Array, Batch, Scalars, System
from segjax.training.state import TrainState

Totals = dict[str, Array]
"""Sums of what is logged since the last look: the scalars, "steps" and "bad", the number of steps
whose loss or gradient was not finite."""


def make_step(
    system: System,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Callable[[TrainState, Totals, Batch], tuple[TrainState, Totals]]:
    """The step of `system` under `optimizer`; to be jitted.

    Args:
        system: what is trained.
        optimizer: see `optimizer.make`.
        accumulate: slices the batch passes the network in.
        ema: decay of the moving average; 0 for none.
    """

    def step(state: TrainState, totals: Totals, batch: Batch) -> tuple[TrainState, Totals]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def loss(params: object) -> tuple[Array, tuple[Scalars, dict]]:
            return system.loss({"params": params, **state.stats}, batch, rng, accumulate)

        (value, (scalars, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if average is not None:
            average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, params)
        new = TrainState(
            step=state.step + 1,
            params=params,
            stats=dict(stats),
            opt_state=opt_state,
            rng=state.rng,
            ema=average,
        )
        # Also what is kept: an update can overflow where loss and gradient did not.
        kept = (jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((params, new.stats)))
        bad = ~jnp.stack([jnp.isfinite(value), jnp.isfinite(norm), *kept]).all()
        seen = {"loss": value, **scalars, "gradient_norm": norm, "steps": 1.0, "bad": bad}
        totals = {name: totals[name] + jnp.asarray(seen[name], jnp.float32) for name in totals}
        return new, totals

    return step


def zero_totals(system: System, state: TrainState, batch: Batch, accumulate: int) -> Totals:
    """The totals before the first step, for the scalars that the system logs."""
    variables = {"params": state.params, **state.stats}
    rng = jax.random.key(0)
    _, (scalars, _) = jax.eval_shape(
        lambda v, b: system.loss(v, b, rng, accumulate), variables, batch
    )
    names = ("loss", *scalars, "gradient_norm", "steps", "bad")
    return {name: jnp.zeros((), jnp.float32) for name in names}
