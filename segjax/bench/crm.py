"""`segjax bench crm`: refinement of a photograph by CRM and by CascadePSP, against PyTorch, and the
measure of boundaries against OpenCV.

Whole refinements are compared: image and mask on the host in, the probability on the host out.
Their memory is what a process of its own grows by while it refines, weights and compiled programs
being there before; that holds for both sides, whoever allocates.
"""

from __future__ import annotations

import collections
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from segjax import importers
from segjax.bench import regproxy, torch_cascade_psp, torch_crm, weights
from segjax.bench.measure import OURS, Contest, Goal, Side, agree
from segjax.data import transforms
from segjax.errors import SegjaxError
from segjax.metrics import boundary
from segjax.ops import morphology
from segjax.structs import Size
from segjax.systems import cascade_psp, crm

Make = Callable[[], Contest]

RELEASED, SHORT = "torch, as released", "torch, three stages"
"""The released loop runs a fourth stage of its encoder that nobody reads; without it."""

ALL, BAND, BOUNDED = "all pixels", "around the boundary", "bounded memory"

TWICE = Goal(2.0, 2.0)


class Options(NamedTuple):
    """What is measured.

    Attributes:
        size: (height, width) of the photograph.
        memory: bytes that the bounded refinement may take.
        small: (height, width) of the photograph for CascadePSP, which does ten times the work.
        side: CascadePSP's longest side; the photograph is larger, so that there are crops.
        large: (height, width) of the masks whose boundaries are measured.
        tiny: whether the networks are.
        device: see `torch_side.setup`.
    """

    size: Size = (512, 768)
    memory: int = 2**28
    small: Size = (256, 384)
    side: int = 224
    large: Size = (3300, 5000)
    tiny: bool = False
    device: str = "cpu"


def contests(options: Options) -> Iterator[tuple[str, Make]]:
    """All rows, in order."""
    height, width = options.size
    yield f"CRM, {height} x {width}", functools.partial(refinement, options)
    yield "CRM, ways to ask", functools.partial(ways, options)
    height, width = options.small
    yield f"CascadePSP, {height} x {width}", functools.partial(cascade, options)
    tall, wide = options.large
    yield f"boundary accuracy, {tall} x {wide}", functools.partial(boundaries, options)


# --------------------------------------------------------------------------------------------------
# What is refined, and by what


def photograph(size: Size) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return transforms.resize_image(regproxy.photograph(max(size)), size)


