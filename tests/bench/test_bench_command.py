"""`segjax bench` on tiny shapes."""

import importlib.util
import json

import pytest

from segjax import cli
from segjax.cli import bench

SIDE = {"median_s", "fastest_s", "slowest_s", "samples_s", "temporary_bytes"}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'segjax[torch]'"
)


def run(tmp_path, *options):
    out = tmp_path / "report.json"
    assert cli.main(["bench", *options, f"--out={out}"]) == 0
    report = json.loads(out.read_text())
    assert report["benchmark"] == options[0]
    for row in report["rows"]:
        assert row["sides"]["segjax"].keys() >= SIDE
        for side, found in row["sides"].items():
            assert len(found["samples_s"]) == report["settings"]["rounds"] == 2
            assert side == "segjax" or found["ratio"] > 0
    return {row["name"]: row for row in report["rows"]}


@needs_torch
def test_ops_are_measured(tmp_path, capsys):
    """Each against its plain form and PyTorch, results compared, memory known."""
    rows = run(tmp_path, "ops", "--quick")
    assert len(rows) >= 15
    compared = {name: row for name, row in rows.items() if name != "superpixels"}
    for name, row in compared.items():
        for side in ("plain", "torch"):
            assert row["sides"][side]["error"] <= 0.05, name
            assert row["sides"][side]["temporary_bytes"] >= 0, name
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)


@needs_torch
def test_regproxy_is_measured(tmp_path):
    rows = run(tmp_path, "regproxy", "--quick", "--workers=1")
    assert [*rows] == [
        *("Tiny forward", "Tiny step", "Tiny predict"),
        *("painting and argmax", "sliding windows", "loader"),
    ]
    for name, row in rows.items():
        assert row["sides"]["torch"]["error"] < 1e-3, name
        assert isinstance(row["sides"]["torch"]["reached"], bool)
    assert rows["loader"]["sides"]["segjax"]["images_per_s"] > 0


@needs_torch
def test_some_rows_can_be_chosen(tmp_path):
    assert [*run(tmp_path, "ops", "--quick", "--only=pooling")] == ["adaptive pooling"]


def test_without_torch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "ops"]) == 1
    assert "run pip install 'segjax[torch]'." in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, message",
    [
        ("--sizes=ti,x", "--sizes: there is no 'x'; take some of ti,s,b,l."),
        ("--side=100", "--side=100: take a multiple of 16, 64 or more."),
        ("--repeats=0", "--repeats=0: take 1 or more."),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(option, message, capsys):
    assert cli.main(["bench", "regproxy", option]) == 1
    assert message in capsys.readouterr().err


@needs_torch
def test_rows_that_do_not_exist_are_refused(capsys):
    assert cli.main(["bench", "ops", "--quick", "--only=nothing"]) == 1
    assert "--only=nothing: there is no such row" in capsys.readouterr().err
