"""The training loop: resuming, stopping, and what it says when something is wrong."""

import json
import os
import re
import signal

import jax
import pytest

from segjax import config as configs
from segjax.errors import SegjaxError
from segjax.training import checkpoints, loop

# Trains on argv[1] (config.json) in argv[2]; writes the names of every batch to argv[3]; sends
# itself the signal argv[4] when it draws the batch after step argv[5].
CHILD = """
import json, os, sys
from segjax import config as configs
from segjax.training import loop
config, workdir, names_file, number, at = sys.argv[1:]
drawn, train_batches = [], loop.loader.train_batches

class Recording:
    def __init__(self, *args):
        self.inner, self.start = train_batches(*args), args[4]
    def __next__(self):
        batch, names = next(self.inner)
        drawn.append([self.start + len(drawn), names])
        if drawn[-1][0] + 1 == int(at):
            os.kill(os.getpid(), int(number))
        return batch, names
    def close(self):
        self.inner.close()

loop.loader.train_batches = Recording
try:
    loop.train(configs.load(config), workdir)
finally:
    with open(names_file, "w") as file:
        json.dump(drawn, file)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 6 steps in a process of its own: (workdir, [[step, names], ...])."""
    from tests_training import tools  # see conftest

    folder = tmp_path_factory.mktemp("straight")
    return train_in_child(tools, folder, folder / "w")[2]


def train_in_child(tools, folder, workdir, number=0, at=-1):
    config = folder / "config.json"
    if not config.exists():
        configs.save(tools.tiny_config(), config)
    names = folder / f"names_{number}_{at}.json"
    code, output = tools.run_python(CHILD, config, workdir, names, number, at)
    return code, output, (workdir, json.loads(names.read_text()) if names.exists() else output)
