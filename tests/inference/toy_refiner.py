"""A system that refines, small enough to be understood at a glance, and images for it.

As a module of systems it is `config.model.system = "toy_refiner"`, see the fixture `toy_system`.
"""

import dataclasses
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.structs import Refined

REACH = 4
"""Pixels that the object may lie beyond the coarse mask."""


@dataclasses.dataclass(frozen=True)
class Brightness:
    """The object is what is bright, near the coarse mask: bright as the mask's pixels are, and not
    as those around it, if `relative`. Turns: the mask softened, then this."""

    classes: int = 1
    relative: bool = False

    def init(self, rng, batch):
        return {"params": {"gain": jnp.full((), 0.5, jnp.float32)}}

    def predict(self, variables, batch):
        logits = variables["params"]["gain"] * (batch["image"].mean(-1) - 128.0)
        return Refined(jax.nn.sigmoid(logits), logits)

    def turns(self, variables, image, mask, *, max_memory=None, progress=None):
        assert image.dtype == mask.dtype == np.uint8 and image.shape[:2] == mask.shape
        SEEN.append((mask.shape, max_memory))
        gain = float(variables["params"]["gain"])
        for turn in range(2):
            if turn == 0:
                probability = 0.1 + 0.8 * (mask / np.float32(255))
            else:
                inside = mask > 127
                near = grown(inside, REACH)
                grey = image.mean(-1)
                level, sign = 128.0, 1.0
                if self.relative and inside.any() and (~inside).any():
                    mine, theirs = np.median(grey[inside]), np.median(grey[~inside])
                    level, sign = (mine + theirs) / 2, 1.0 if mine > theirs else -1.0
                probability = near / (1 + np.exp(-sign * gain * (grey - level)))
            if progress is not None:
                progress(turn + 1, 2)
            yield probability.astype(np.float32)


def build(classes=1, relative=False):
    """As every module of systems has it."""
    return Brightness(classes, relative)


VARIABLES = {"params": {"gain": np.float32(0.5)}}

SEEN = []
"""(size, max_memory) of every call of turns; tests clear it."""


def grown(mask, reach):
    """A mask bool [H, W] dilated by a square."""
    for axis in (0, 1):
        padded = np.pad(mask, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)])
        side = mask.shape[axis]
        parts = [np.take(padded, range(i, i + side), axis) for i in range(2 * reach + 1)]
        mask = np.any(parts, axis=0)
    return mask


def disc(size, centre=None, radius=None):
    """bool [H, W]."""
    centre = centre or (size[0] / 2, size[1] / 2)
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (radius or min(size) / 3) ** 2


def scene(truth, low=40, high=210):
    """An image uint8 [H, W, 3] that is bright where `truth` bool [H, W] is."""
    noise = np.random.default_rng(0).integers(-15, 16, (*truth.shape, 3))
    return (np.where(truth, high, low)[..., None] + noise).astype(np.uint8)


def blocky(mask, cell=4):
    """A mask bool [H, W] as a coarse system gives it: in cells of so many pixels."""
    rows, columns = (np.arange(side) // cell * cell for side in mask.shape)
    return mask[rows[:, None], columns]


@pytest.fixture
def toy_system(monkeypatch):
    """Makes this module one of segjax.systems."""
    module = importlib.import_module(__name__)
    monkeypatch.setitem(sys.modules, "segjax.systems.toy_refiner", module)
    SEEN.clear()
