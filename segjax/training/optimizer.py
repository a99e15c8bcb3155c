"""AdamW with the exclusions, layer-wise rates and clipping that the papers use.

Parameters are named by their path in the tree, e.g. "backbone/block_0/norm1/scale".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from segjax.errors import SegjaxError
from segjax.training import schedules

PyTree = Any


def adamw(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], steps: int
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter), as torch.optim.AdamW.

        p <- p - rate(t) * multiplier(p) * (adam(g) + weight_decay * p)

    Args:
        optimizer: `config.optimizer`.
        schedule: `config.schedule`.
        steps: `config.steps`.

    Returns:
        An optax transformation; its step count starts at 0.
    """
    patterns, layer_decay = tuple(optimizer["no_decay"]), optimizer["layer_decay"]
    parts = [
        optax.scale_by_adam(optimizer["beta1"], optimizer["beta2"], optimizer["epsilon"]),
        optax.add_decayed_weights(
            optimizer["weight_decay"], lambda params: decay_mask(params, patterns)
        ),
        optax.scale_by_learning_rate(
            schedules.schedule_fn(schedule, optimizer["learning_rate"], steps)
        ),
    ]
    if optimizer["clip_norm"] > 0:
        parts.insert(0, optax.clip_by_global_norm(optimizer["clip_norm"]))
    if layer_decay != 1.0:
        parts.insert(-1, optax.stateless(_multiply_rates(layer_decay)))
    return optax.chain(*parts)


def decay_mask(params: PyTree, no_decay: Sequence[str]) -> PyTree:
    """True for the parameters that weight decay shrinks: those whose path no regex is found in."""
    try:
        patterns = [re.compile(pattern) for pattern in no_decay]
    except re.error as error:
        raise SegjaxError(
            f"config.optimizer.no_decay: '{error.pattern}' is not a regular expression ({error})."
        ) from None
    return map_by_path(lambda path, _: not any(p.search(path) for p in patterns), params)


def rate_multipliers(params: PyTree, layer_decay: float) -> PyTree:
    """Learning rate factors: layer_decay ** (layers above). 1 for the head and the last norm.

    The embedding (patches, positions, stem) is layer 0, block i is layer i + 1, all else is above
    the last block (BEiT, Sec. A).
    """
    blocks = [_block(path) for path in paths(params)]
    top = max((block for block in blocks if block is not None), default=-1) + 2

    def multiplier(path: str, _: Any) -> float:
        block = _block(path)
        if block is not None:
            return layer_decay ** (top - (block + 1))
        is_embedding = path.startswith("backbone/") and not path.startswith("backbone/norm/")
        return layer_decay**top if is_embedding else 1.0

    return map_by_path(multiplier, params)


def paths(tree: PyTree) -> list[str]:
    """The path "a/b/c" of every leaf, in the order of `jax.tree.leaves`."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_by_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`jax.tree.map` of function(path, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _multiply_rates(layer_decay: float) -> Callable[[PyTree, PyTree], PyTree]:
    def update(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, m: u * m, updates, rate_multipliers(updates, layer_decay))

    return update


def _block(path: str) -> int | None:
    found = re.match(r"backbone/block_(\d+)/", path)
    return int(found[1]) if found else None


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
