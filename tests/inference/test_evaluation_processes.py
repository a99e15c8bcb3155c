"""Two processes evaluate as one, and each reads only what it runs."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy_inference
from jax.sharding import Mesh

from segjax.inference import evaluation
from segjax.inference.windows import Settings

SIZES = [(45, 60), (30, 90), (45, 61), (44, 60), (20, 20), (46, 60), (45, 60), (100, 110)]
SLIDE = Settings("slide", (90, 45), (32, 32), (24, 20), batch=8)

CHILD = """
import json, sys
from segjax.runtime import setup
setup()
import toy_inference as toy
from test_evaluation_processes import SIZES, SLIDE
from segjax.inference import evaluation
scenes = toy.Scenes(SIZES)
metrics = evaluation.evaluate(toy.Toy(), toy.variables(), scenes, SLIDE, pictures=2, details=True)
shown = [picture.name for picture in metrics.pop("pictures")]
details = metrics.pop("details")
judged = [[one.picture.name, one.iou] for one in details.worst + details.best]
metrics |= {"pairs": details.pairs.tolist(), "iou": details.iou.tolist()}
print(json.dumps([metrics, scenes.read, shown, judged, details.seen]))
"""


def evaluate_in_processes(count):
    """What each of `count` processes, of two devices each, says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = pathlib.Path(__file__).parent
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "SEGJAX_COORDINATOR": f"localhost:{port}",
        "SEGJAX_PROCESSES": str(count),
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**env, "SEGJAX_PROCESS": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [child.communicate(timeout=240) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, faults) in zip(children, outputs):
        assert child.returncode == 0, faults[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_read_every_image_once_together():
    (first, read_first, shown, judged, seen), (second, read_second, *nothing) = (
        evaluate_in_processes(2)
    )
    assert sorted(read_first + read_second) == list(range(len(SIZES)))
    assert read_first and read_second
    assert first == second
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    scenes = toy_inference.Scenes(SIZES)
    alone = evaluation.evaluate(
        toy_inference.Toy(), toy_inference.variables(), scenes, SLIDE, mesh, details=True
    )
    details = alone.pop("details")
    assert first == {**alone, "pairs": details.pairs.tolist(), "iou": details.iou.tolist()}
    # Only the first draws, of what it read.
    assert len(shown) == 2 and nothing == [[], [], 0]
    assert seen == len(read_first) == len(judged)
    assert {name: details.iou[int(name.split()[1])] for name, _ in judged} == dict(judged)
