"""Two processes that find each other train and evaluate as one."""

import json
import signal
import socket
import time

import jax
import numpy as np
import pytest
from tiny_training import start_python, stored, tiny_config

from segjax import config as configs
from segjax.training import loop

CHILD = """
import sys
from segjax import cli
from segjax.cli import train
config, workdir = sys.argv[1:]
sys.exit(cli.run(train.main, ["--config", config, "--workdir", workdir]))
"""

FSDP = ((("data", 2), ("fsdp", -1)), ((".*", "fsdp"),))


def start_pair(config_file, workdir, devices):
    """Two processes of so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return [
        start_python(
            CHILD,
            config_file,
            workdir,
            XLA_FLAGS=flags,
            SEGJAX_COORDINATOR=f"localhost:{port}",
            SEGJAX_PROCESSES="2",
            SEGJAX_PROCESS=str(index),
        )
        for index in range(2)
    ]


def finish(pair):
    try:
        outputs = [process.communicate(timeout=240)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [process.returncode for process in pair], outputs


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    config = tiny_config("--config.steps=3", "--config.data.dataset.validation=5")
    config.mesh.axes, config.mesh.rules = FSDP
    configs.save(config, tmp_path / "config.json")
    codes, outputs = finish(start_pair(tmp_path / "config.json", tmp_path / "two", 2))
    assert codes == [0, 0], outputs
    metrics = loop.train(config, tmp_path / "one", jax.devices()[:4])

    one, two = stored(tmp_path / "one", 3), stored(tmp_path / "two", 3)
    assert one.keys() == two.keys()
    far = {name: float(np.abs(one[name] - 1.0 * two[name]).max()) for name in one}
    assert max(far.values()) <= 1e-6, far
    shared = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert shared["images"] == metrics["images"] == 5  # each once, on whichever process
    assert shared["mIoU"] == pytest.approx(metrics["mIoU"], abs=1e-3)
    assert "done: mIoU" in outputs[0]
    assert "step" not in outputs[1]  # process 1 says and writes nothing


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    config = tiny_config(
        "--config.steps=100000", "--config.eval.every=100000", "--config.log.every=1"
    )
    configs.save(config, tmp_path / "config.json")
    pair = start_pair(tmp_path / "config.json", tmp_path / "w", 1)
    log, deadline = tmp_path / "w" / "metrics.jsonl", time.time() + 200
    while not (log.exists() and log.read_text()) and time.time() < deadline:
        time.sleep(0.2)
    pair[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(pair)
    assert codes == [143, 143], outputs
    assert "is saved; run the same command again" in outputs[0]
