"""The tables of RegProxy: rows that load, costs that are known, and verdicts on small trainings."""

import argparse
import json
import re

import jax
import jax.numpy as jnp
import pytest

from experiments import comparison
from experiments.comparison import Claim, Row
from experiments.regproxy import pilot, table3, table4, table5, table7
from segjax import analysis, cli, config, systems
from segjax.data import datasets
from segjax.errors import SegjaxError
from segjax.training import checkpoints, loop

TABLES = {"3": table3, "4": table4, "5": table5, "7": table7, "pilot": pilot}

# Millions of parameters, billions of multiply-adds in mmcv's count and of all, where known: counted
# with the official models, for a window (Table 5: for the 8 windows of an image).
COSTS = {
    ("3", "regproxy/ade20k_ti16"): (5.779494, 3.887, 10.55),
    ("3", "regproxy/ade20k_s16"): (22.249254, 15.10, 32.04),
    ("3", "regproxy/ade20k_b16"): (87.261990, 59.59, 108.0),
    ("3", "regproxy/ade20k_l16"): (306.102566, 325.93, 612.9),
    ("4", "regproxy/ade20k_r26_s32"): (36.392038, 3.94, 18.57),
    ("4", "regproxy/ade20k_r50_l32"): (329.692518, 82.24, 163.8),
    ("5", "regproxy/cityscapes_ti16"): (5.999971, 69.5, 8 * 37.2),
    ("5", "regproxy/cityscapes_s16"): (22.690339, 270.8, 8 * 99.1),
    ("7", "linear_vit/ade20k_s16"): (22.04, 14.89, None),
    ("3", "setr/ade20k_mla"): (309.57, 333.82, None),
    ("3", "upernet/ade20k_vit_b16"): (144.18, 395.13, None),
}


def rows():
    """(table, row) of everything that is not merely quoted."""
    return [
        pytest.param(row, id=f"{table}: {row.name}")
        for table, module in TABLES.items()
        for row in (*module.ROWS, *module.TINY)
        if row.config
    ]


# --------------------------------------------------------------------------------------------------
# The tables as they are written


@pytest.mark.parametrize("row", rows())
def test_every_row_loads_with_its_changes(row):
    recipe = comparison.load(row, row.counted)
    assert systems.build(recipe.model).classes == recipe.model.classes
    tiny = comparison.load(row, comparison.TINY) if "tiny" in row.config else None
    assert tiny is None or tiny.steps == 300


@pytest.mark.parametrize("module", TABLES.values(), ids=TABLES)
def test_claims_are_about_tiny_rows(module):
    names = [row.name for row in module.TINY]
    assert len(set(names)) == len(names)
    for claim in module.CLAIMS:
        assert {claim.better, claim.worse} <= set(names) and claim.better != claim.worse


@pytest.mark.parametrize("module", TABLES.values(), ids=TABLES)
def test_no_two_rows_share_a_workdir(module):
    for part in (module.ROWS, module.TINY):
        workdirs = [row.workdir for row in part if row.config]
        assert len(set(workdirs)) == len(workdirs)


def test_differences_in_claims_are_those_of_the_rows():
    """Table 3's claims quote differences on ADE20K; its rows hold what they are made of."""
    single = [float(row.paper[table3.ADE].split()[0]) for row in table3.ROWS]
    names = [row.name for row in table3.ROWS]
    gaps = {"RegProxy": [], "Mask.T": []}
    base = 0.0
    for name, miou in zip(names, single):
        base = miou if name.startswith("ViT") else base
        if name.removeprefix("+") in gaps:
            gaps[name.removeprefix("+")].append(miou - base)
    text = "+{:.1f} (Ti), +{:.1f} (S), +{:.1f} (B), +{:.1f} (L) on ADE20K"
    assert table3.CLAIMS[0].paper == text.format(*gaps["RegProxy"])
    above = [a - b for a, b in zip(gaps["RegProxy"], gaps["Mask.T"])]
    assert table3.CLAIMS[1].paper == text.format(*above)


@pytest.mark.parametrize(("table", "name"), COSTS, ids=lambda text: text)
def test_costs_are_those_that_are_known(table, name):
    row = next(row for row in TABLES[table].ROWS if row.config == name)
    parameters, mmcv, everything, size = comparison._costs(row, all_windows=table == "5")
    known = COSTS[table, name]
    assert float(parameters.removesuffix("M")) == pytest.approx(known[0], abs=0.006)
    assert float(mmcv.removesuffix("G")) == pytest.approx(known[1], rel=1e-3)
    if known[2] is not None:
        assert float(everything.removesuffix("G")) == pytest.approx(known[2], rel=1e-2)
    assert size.startswith("8 x 768 x 768" if table == "5" else ("512 x 512", "640 x 640"))


