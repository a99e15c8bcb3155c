"""AdamW, Adam and SGD with the exclusions, rates per parameter and clipping that the papers use.

Parameters are named by their path in the tree, e.g. "backbone/block_0/norm1/scale".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from segjax.errors import SegjaxError
from segjax.training import schedules

PyTree = Any


def make(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], steps: int
) -> optax.GradientTransformation:
    """The optimizer of a config.

    "adamw" is Adam with decoupled weight decay (Loshchilov & Hutter), as torch.optim.AdamW:

        p <- p - rate(t, p) * (adam(g) + weight_decay * p)

    "adam" is torch.optim.Adam, whose decay is part of the gradient:

        p <- p - rate(t, p) * adam(g + weight_decay * p)

    "sgd" is torch.optim.SGD, whose decay is too:

        g <- g + weight_decay * p
        v <- momentum * v + g
        p <- p - rate(t, p) * v        (with Nesterov: g + momentum * v)

    rate(t, p) is the schedule of the parameter's own base rate, which is learning_rate times its
    multiplier; `min_rate` is the same for all, as mmcv has it.

    Args:
        optimizer: `config.optimizer`.
        schedule: `config.schedule`.
        steps: `config.steps`.

    Returns:
        An optax transformation; its step count starts at 0.

    Raises:
        SegjaxError: there is no such optimizer, or a pattern is not a regex.
    """
    patterns = tuple(optimizer["no_decay"])
    decay = optax.add_decayed_weights(
        optimizer["weight_decay"], lambda params: decay_mask(params, patterns)
    )
    adam = optax.scale_by_adam(optimizer["beta1"], optimizer["beta2"], optimizer["epsilon"])
    if optimizer["name"] == "adamw":
        parts = [adam, decay]
    elif optimizer["name"] == "adam":
        parts = [decay, adam]
    elif optimizer["name"] == "sgd":
        parts = [decay, optax.trace(optimizer["momentum"], optimizer["nesterov"])]
    else:
        raise SegjaxError(
            f"config.optimizer.name: there is no '{optimizer['name']}'; take adamw, adam or sgd."
        )
    if optimizer["clip_norm"] > 0:
        parts.insert(0, optax.clip_by_global_norm(optimizer["clip_norm"]))
    layer_decay, rates = optimizer["layer_decay"], tuple(optimizer["rates"])
    base = optimizer["learning_rate"]
    if layer_decay == 1.0 and not rates:
        down = optax.scale_by_learning_rate(schedules.schedule_fn(schedule, base, steps))
    else:
        down = _scale_by_rates(schedule, base, steps, layer_decay, rates)
    return optax.chain(*parts, down)


def decay_mask(params: PyTree, no_decay: Sequence[str]) -> PyTree:
    """True for the parameters that weight decay shrinks: those whose path no regex is found in."""
    patterns = [_compiled("no_decay", pattern) for pattern in no_decay]
    return map_by_path(lambda path, _: not any(p.search(path) for p in patterns), params)


def rate_multipliers(
    params: PyTree, layer_decay: float, rates: Sequence[tuple[str, float]] = ()
) -> PyTree:
    """Learning rate factors: layer_decay ** (layers above), 1 for the head and the last norm; times
    the factor of the first regex in `rates` that is found in the path.

    The embedding (patches, positions, stem) is layer 0, block i is layer i + 1, all else is above
    the last block (BEiT, Sec. A).
    """
    blocks = [_block(path) for path in paths(params)]
    top = max((block for block in blocks if block is not None), default=-1) + 2

    factors = [(_compiled("rates", pattern), float(factor)) for pattern, factor in rates]

    def by_layer(path: str) -> float:
        block = _block(path)
        if block is not None:
            return layer_decay ** (top - (block + 1))
        is_embedding = path.startswith("backbone/") and not path.startswith("backbone/norm/")
        return layer_decay**top if is_embedding else 1.0

    def multiplier(path: str, _: Any) -> float:
        factor = next((factor for pattern, factor in factors if pattern.search(path)), 1.0)
        return by_layer(path) * factor

    return map_by_path(multiplier, params)


def _compiled(field: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SegjaxError(
            f"config.optimizer.{field}: '{error.pattern}' is not a regular expression ({error})."
        ) from None


def paths(tree: PyTree) -> list[str]:
    """The path "a/b/c" of every leaf, in the order of `jax.tree.leaves`."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_by_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`jax.tree.map` of function(path, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _scale_by_rates(
    schedule: Mapping[str, Any],
    base: float,
    steps: int,
    layer_decay: float,
    rates: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
    """Down by each parameter's own rate."""

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: optax.ScaleByScheduleState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        factors = rate_multipliers(updates, layer_decay, rates)
        rate_of = {
            factor: schedules.schedule_fn(schedule, base * factor, steps)(state.count)
            for factor in set(jax.tree.leaves(factors))
        }
        updates = jax.tree.map(lambda u, f: -rate_of[f].astype(u.dtype) * u, updates, factors)
        return updates, optax.ScaleByScheduleState(count=optax.safe_int32_increment(state.count))

    return optax.GradientTransformation(init, update)


def _block(path: str) -> int | None:
    found = re.match(r"backbone/block_(\d+)/", path)
    return int(found[1]) if found else None


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
