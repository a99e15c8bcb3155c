"""A RegProxy that trains in seconds, and processes to train it in."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]


def tiny_config(*overrides):
    """6 steps of 8 scenes of 32 x 32. A large Adam epsilon keeps rounding from being amplified."""
    config = ConfigDict()
    config.model = dict(
        system="regproxy",
        backbone=dict(width=32, depth=2, heads=2, patch=8),
        classes=12,
        image_size=(32, 32),
        early_block=0,
        region=(2, 2),
        drop_path=0.1,
    )
    scenes = dict(name="shapescapes", size=(32, 32), train=16, validation=4)
    config.data = dict(dataset=scenes, batch=8, workers=0)
    config.augment = dict(scale=(32, 32), ratio=(1.0, 1.5), crop=(32, 32), photometric=False)
    config.optimizer = dict(learning_rate=1e-3, epsilon=1e-3, ema=0.9)
    config.schedule = dict(warmup_steps=2)
    config.steps = 6
    config.eval = dict(
        mode="whole", scale=(32, 32), crop=(32, 32), stride=(32, 32), every=3, batch=8
    )
    config.checkpoint = dict(every=2, keep=3)
    config.log = dict(every=2, tensorboard=False)
    return configs.load(config, overrides)


def start_python(code, *args, **env):
    """A new Python with this suite's environment (8 devices) that runs `code`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **env}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_python(code, *args, **env):
    """(exit status, what it printed)."""
    process = start_python(code, *args, **env)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def stored(workdir, step):
    """{path: array} of everything in a checkpoint."""
    path = pathlib.Path(workdir) / "checkpoints" / str(step)
    meta = checkpoints._read_meta(path)
    items = checkpoints._read_items(path, {"variables": None, "optimizer": None}, meta)
    return dict(zip(checkpoints.paths(items), jax.tree.leaves(items), strict=True))


def differences(a, b):
    """{path: greatest difference} of two `stored` results, where there is any."""
    assert a.keys() == b.keys()
    far = {name: float(np.max(np.abs(a[name] - 1.0 * b[name]))) for name in a if a[name].size}
    return {name: value for name, value in far.items() if value != 0}
