"""All that a training step changes, born where it will lie."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from segjax.structs import Array, Size, System, Variables
from segjax.training import sharding

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Attributes:
    step: int32, updates done.
    params: float32 parameters.
    stats: the other variables (batch norm's), a dict of collections.
    opt_state: optax state.
    rng: uint32 key data; the key of step t is fold_in(rng, t).
    ema: moving average of `params`, or None.
    """

    step: Array
    params: PyTree
    stats: dict[str, PyTree]
    opt_state: PyTree
    rng: Array
    ema: PyTree | None = None

    @property
    def trained(self) -> Variables:
        """What is evaluated: the averaged parameters if there are any."""
        return {"params": self.params if self.ema is None else self.ema, **self.stats}


def initial_variables(system: System, seed: int, crop: Size) -> Variables:
    """Fresh variables; traceable. The same on any mesh."""
    batch = {"image": jnp.zeros((1, *crop, 3), jnp.uint8)}
    variables = system.init(jax.random.fold_in(jax.random.key(seed), 0), batch)
    return {name: collection for name, collection in variables.items()}


def from_variables(
    variables: Variables, optimizer: optax.GradientTransformation, seed: int, ema: float
) -> TrainState:
    """The state before the first step; traceable."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats={name: tree for name, tree in variables.items() if name != "params"},
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
        ema=jax.tree.map(jnp.copy, params) if ema > 0 else None,
    )


def state_shardings(
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Any,
) -> TrainState:
    """A NamedSharding for every leaf of a state; moments and average lie as their parameter."""
    params = sharding.parameter_shardings(abstract.params, mesh, rules)
    everywhere = sharding.replicated(mesh)
    return TrainState(
        step=everywhere,
        params=params,
        stats=jax.tree.map(lambda _: everywhere, abstract.stats),
        opt_state=optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, placed: placed,
            abstract.opt_state,
            params,
            transform_non_params=lambda _: everywhere,
        ),
        rng=everywhere,
        ema=None if abstract.ema is None else params,
    )