@pytest.mark.parametrize("table", TABLES)
def test_the_plain_form_prints_every_number_unbroken(table, monkeypatch, tmp_path, capsys):
    cost = analysis.Cost((512, 640), 3, 7_654_321, 0, 20_000_000_000, 9_870_000_000)
    monkeypatch.setattr(analysis, "of_config", lambda recipe: cost)
    monkeypatch.setenv("COLUMNS", "80")
    module = TABLES[table]
    assert module.main([f"--runs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed and "MACs, mmcv" in printed and "MACs, all" in printed
    lines = [re.split(r"\s*│\s*", line)[1:-1] for line in printed.splitlines() if "│" in line]
    assert [cells[0] for cells in lines] == [row.name for row in module.ROWS]
    for row, cells in zip(module.ROWS, lines):
        assert [text for text in row.paper.values() if text] == [
            text for text in cells[1 : 1 + len(cells) - 6] if text
        ]
        if row.config:
            counted = ["29.61G", "60.00G", "3 x 512 x 640"] if table == "5" else None
            assert cells[-5:] == ["7.654M", *(counted or ["9.87G", "20.00G", "512 x 640"]), "-"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--fast"], "--fast means nothing without --tiny"),
        (["--config.steps=3"], "--config.steps=3 means nothing without --tiny"),
        (["--tiny", "--seeds=0"], "take 1 or more"),
        (["--tiny", "--fast=1"], "--fast"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(argv, sentence, tmp_path, capsys):
    assert cli.run(table3.main, [*argv, f"--runs={tmp_path}"]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


# --------------------------------------------------------------------------------------------------
# mIoU of workdirs

MICRO = (
    "--config.model.backbone.width=32",
    "--config.model.backbone.depth=1",
    "--config.model.backbone.heads=2",
    "--config.model.image_size=(32, 32)",
    "--config.data.dataset.size=(32, 32)",
    "--config.data.dataset.train=8",
    "--config.data.dataset.validation=3",
    "--config.data.batch=8",
    "--config.augment.scale=(32, 32)",
    "--config.augment.crop=(32, 32)",
    "--config.eval.scale=(32, 32)",
    "--config.eval.crop=(32, 32)",
    "--config.schedule.warmup_steps=1",
    "--config.log.tensorboard=False",
)
LINEAR = Row("linear", "linear_vit/shapescapes_tiny", {"mIoU": "1.0"})
REGPROXY = Row("RegProxy", "regproxy/shapescapes_tiny", overrides=("--config.model.early_block=0",))


def measured(capsys):
    """The last cell of each row."""
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    return [re.split(r"\s*│\s*", line)[-2] for line in lines]


def test_workdirs_of_the_rows_are_measured_and_remembered(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "MULTI_SCALE", ("--config.eval.flip=True",))
    recipe = comparison.load(LINEAR, MICRO)
    workdir = tmp_path / "linear_vit" / "shapescapes_tiny"
    image = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    variables = jax.jit(systems.build(recipe.model).init)(jax.random.key(0), {"image": image})
    checkpoints.save_variables(workdir, variables, step=3)
    config.save(recipe, workdir / "config.json")
    datasets.label_space(recipe.data.dataset).save(workdir / "label_space.json")
    rows = (LINEAR, REGPROXY)

    comparison.print_costs("table", rows, tmp_path, measure=False)
    assert measured(capsys) == ["- / -", "-"]
    comparison.print_costs("table", rows, tmp_path, measure=True)
    found = measured(capsys)
    assert re.fullmatch(r"\d+\.\d\d / \d+\.\d\d", found[0]) and found[1] == "-"
    single = json.loads((workdir / "single_scale.json").read_text())
    assert single["images"] == 3 and f"{single['mIoU']:.2f}" == found[0].split(" / ")[0]
    comparison.print_costs("table", rows, tmp_path, measure=False)
    assert measured(capsys) == found


def test_data_that_is_not_there_is_told_and_leaves_a_dash(tmp_path, capsys):
    row = Row("ours", "regproxy/ade20k_ti16")
    workdir = tmp_path / row.workdir
    workdir.mkdir(parents=True)
    config.save(comparison.load(row), workdir / "config.json")
    comparison.print_costs("table", [row], tmp_path, measure=True)
    printed = capsys.readouterr()
    assert "ours: " in printed.err and "ADE" in printed.err
    assert "- / -" in printed.out


# --------------------------------------------------------------------------------------------------
# Small twins


def arguments(folder, seeds=2):
    return argparse.Namespace(seeds=seeds, runs=folder / "runs", out=folder / "results.json")


@pytest.fixture
def trainings(monkeypatch):
    """In place of training: mIoU by system and seed; returns the list of what was trained."""
    done = []

    def train(recipe, workdir):
        done.append((recipe.model.system, recipe.seed))
        config.save(recipe, workdir / "config.json")
        return {"mIoU": 10.0 * len(recipe.model.system) + recipe.seed + recipe.steps / 1000}

    monkeypatch.setattr(loop, "train", train)
    return done


def test_mean_spread_and_verdict(trainings, tmp_path, capsys):
    claims = [Claim("linear", "RegProxy", "+20"), Claim("RegProxy", "linear", "-20")]
    result = comparison.run_tiny("T", [REGPROXY, LINEAR], claims, arguments(tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == result
    regproxy, linear = result["rows"]
    assert regproxy["mIoU"] == [80.3, 81.3] and linear["mIoU"] == [100.3, 101.3]
    assert (regproxy["mean"], regproxy["spread"]) == (80.8, 0.71)
    assert regproxy["overrides"] == list(REGPROXY.overrides)
    assert [claim["verdict"] for claim in result["claims"]] == ["shows", "the opposite shows"]
    assert (result["claims"][0]["gap"], result["claims"][0]["spread"]) == (20.0, 0.0)
    assert result["budget"] == list(comparison.TINY) and "jax" in result["machine"]
    printed = capsys.readouterr().out
    assert "80.80 ± 0.71" in printed and "80.30  81.30" in printed
    assert "linear above RegProxy: +20.00 ± 0.00, shows  (paper: +20)" in printed
    assert trainings == [("regproxy", 0), ("linear_vit", 0), ("regproxy", 1), ("linear_vit", 1)]


def test_one_seed_has_no_spread(trainings, tmp_path, capsys):
    claims = [Claim("linear", "RegProxy", "+20")]
    result = comparison.run_tiny("T", [REGPROXY, LINEAR], claims, arguments(tmp_path, seeds=1))
    assert result["rows"][0]["spread"] is None and result["claims"][0]["spread"] is None
    assert "±" not in capsys.readouterr().out.replace("mean ± spread", "")


def test_what_was_trained_is_not_trained_again(trainings, tmp_path):
    first = comparison.run_tiny("T", [REGPROXY], [], arguments(tmp_path, seeds=1))
    again = comparison.run_tiny("T", [REGPROXY], [], arguments(tmp_path))
    assert trainings == [("regproxy", 0), ("regproxy", 1)]
    assert again["rows"][0]["mIoU"][:1] == first["rows"][0]["mIoU"]


def test_a_workdir_of_other_settings_is_refused(trainings, tmp_path):
    comparison.run_tiny("T", [LINEAR], [], arguments(tmp_path))
    with pytest.raises(SegjaxError, match=r"seed_0: it was trained with other settings"):
        comparison.run_tiny("T", [LINEAR], [], arguments(tmp_path), ["--config.steps=7"])


@pytest.mark.parametrize("module", TABLES.values(), ids=TABLES)
def test_every_table_has_its_tiny_form(module, trainings, tmp_path):
    out = tmp_path / "results.json"
    argv = ["--tiny", "--seeds=2", f"--runs={tmp_path}", f"--out={out}", "--config.steps=5"]
    assert module.main(argv) == 0
    result = json.loads(out.read_text())
    assert [row["name"] for row in result["rows"]] == [row.name for row in module.TINY]
    assert len(result["claims"]) == len(module.CLAIMS)
    for claim in result["claims"]:
        assert claim["verdict"] in ("shows", "the opposite shows", "undecided: seeds disagree")
    assert len(trainings) == 2 * len(module.TINY)


@pytest.mark.parametrize(
    ("better", "worse", "verdict", "gap", "spread"),
    [
        ([3.0, 5.0], [1.0, 2.0], "shows", 2.5, 0.71),
        ([1.0, 2.0], [3.0, 5.0], "the opposite shows", -2.5, 0.71),
        ([3.0, 1.0], [1.0, 2.0], "undecided: seeds disagree", 0.5, 2.12),
        ([9.0, 2.0, 5.0], [1.0, 2.0, 4.0], "undecided: seeds disagree", 3.0, 4.36),
    ],
    ids=["better", "worse", "mixed", "one tie"],
)
def test_verdicts_ask_every_seed(better, worse, verdict, gap, spread):
    judged = comparison._judged(Claim("a", "b", ""), {"a": better, "b": worse})
    assert (judged["verdict"], judged["gap"], judged["spread"]) == (verdict, gap, spread)


@pytest.mark.slow
def test_two_real_trainings_of_two_seeds(tmp_path, capsys):
    """One step each of a micro model; another seed is another model, a second call trains none."""
    claims = [Claim("RegProxy", "linear", "+3.1")]
    overrides = [*MICRO, "--config.steps=1"]
    result = comparison.run_tiny("T", [REGPROXY, LINEAR], claims, arguments(tmp_path), overrides)
    for row in result["rows"]:
        assert len(set(row["mIoU"])) == 2 and all(0 <= value <= 100 for value in row["mIoU"])
        assert min(row["seconds"]) > 0
    workdirs = sorted(path.parent for path in (tmp_path / "runs").rglob("tiny.json"))
    assert len(workdirs) == 4
    for workdir in workdirs:
        assert "done: mIoU" in (workdir / "said.txt").read_text()
    assert "done: mIoU" not in capsys.readouterr().out
    again = comparison.run_tiny("T", [REGPROXY, LINEAR], claims, arguments(tmp_path), overrides)
    assert again == result
