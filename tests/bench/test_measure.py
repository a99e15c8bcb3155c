"""Turns, medians, ratios and the report."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from segjax.bench import measure
from segjax.bench.measure import OURS, Contest, Goal, Side
from segjax.errors import SegjaxError


@pytest.fixture
def clock(monkeypatch):
    """A clock that the sides set forward, and a record of who ran."""

    class Clock:
        def __init__(self):
            self.now, self.ran = 0.0, []

        def side(self, name, seconds, temporary=None):
            durations = iter(seconds)

            def run():
                self.ran.append(name)
                self.now += next(durations)

            return Side(run, temporary, lambda: self.ran.append(f"before {name}"))

    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)
    return clock


def test_sides_take_turns_and_each_round_begins_with_another(clock):
    sides = {name: clock.side(name, [1.0] * 9) for name in "abc"}
    measure.alternate(sides, 3)
    turns = [name for name in clock.ran[6:] if not name.startswith("before")]
    assert "".join(turns) == "abc" + "bca" + "cab"
    assert clock.ran[6:8] == ["before a", "a"]


def test_a_short_run_is_repeated_within_its_turn(clock):
    samples = measure.alternate({"a": clock.side("a", [0.02] * 99)}, 2)
    assert clock.ran[2:].count("a") == 2 * 5
    np.testing.assert_allclose(samples["a"], 0.02)


def test_medians_and_ratios_are_over_the_rounds(clock):
    """A slow moment of the machine hits both sides of its round, and doesn't move the ratio."""
    ours = clock.side(OURS, [9.0, 9.0, 1.0, 10.0, 2.0], temporary=100)
    theirs = clock.side("torch", [9.0, 9.0, 3.0, 30.0, 5.0], temporary=1000)
    goals = {"torch": Goal(3.0, 10.0)}
    row = measure.measure("x", Contest({OURS: ours, "torch": theirs}, goals=goals), 3)
    assert row["sides"][OURS]["median_s"] == 2.0
    torch = row["sides"]["torch"]
    assert torch["samples_s"] == [3.0, 30.0, 5.0]
    assert (torch["median_s"], torch["fastest_s"], torch["slowest_s"]) == (5.0, 3.0, 30.0)
    assert torch["ratio"] == 3.0
    assert torch["temporary_ratio"] == 10.0
    assert torch["reached"] is True


def test_a_goal_of_memory_is_missed_by_memory(clock):
    ours, theirs = clock.side(OURS, [1.0] * 3, 100), clock.side("plain", [9.0] * 3, 900)
    contest = Contest({OURS: ours, "plain": theirs}, goals={"plain": Goal(3.0, 10.0)})
    assert measure.measure("x", contest, 1)["sides"]["plain"]["reached"] is False


def test_what_a_contest_holds_is_closed_also_after_a_failure():
    closed = []

    def fail():
        raise KeyError

    contest = Contest({OURS: Side(fail)}, close=lambda: closed.append(1))
    with pytest.raises(KeyError):
        measure.measure("x", contest, 1)
    assert closed == [1]


def test_errors_are_relative_and_of_labels_the_share_that_differs():
    assert measure.error_of([1.0, 4.0], [1.0, 4.4]) == pytest.approx(0.4 / 4.4)
    assert measure.error_of(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0])) == 0.25
    assert measure.error_of(np.zeros(2), np.zeros(3)) == np.inf
    assert measure.error_of([np.nan], [1.0]) == np.inf


def test_sides_that_disagree_are_not_timed():
    with pytest.raises(SegjaxError, match=r"forward: the two sides disagree \(error 5\.0e-01"):
        measure.agree("forward", [1.0], [2.0], 0.1)


def test_a_compiled_side_tells_its_result_and_its_temporary_bytes():
    x = jnp.ones((64, 64))
    side, result = measure.compiled(lambda x: jnp.sin(x @ x) @ x, x)
    np.testing.assert_allclose(result, np.sin(64.0) * 64, rtol=1e-5)
    assert side.temporary >= x.nbytes


def test_the_report_is_printed_and_written(clock, capsys, tmp_path):
    contest = Contest(
        {OURS: clock.side(OURS, [1.0] * 3, 2**20), "torch": clock.side("torch", [2.0] * 3)},
        errors={"torch": 1e-6},
        absent={"torch.compile": "no compiler"},
        goals={"torch": Goal(3.0)},
    )
    rows = measure.measure_all([("Ti forward", lambda: contest)], 1)
    out = tmp_path / "new" / "report.json"
    measure.publish("regproxy", {"side": 64}, rows, str(out))
    printed = capsys.readouterr().out
    assert re.search(r"segjax +1000 ms +1\.0 MiB", printed)
    assert re.search(r"torch +2000 ms +2x +1e-06 +3x: MISSED", printed)
    assert "torch.compile: not available (no compiler)" in printed
    report = json.loads(out.read_text())
    assert report["benchmark"] == "regproxy" and report["settings"] == {"side": 64}
    assert report["rows"] == rows
    assert report["machine"]["versions"]["jax"] and report["machine"]["threads"] >= 1


def test_a_report_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SegjaxError, match=r"report\.json: it cannot be written"):
        measure.publish("ops", {}, [], str(tmp_path / "file" / "report.json"))


def test_a_row_that_fails_is_told_and_leaves_the_others(capsys):
    def disagreeing():
        measure.agree("forward", [1.0], [2.0], 0.1)

    def fine():
        return measure.Contest({measure.OURS: measure.Side(lambda: None)})

    rows = measure.measure_all([("first", disagreeing), ("second", fine)], 1)
    assert not rows[0]["sides"] and "the two sides disagree" in rows[0]["absent"]["all sides"]
    assert measure.OURS in rows[1]["sides"]
    measure.publish("ops", {}, rows)
    assert "the two sides" in capsys.readouterr().out
