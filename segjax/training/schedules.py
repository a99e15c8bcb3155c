"""Learning rate schedules, as mmcv defines them: the rate of step t, counted from 0.

    regular(t)                        poly, cosine restart, constant or multistep
    rate(t) = regular(t) * (1 - k)    while t < warmup_steps; k = (1 - t / warmup_steps) (1 - ratio)

The warm-up multiplies the running schedule; detectron2's is the same. All forms are written without
the cancellations of the usual ones, so that float32 on the device is as good as float64 on the
host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError


def rate(schedule: Mapping[str, Any], base: float, steps: int, t: Any) -> np.ndarray:
    """The learning rate of step t in float64, on the host.

    Args:
        schedule: `config.schedule`.
        base: `config.optimizer.learning_rate`.
        steps: `config.steps`, the length of the whole training.
        t: int [...], from 0.

    Returns:
        float64 [...].

    Raises:
        SegjaxError: see `check`.
    """
    check(schedule, steps)
    return _rate(schedule, base, steps, np.asarray(t, np.float64), np)


def schedule_fn(
    schedule: Mapping[str, Any], base: float, steps: int
) -> Callable[[jax.Array], jax.Array]:
    """The same as a function of an int32 step, for optax: float32, traceable."""
    check(schedule, steps)
    return lambda t: _rate(schedule, base, steps, jnp.asarray(t, jnp.float32), jnp)


def check(schedule: Mapping[str, Any], steps: int) -> None:
    """Raises a SegjaxError when the schedule doesn't describe `steps` steps."""
    if schedule["name"] not in _REGULAR:
        raise SegjaxError(
            f"config.schedule.name: there is no schedule '{schedule['name']}'; take one of"
            f" {', '.join(_REGULAR)}."
        )
    if schedule["name"] == "cosine_restart":
        periods, weights = schedule["periods"], schedule["weights"]
        if len(periods) != len(weights) or not periods or min(periods) < 1:
            raise SegjaxError(
                f"config.schedule: cosine_restart needs as many weights as periods, and there are"
                f" {len(weights)} weights and {len(periods)} periods."
            )
        if sum(periods) < steps:
            raise SegjaxError(
                f"config.schedule.periods: they end at step {sum(periods)}, before config.steps,"
                f" {steps}; lengthen the last one."
            )
    if schedule["name"] == "multistep":
        milestones = list(schedule["milestones"])
        if not milestones or milestones[0] < 1 or milestones != sorted(set(milestones)):
            raise SegjaxError(
                f"config.schedule.milestones is {tuple(milestones)}; multistep needs rising step"
                " numbers, the first of them 1 or more."
            )
        if not 0 < schedule["gamma"] <= 1:
            raise SegjaxError(
                f"config.schedule.gamma is {schedule['gamma']}; it must be above 0 and at most 1."
            )


def _rate(schedule: Mapping[str, Any], base: float, steps: int, t: Any, xp: ModuleType) -> Any:
    regular = _REGULAR[schedule["name"]](schedule, base, steps, t, xp)
    length, ratio = schedule["warmup_steps"], schedule["warmup_ratio"]
    if not length:
        return regular
    return regular * xp.where(t < length, ratio + t / length * (1 - ratio), 1.0)


def _poly(schedule: Mapping[str, Any], base: float, steps: int, t: Any, xp: ModuleType) -> Any:
    left = xp.maximum(steps - t, 0.0) / max(steps, 1)
    floor = schedule["min_rate"]
    return (base - floor) * left ** schedule["power"] + floor


def _cosine_restart(
    schedule: Mapping[str, Any], base: float, steps: int, t: Any, xp: ModuleType
) -> Any:
    ends = np.cumsum(schedule["periods"])
    period = xp.minimum(xp.searchsorted(xp.asarray(ends, t.dtype), t, side="right"), len(ends) - 1)
    length = xp.asarray(schedule["periods"], t.dtype)[period]
    weight = xp.asarray(schedule["weights"], t.dtype)[period]
    left = xp.clip((xp.asarray(ends, t.dtype)[period] - t) / length, 0.0, 1.0)
    floor = schedule["min_rate"]
    # (1 + cos(pi x)) / 2 = sin(pi (1 - x) / 2) ** 2
    return floor + (base - floor) * weight * xp.sin(np.pi / 2 * left) ** 2


def _constant(schedule: Mapping[str, Any], base: float, steps: int, t: Any, xp: ModuleType) -> Any:
    return base * xp.ones_like(t)


def _multistep(schedule: Mapping[str, Any], base: float, steps: int, t: Any, xp: ModuleType) -> Any:
    # Powers from the host: XLA's are less exact than a float32.
    rates = base * schedule["gamma"] ** np.arange(len(schedule["milestones"]) + 1.0)
    passed = xp.searchsorted(xp.asarray(schedule["milestones"], t.dtype), t, side="right")
    return xp.asarray(rates, t.dtype)[passed]


_REGULAR = {
    "poly": _poly,
    "cosine_restart": _cosine_restart,
    "constant": _constant,
    "multistep": _multistep,
}
