"""The library against the official implementations, case by case."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.parity import run
from tests.parity.weights import Case, cases, tensor_value

HERE = Path(__file__).parent
KEPT = HERE / "cases"
FOLDER = Path(os.environ.get("SEGJAX_PARITY") or HERE.parents[2] / "shared" / "parity")
METHODS = ("regproxy", "mask2former", "hssn", "crm")

SLOW = {
    "m2f_r50_ade_semantic_tta",
    "hf_m2f_swin_t_ade_90x125",
    "ocrnet_hrnet_w48_cityscapes_64x96",
}
"""Kept cases that compile for a minute or more."""


def kept_cases() -> list:
    """As parameters."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in SLOW))
        for case in cases([KEPT])
    ]


def further_cases() -> list[Case]:
    """The cases of the folder that are not kept here."""
    kept = {case.name for case in cases([KEPT])}
    found = cases(FOLDER / method for method in METHODS) if FOLDER.is_dir() else []
    return [case for case in found if case.name not in kept]


def check(case: Case) -> None:
    if case.what not in run.RUNNERS:
        pytest.skip(f"segjax has nothing that runs {case.what} yet")
    errors = run.errors(case)
    assert errors
    missed = {name: error for name, error in errors.items() if not error <= case.tolerance}
    assert not missed


@pytest.mark.parametrize("case", kept_cases())
def test_kept_case_equals_the_official_output(case):
    check(case)


@pytest.mark.parametrize("case", further_cases(), ids=lambda case: case.name)
def test_further_case_equals_the_official_output(case):
    check(case)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder of further cases (SEGJAX_PARITY)")
def test_the_folder_of_further_cases_has_cases():
    assert cases(FOLDER / method for method in METHODS)


def test_stand_in_tensors_follow_the_rule():
    """Each kind has its scale, and the name alone decides the numbers."""
    kernel = tensor_value("a.weight", (64, 4, 3, 3))
    assert abs(kernel.std() - 1 / 6) < 0.01
    assert np.array_equal(kernel, tensor_value("a.weight", (64, 4, 3, 3)))
    assert not np.array_equal(kernel, tensor_value("b.weight", (64, 4, 3, 3)))
    assert tensor_value("a.num_batches_tracked", ()).dtype == np.int64
    variance = tensor_value("a.running_var", (100,))
    assert 0.5 <= variance.min() < 0.6 and 1.4 < variance.max() <= 1.5
    assert abs(tensor_value("a.weight", (1000,)).mean() - 1) < 0.02
    assert abs(tensor_value("a.bias", (1000,)).mean()) < 0.02


class FakeCase:
    """A case with one output of the given kind."""

    what = "regproxy.pos_embed"

    def __init__(self, shape, stride=None, zero_outputs=()):
        spec = {"shape": list(shape), "stride": stride or [1] * len(shape)}
        self.meta = {"outputs": {"x": spec}, "zero_outputs": list(zero_outputs)}

    stored_part = Case.stored_part


@pytest.mark.parametrize(
    ("ours", "theirs", "passes"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.1], [1.0, 2.0], False),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([0.0, 5e-7], [0.0, 0.0], True),
        ([0.0, 5e-6], [0.0, 0.0], False),
        ([0.0, np.nan], [0.0, 0.0], False),
        ([1.0, 2.0, 3.0], [1.0, 2.0], False),
        ([[1.0, 2.0]], [1.0, 2.0], False),
        ([], [], True),
        ([True, False], [True, True], False),
    ],
)
def test_judgement(ours, theirs, passes):
    """Relative error; all-zero and empty outputs by absolute value; shapes and booleans exact."""
    theirs = np.asarray(theirs)
    error = run.output_error(FakeCase(theirs.shape), "x", {"x": np.asarray(ours)}, theirs)
    assert (error <= 1e-4) == passes


def test_an_output_that_is_absent_misses():
    assert run.output_error(FakeCase((2,)), "x", {}, np.ones(2)) == np.inf


def test_runner_exits_non_zero_on_a_miss_alone(monkeypatch, capsys):
    case = str(KEPT / "regproxy" / "pos_embed.json")
    assert run.main([case]) == 0
    monkeypatch.setitem(run.RUNNERS, "regproxy.pos_embed", lambda *_: {})
    assert run.main([case]) == 1
    assert "FAIL" in capsys.readouterr().out
    monkeypatch.delitem(run.RUNNERS, "regproxy.pos_embed")
    assert run.main([case]) == 0
    assert "no runner" in capsys.readouterr().out
