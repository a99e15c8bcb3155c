"""`segjax bench` on tiny shapes."""

import importlib.util
import json
import sys

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
@pytest.mark.slow
def test_ops_are_measured(tmp_path, capsys):
    """Each against a plain form or another library, mostly both; results compared."""
    rows = run(tmp_path, "ops", "--quick")
    assert len(rows) >= 25
    compared = {name: row for name, row in rows.items() if name != "superpixels"}
    for name, row in compared.items():
        others = [side for side in row["sides"] if side != "segjax"]
        assert others, name
        for side in others:
            assert row["sides"][side]["error"] <= 0.05, name
    both = [name for name, row in compared.items() if {"plain", "torch"} <= set(row["sides"])]
    assert len(both) >= 14
    for name in both:
        for side in ("plain", "torch"):
            assert rows[name]["sides"][side]["temporary_bytes"] >= 0, name
    printed = capsys.readouterr().out
    assert all(name.split()[0] in printed for name in rows)  # the table breaks long names


@needs_torch
@pytest.mark.slow
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
@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "scipy")),
    reason="needs transformers and scipy: pip install 'segjax[test]'",
)
def test_mask2former_is_measured(tmp_path):
    rows = run(tmp_path, "mask2former", "--quick")
    results = ["panoptic", "instances", "semantic"]
    assert [*rows] == [
        *("forward", "step", "matching"),
        *("deformable sampling", "deformable sampling, gradient"),
        *results,
        *(f"{name}, transformers" for name in results),
    ]
    for name, row in rows.items():
        others = {side: found for side, found in row["sides"].items() if side != "segjax"}
        assert others, name
        assert all(found["error"] < 1e-2 for found in others.values()), name
    assert {*rows["step"]["sides"]} == {"segjax", "torch", "SciPy on the host"}
    assert {*rows["matching"]["sides"]} == {"segjax", "SciPy", "optax"}
    for name in results:
        assert rows[name]["sides"]["torch"]["goal"]["time"] == 2.0


@needs_torch
@pytest.mark.slow
def test_hssn_is_measured(tmp_path):
    rows = run(tmp_path, "hssn", "--quick")
    networks = [
        f"{name} {what}" for name in ("deeplab_v3plus", "ocrnet") for what in ("forward", "step")
    ]
    losses = [
        f"{loss}, {nodes} nodes" for nodes in (26, 148) for loss in ("tree-min", "focal tree-min")
    ]
    assert [*rows] == [
        *(f"{loss}{beside}" for loss in losses for beside in ("", ", 32 x 64, torch")),
        *networks,
    ]
    for name, row in rows.items():
        others = {side: found for side, found in row["sides"].items() if side != "segjax"}
        assert others, name
        assert all(found["error"] < 1e-2 for found in others.values()), name
    for loss in losses:
        sides = rows[loss]["sides"]
        assert {*sides} == {"segjax", "BCE in strips", "BCE, plain"}
        assert sides["BCE, plain"]["goal"] == {"time": 1 / 1.5, "temporary": 1 / 1.1}
        assert rows[f"{loss}, 32 x 64, torch"]["sides"]["torch, masks"]["goal"]["time"] == 5.0
    for name in networks:
        assert rows[name]["sides"]["torch"]["goal"]["time"] == 1.0


@needs_torch
@pytest.mark.slow
def test_crm_is_measured(tmp_path):
    rows = run(tmp_path, "crm", "--quick")
    assert {name: {*row["sides"]} - {"segjax"} for name, row in rows.items()} == {
        "CRM, 72 x 100": {"torch, as released", "torch, three stages"},
        "CRM, ways to ask": {"bounded memory", "around the boundary"},
        "CascadePSP, 72 x 100": {"torch"},
        "boundary accuracy, 300 x 450": {"OpenCV"},
    }
    released = rows["CRM, 72 x 100"]["sides"]["torch, as released"]
    assert released["goal"] == {"time": 2.0, "temporary": 2.0}
    for name, row in rows.items():
        for side, found in row["sides"].items():
            if {side} & {"segjax", "around the boundary"}:
                continue  # the one is what is compared with, the other asks less
            assert found["error"] <= 1e-3, (name, side)


@needs_torch
def test_without_transformers_mask2former_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["bench", "mask2former", "--quick"]) == 1
    said = capsys.readouterr().err
    assert "transformers is not installed; run pip install 'segjax[test]'." in said


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
