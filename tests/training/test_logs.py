"""The files that logs leave."""

import json

import numpy as np
import pytest

from segjax.training.logs import Logs, records, write_json

VALUES = dict(loss=1.5, learning_rate=1e-3, images_per_second=8.0, data_wait=0.25)


def test_lines_after_the_checkpoint_are_taken_back_on_resuming(tmp_path):
    with Logs(tmp_path, 10, tensorboard=False) as logs:
        for step in (2, 4, 6):
            logs.train(step, VALUES, 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a crash
    with Logs(tmp_path, 10, start=4, tensorboard=False) as logs:
        logs.train(6, {**VALUES, "loss": 0.5}, 1.0)
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(2, 1.5), (4, 1.5), (6, 0.5)]


def test_a_line_tells_step_loss_rate_speed_wait_and_time_left(tmp_path, capsys):
    with Logs(tmp_path, 10, tensorboard=False) as logs:
        logs.train(2, VALUES, 3725)
    line = capsys.readouterr().out
    for part in ("2/10", "loss 1.5000", "lr 1.00e-03", "8.0 images/s", "data 25%", "1:02:05"):
        assert part in line


def test_silent_processes_leave_nothing(tmp_path, capsys):
    with Logs(tmp_path, 10, speaks=False) as logs:
        logs.say("hello")
        logs.train(2, VALUES, 1.0)
        logs.evaluation(2, {"mIoU": 1.0}, True)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_tensorboard_holds_the_scalars(tmp_path):
    with Logs(tmp_path, 10) as logs:
        logs.train(2, VALUES, 1.0)
        logs.evaluation(2, {"mIoU": 31.0, "classes": []}, True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"eval/mIoU" in events.read_bytes()


def test_numpy_numbers_become_json(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": np.arange(2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.5, "y": [0, 1]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr("pathlib.Path.write_text", lambda *_, **__: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", 2)
    assert (tmp_path / "a.json").read_text() == "1\n"