def coarse_mask(size: Size) -> np.ndarray:
    """An ellipse, made of steps as a small map's: uint8 [H, W]."""
    height, width = size
    small = np.zeros((max(height // 8, 4), max(width // 8, 4)), np.uint8)
    centre, axes = (small.shape[1] // 2, small.shape[0] // 2), (width // 28, height // 24)
    cv2.ellipse(small, centre, axes, 20, 0, 360, 255, -1)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


@functools.cache
def crm_pair(tiny: bool, query: str = "all") -> tuple[Any, Any]:
    """A CRM with random weights."""
    small = dict(backbone=dict(width=8, depths=(1, 1, 2)), projected=(8, 8, 16), features=16)
    system = crm.build(query=query, **(small if tiny else {}))
    variables = weights.drawn(system, SEEN)
    # Logits of a few units, as trained ones are; hundreds would enlarge rounding turn by turn.
    variables["params"]["implicit"][f"layer_{system.module.layers - 1}"]["kernel"] *= 0.05
    return system, variables


@functools.cache
def cascade_pair(tiny: bool, side: int) -> tuple[Any, Any]:
    """A CascadePSP with random weights."""
    small = dict(
        backbone=dict(width=8, depths=(1, 1, 1, 1)),
        features=32,
        up_features=(16, 16, 8),
        head_features=8,
    )
    system = cascade_psp.build(side=side, stride=side // 2, **(small if tiny else {}))
    variables = weights.drawn(system, SEEN)
    # About half of the pixels shall be the object's, or there are no crops to look at again.
    seen = (side // 16 * 8, side // 8 * 8)
    batch = {"image": photograph(seen)[None], "coarse_mask": coarse_mask(seen)[None]}
    logits = np.asarray(jax.jit(system.predict)(variables, batch).logits)
    bias = variables["params"]["head_1"]["conv2"]["bias"]
    bias -= np.median(logits)
    return system, variables


SEEN = {
    "image": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8),
    "coarse_mask": jax.ShapeDtypeStruct((1, 64, 64), jnp.uint8),
}


def last(turns: Iterator[np.ndarray]) -> np.ndarray:
    (found,) = collections.deque(turns, maxlen=1)
    return np.asarray(found)


# --------------------------------------------------------------------------------------------------
# Rows


def runs_of(options: Options) -> dict[str, Callable[[], np.ndarray]]:
    """CRM's whole schedule over the photograph, by all sides."""
    system, variables = crm_pair(options.tiny)
    image, mask = photograph(options.size), coarse_mask(options.size)
    runs = {OURS: lambda: last(system.turns(variables, image, mask))}
    tensors = {name: np.asarray(x) for name, x in importers.to_published("crm", variables).items()}
    for name, whole in ((RELEASED, True), (SHORT, False)):
        model = torch_crm.load(tensors, whole, system.module)
        runs[name] = lambda model=model: last(torch_crm.refined(model, image, mask))
    return runs


def refinement(options: Options) -> Contest:
    """Four turns, an eighth to the whole of the image's size."""
    runs = runs_of(options)
    errors = {
        name: agree(f"CRM, {name}", runs[OURS](), runs[name](), 1e-3) for name in (RELEASED, SHORT)
    }
    return Contest(_sides(runs, "runs_of", options), errors, goals={RELEASED: TWICE})


def ways_of(options: Options) -> dict[str, Callable[[], np.ndarray]]:
    """The same, with pixels asked around the boundary alone, and in bounded memory."""
    image, mask = photograph(options.size), coarse_mask(options.size)
    (system, variables), (near, _) = crm_pair(options.tiny), crm_pair(options.tiny, "band")
    bounded = functools.partial(system.turns, variables, image, mask, max_memory=options.memory)
    return {
        OURS: lambda: last(system.turns(variables, image, mask)),
        BOUNDED: lambda: last(bounded()),
        BAND: lambda: last(near.turns(variables, image, mask)),
    }


def ways(options: Options) -> Contest:
    """Ours against ours; a ratio below 1 is faster than asking all pixels without a bound."""
    runs = ways_of(options)
    error = agree("CRM in bounded memory", runs[OURS](), runs[BOUNDED](), 1e-4)
    return Contest(_sides(runs, "ways_of", options), {BOUNDED: error})


def cascades_of(options: Options) -> dict[str, Callable[[], np.ndarray]]:
    """CascadePSP's global and local steps, by both sides."""
    system, variables = cascade_pair(options.tiny, options.side)
    image, mask = photograph(options.small), coarse_mask(options.small)
    model = torch_cascade_psp.load(system, variables)
    steps = options.side, options.side // 2
    return {
        OURS: lambda: last(system.turns(variables, image, mask)),
        "torch": lambda: torch_cascade_psp.refine(model, image, mask, *steps),
    }


def cascade(options: Options) -> Contest:
    """A global step, then crops of half that stride.

    The error is the share of pixels that are the object's for one side only: what is above 0.5
    after the first step is the second's input, where a pixel tipped by rounding changes those
    around it.
    """
    runs = cascades_of(options)
    masks = {name: (run() > 0.5).astype(np.int32) for name, run in runs.items()}
    error = agree("CascadePSP", masks[OURS], masks["torch"], 1e-2)
    sides = _sides(runs, "cascades_of", options)
    return Contest(sides, {"torch": error}, goals={"torch": Goal(1.0)})


def _sides(
    runs: dict[str, Callable[[], np.ndarray]], maker: str, options: Options
) -> dict[str, Side]:
    return {name: Side(run, peak(maker, name, options)) for name, run in runs.items()}


def boundaries(options: Options) -> Contest:
    """mBA of a coarse and a sharp mask, on the device and by OpenCV as the published scripts."""
    truth = coarse_mask(options.large) > 0
    predictions = np.stack([np.roll(truth, shift, axis=1) for shift in (9, 3)])

    def by_opencv() -> np.ndarray:
        whole, shares = truth.astype(np.uint8), []
        for radius in boundary.radii(truth.shape):
            kernel = morphology.disk(radius)
            band = cv2.morphologyEx(whole, cv2.MORPH_GRADIENT, kernel) > 0
            shares.append([(found == truth)[band].mean() for found in predictions])
        return np.mean(shares, axis=0)

    def ours() -> np.ndarray:
        return np.asarray(boundary.accuracy(truth, predictions))

    error = agree("boundary accuracy", ours(), by_opencv(), 1e-6)
    sides = {OURS: Side(ours), "OpenCV": Side(by_opencv)}
    return Contest(sides, {"OpenCV": error})


# --------------------------------------------------------------------------------------------------
# Memory


def peak(maker: str, name: str, options: Options) -> int | None:
    """Bytes by which a process grows while one side refines, for the second time; None where the
    system doesn't tell."""
    if options.device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    program = (
        "import json, sys; from segjax.bench import crm, torch_side; torch_side.setup();"
        " maker, name, options = json.loads(sys.argv[1]);"
        " print(crm.growth(getattr(crm, maker)(crm.Options(**options))[name]))"
    )
    given = json.dumps([maker, name, options._asdict()])
    command = [sys.executable, "-c", program, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SegjaxError(
            f"{name}: its memory could not be measured: {done.stderr.strip().splitlines()[-1]}"
        )
    return int(done.stdout.split()[-1])


def growth(run: Callable[[], Any]) -> int:
    """The peak of this process's resident memory during a run, beyond what it had before."""
    run()  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return max(resident("VmHWM") - before, 0)


def resident(field: str) -> int:
    """Bytes of this process's memory: "VmRSS", what it has, or "VmHWM", the most it had."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024
