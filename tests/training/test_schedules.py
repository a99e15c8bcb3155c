"""Learning rates against closed forms."""

import math

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.training import schedules

WARMUP = dict(warmup_steps=10, warmup_ratio=1e-6)
POLY = dict(name="poly", power=0.9, min_rate=1e-3, **WARMUP)
COSINE = dict(name="cosine_restart", periods=(20, 40), weights=(1.0, 0.5), min_rate=0.0, **WARMUP)
CONSTANT = dict(name="constant", **WARMUP)


def mmcv(regular, t):
    """mmcv's linear warm-up of a running schedule."""
    k = (1 - t / 10) * (1 - 1e-6)
    return regular * (1 - k) if t < 10 else regular


@pytest.mark.parametrize("t", [0, 1, 9, 10, 35, 59])
def test_schedules_follow_their_definitions(t):
    poly = (0.1 - 1e-3) * (1 - t / 60) ** 0.9 + 1e-3
    weight, start, length = (1.0, 0, 20) if t < 20 else (0.5, 20, 40)
    cosine = 0.1 * weight * 0.5 * (1 + math.cos(math.pi * (t - start) / length))
    for schedule, regular in ((POLY, poly), (COSINE, cosine), (CONSTANT, 0.1)):
        rate = schedules.rate(schedule, 0.1, 60, t)
        assert rate.dtype == np.float64
        np.testing.assert_allclose(rate, mmcv(regular, t), rtol=1e-9)


@pytest.mark.parametrize("schedule", [POLY, COSINE, CONSTANT], ids=lambda s: s["name"])
def test_the_device_agrees_with_the_host(schedule):
    steps = np.arange(60)
    on_device = jax.jit(schedules.schedule_fn(schedule, 6e-5, 60))(steps)
    np.testing.assert_allclose(on_device, schedules.rate(schedule, 6e-5, 60, steps), rtol=1e-6)


def test_periods_must_cover_the_training():
    with pytest.raises(SegjaxError, match=r"end at step 60, before config\.steps, 61"):
        schedules.rate(COSINE, 0.1, 61, 0)


def test_each_period_needs_a_weight():
    with pytest.raises(SegjaxError, match="as many weights as periods"):
        schedules.rate({**COSINE, "weights": (1.0,)}, 0.1, 60, 0)


MULTISTEP = dict(name="multistep", milestones=(20, 45), gamma=0.1, **WARMUP)


@pytest.mark.parametrize("t", [0, 5, 9, 10, 19, 20, 21, 44, 45, 59])
def test_multistep_multiplies_by_gamma_from_each_milestone_on(t):
    regular = 0.1 * 0.1 ** sum(t >= milestone for milestone in (20, 45))
    np.testing.assert_allclose(schedules.rate(MULTISTEP, 0.1, 60, t), mmcv(regular, t), rtol=1e-9)


def test_multistep_on_the_device_agrees_with_the_host():
    steps = np.arange(60)
    on_device = jax.jit(schedules.schedule_fn(MULTISTEP, 1e-4, 60))(steps)
    np.testing.assert_allclose(on_device, schedules.rate(MULTISTEP, 1e-4, 60, steps), rtol=1e-6)


def test_the_official_milestones_count_exactly_in_single_precision():
    schedule = {**MULTISTEP, "milestones": (655_556, 710_184), "warmup_steps": 0}
    on_device = jax.jit(schedules.schedule_fn(schedule, 1e-4, 737_500))
    steps = np.array([655_555, 655_556, 710_183, 710_184])
    np.testing.assert_allclose(on_device(steps), [1e-4, 1e-5, 1e-5, 1e-6], rtol=1e-6)


@pytest.mark.parametrize("milestones", [(), (45, 20), (20, 20), (0, 20)])
def test_milestones_must_rise(milestones):
    with pytest.raises(SegjaxError, match=r"config\.schedule\.milestones .* rising step numbers"):
        schedules.check({**MULTISTEP, "milestones": milestones}, 60)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gamma_lowers_the_rate(gamma):
    with pytest.raises(SegjaxError, match=r"config\.schedule\.gamma"):
        schedules.check({**MULTISTEP, "gamma": gamma}, 60)


def test_the_warm_up_is_that_of_detectron2():
    """The factor there: ratio * (1 - t / length) + t / length."""
    poly = dict(name="poly", power=0.9, min_rate=0.0, warmup_steps=1500, warmup_ratio=1e-6)
    t = np.array([0, 1, 750, 1499, 1500])
    alpha = np.minimum(t / 1500, 1)
    expected = 6e-5 * (1 - t / 160_000) ** 0.9 * (1e-6 * (1 - alpha) + alpha)
    np.testing.assert_allclose(schedules.rate(poly, 6e-5, 160_000, t), expected, rtol=1e-12)
