"""The README's first command, made short."""

import json
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_main_job_leaves_pictures_metrics_and_one_last_line(tmp_path):
    short = [
        "--config.steps=4",
        "--config.eval.every=4",
        "--config.checkpoint.every=4",
        "--config.data.dataset.train=32",
        "--config.data.dataset.validation=8",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "experiments/quickstart.py",
            f"--workdir={tmp_path}",
            "--pictures=2",
            *short,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["mIoU"]) == {"untrained RegProxy", "linear-head ViT", "RegProxy"}
    last = done.stdout.strip().splitlines()[-1]
    assert f"RegProxy reached {metrics['mIoU']['RegProxy']:.2f} mIoU" in last
    assert str(tmp_path) in last
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        Image.open(picture).load()
