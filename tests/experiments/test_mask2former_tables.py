"""The zoos of Mask2Former and MaskFormer, MaskFormer's rows elsewhere, and the ablations: published
figures, exact counts, and small twins that differ in one part."""

import argparse
import ast
import json
import re

import pytest

from experiments import comparison
from experiments.comparison import MaskTable, Row
from experiments.mask2former import ablations, maskformer, zoo
from segjax import analysis, config, systems
from segjax.training import loop

ZOO = [(name, row) for name, table in zoo.TABLES.items() for row in table.rows]
ELSEWHERE = [(name, row) for name, table in maskformer.TABLES.items() for row in table.rows]


def ids(pairs):
    return [pytest.param(name, row, id=f"{name}: {row.name}") for name, row in pairs if row.config]


# --------------------------------------------------------------------------------------------------
# What is published

# The zoos' pages, in the order of the rows: R50, R101, Swin-T, -S, -B, -B of ImageNet-22k, -L, as
# far as there are such.
PUBLISHED = {
    "coco_panoptic": "51.9/41.7/61.7 52.6/42.6/62.4 53.2/43.3/63.2 54.6/44.7/64.2 55.1/45.2/65.1"
    " 56.4/46.3/67.1 57.8/48.6/67.4",
    "coco_instance": "43.7/30.6 44.2/31.1 45.0/31.8 46.3/32.9 46.7/33.2 48.1/34.4 50.1/36.2",
    "ade20k_panoptic": "39.7/26.5/46.1 48.1/34.2/54.5",
    "ade20k_instance": "26.4 34.9",
    "ade20k_semantic": "47.2/49.2 47.8/50.1 47.7/49.6 51.3/52.4 52.4/53.7 53.9/55.1 56.1/57.3",
    "cityscapes_panoptic": "62.1/37.3/77.5 62.4/37.7/78.6 63.9/39.1/80.5 64.8/40.7/81.8"
    " 66.1/42.8/82.7 66.6/43.6/82.9",
    "cityscapes_instance": "37.4 38.5 39.7 41.8 42.0 43.7",
    "cityscapes_semantic": "79.4/82.2 80.1/81.9 82.1/83.0 82.6/83.6 83.3/84.5 83.3/84.3",
    "mapillary_panoptic": "36.3/50.7 45.5/60.8",
    "mapillary_semantic": "57.4/59.0 63.2/64.7",
    "maskformer_coco_panoptic": "46.5 47.6 47.7 49.7 51.8 52.7",
    "maskformer_ade20k_panoptic": "34.7 35.7",
    # R101c comes third; the two per-pixel baselines last.
    "maskformer_ade20k_semantic": "44.5/46.7 45.5/47.2 46.0/48.1 46.7/48.8 49.8/51.0 52.7/53.9"
    " 54.1/55.6 39.2/40.9 41.9/42.9",
    "maskformer_cityscapes_semantic": "78.5/80.3 79.7/81.4",
    "maskformer_mapillary_semantic": "53.1/55.4",
}


def figures(row):
    return "/".join(text for column, text in row.paper.items() if column != "FLOPs")


@pytest.mark.parametrize("name", zoo.TABLES)
def test_zoo_rows_have_the_published_figures(name):
    assert " ".join(figures(row) for row in zoo.TABLES[name].rows) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "row"), ids(ZOO))
def test_zoo_rows_say_what_their_configs_say(name, row):
    """A config opens with its backbone and its figures; boundary AP is not among them."""
    path = comparison.ROOT / "configs" / f"{row.config}.py"
    first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
    quoted = re.search(r"[\d./]+(?= \(model zoo\))", first).group()
    assert quoted == (figures(row).split("/")[0] if name == "coco_instance" else figures(row))
    backbone = row.name.split(", ")[-1 if "baseline" in row.name else 0]
    assert f"{backbone}," in first or f"{backbone} (ImageNet-22k)," in first
    assert ("22k" in row.name) == ("22k" in first)


def test_no_config_of_the_zoos_is_left_out_and_none_stands_twice():
    workdirs = [row.workdir for _, row in ZOO]
    paths = (comparison.ROOT / "configs").glob("mask*/*.py")
    there = [f"{path.parent.name}/{path.stem}" for path in paths]
    assert sorted(workdirs) == sorted(name for name in there if not name.endswith("tiny"))


def test_rows_elsewhere_agree_with_the_zoo():
    """The seed papers quote MaskFormer's zoo: PQ or mIoU of the same config is the same."""
    published = {row.config: row.paper for _, row in ZOO}
    same = 0
    for _, row in ELSEWHERE:
        if row.config and not row.overrides:
            for column in row.paper.keys() & published[row.config].keys() - {"FLOPs"}:
                assert row.paper[column] == published[row.config][column]
                same += 1
    assert same == 2 + 5  # mIoU of one scale and of several; five PQ


@pytest.mark.parametrize(("name", "row"), ids([*ZOO, *ELSEWHERE]))
def test_rows_load_with_their_changes_and_measure_what_they_show(name, row):
    recipe = comparison.load(row, row.counted)
    system = systems.build(recipe.model)
    assert system.classes == recipe.model.classes
    shown = {**zoo.TABLES, **maskformer.TABLES}[name].figures
    task = {"mIoU": "semantic", "mIoU MS": "semantic", "AP": "instance"}
    assert {task.get(figure, "panoptic") for figure in shown} <= set(recipe.eval.tasks)


# --------------------------------------------------------------------------------------------------
# What is counted

# Trained numbers of the official models (frozen batch norms are not), counted there; those of the
# other rows are in tests/test_configs.py.
PARAMETERS = {
    "mask2former/ade20k_semantic_swin_s": 68_757_537,
    "mask2former/ade20k_semantic_swin_b": 106_922_191,
    "maskformer/coco_panoptic_swin_s": 63_070_544,
    "maskformer/coco_panoptic_swin_b": 101_825_022,
    "maskformer/ade20k_semantic_r101": 60_194_647,
    "maskformer/ade20k_semantic_swin_t": 41_757_009,
    "maskformer/ade20k_semantic_swin_l": 211_575_627,
    "maskformer/ade20k_panoptic_r101": 63_956_311,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_official_models(name):
    row = next(row for _, row in ZOO if row.config == name)
    system = systems.build(comparison.load(row, row.counted).model)
    assert analysis.parameters(system) == PARAMETERS[name]


def test_hssns_row_is_the_swin_with_the_classes_of_cityscapes():
    row = maskformer.TABLES["hssn_2"].rows[0]
    recipe = comparison.load(row)
    other = comparison.load(Row("", "maskformer/ade20k_semantic_swin_s"))
    heads = (150 - 19) * (256 + 1)
    assert analysis.parameters(systems.build(recipe.model)) == 63_074_913 - heads
    factors = [factor for _, factor in other.optimizer.rates]
    assert tuple(recipe.optimizer.rates) == () and factors == [1.0]
    for part, field in (
        ("optimizer", "learning_rate"),
        ("optimizer", "weight_decay"),
        ("schedule", "warmup_steps"),
        ("schedule", "name"),
    ):
        assert recipe[part][field] == other[part][field]


@pytest.mark.parametrize(
    ("tables", "name", "index", "cells"),
    [
        (zoo, "ade20k_semantic", 0, ["43.988M", "70.75G", "512 x 512"]),
        (maskformer, "regproxy_4", 0, ["41.757M", "55.16G", "512 x 512"]),
        pytest.param(
            zoo,
            "ade20k_semantic",
            4,
            ["106.922M", "223.39G", "640 x 640"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_cells_are_the_known_counts(tables, name, index, cells):
    row = tables.TABLES[name].rows[index]
    assert comparison._mask_costs(row) == cells
    # The paper's figures are these, rounded.
    paper = [f"{float(cell[:-1]):.0f}{cell[-1]}" for cell in cells[:2]]
    assert row.paper["FLOPs"] == paper[1]
    assert row.paper.get("#params", paper[0]) == paper[0]


def test_a_per_pixel_baseline_has_no_known_flops():
    row = zoo.TABLES["maskformer_ade20k_semantic"].rows[-1]
    parameters, flops, _ = comparison._mask_costs(row)
    assert flops == "-" and parameters.endswith("M")


# --------------------------------------------------------------------------------------------------
# The tables as they are printed


@pytest.fixture
def quick(monkeypatch):
    """Counts that take no time."""
    flops = analysis.FvcoreFlops(12_340_000_000, 1_000_000_000, 0, 0, 0)
    monkeypatch.setattr(analysis, "fvcore_flops", lambda system, size: flops)
    monkeypatch.setattr(analysis, "parameters", lambda system: 7_654_321)


def printed(capsys):
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    return [re.split(r"\s*│\s*", line)[1:-1] for line in lines]


@pytest.mark.parametrize("module", [zoo, maskformer], ids=["zoo", "elsewhere"])
def test_every_table_prints_every_number_unbroken(module, quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert module.main([f"--runs={tmp_path}"]) == 0
    lines = printed(capsys)
    rows = [row for table in module.TABLES.values() for row in table.rows]
    assert [cells[0] for cells in lines] == [row.name for row in rows]
    for row, cells in zip(rows, lines):
        shown = [text for text in cells[1:-4] if text]
        assert shown == [text for text in row.paper.values() if text]
        if row.config:
            assert cells[-4:-2] == ["7.654M", "11.34G"] and cells[-1] == "-"
            assert re.fullmatch(r"\d+ x \d+", cells[-2])


def test_one_table_is_asked_for(quick, tmp_path, capsys):
    assert zoo.main(["--table=mapillary_panoptic", f"--runs={tmp_path}"]) == 0
    assert [cells[0] for cells in printed(capsys)] == ["R50", "Swin-L"]
    with pytest.raises(SystemExit):
        zoo.main(["--table=mapillary"])


PANOPTIC = {"things": {"PQ": 5.0}, "stuff": {"PQ": 6.125}}


@pytest.mark.parametrize(
    ("figures", "single", "several", "cell"),
    [
        (("mIoU", "mIoU MS"), {"mIoU": 47.214}, {"mIoU": 49.2}, "47.21 / 49.20"),
        (("mIoU", "mIoU MS"), {"mIoU": 47.214}, None, "47.21 / -"),
        (("PQ", "AP", "mIoU"), {"PQ": 1.0, "AP": None, "mIoU": 3.0}, None, "1.00 / - / 3.00"),
        (("PQ", "PQth", "PQst"), {"PQ": 1.0, "panoptic": PANOPTIC}, None, "1.00 / 5.00 / 6.12"),
        (("PQth",), {"PQ": 1.0}, None, "-"),
    ],
)
def test_what_was_measured_is_shown(figures, single, several, cell, quick, tmp_path, capsys):
    row = Row("R50", "mask2former/ade20k_semantic_r50", {"mIoU": "47.2"})
    workdir = tmp_path / row.workdir
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text("{}")
    (workdir / "single_scale.json").write_text(json.dumps(single))
    if several is not None:
        (workdir / "multi_scale.json").write_text(json.dumps(several))
    comparison.print_masks(MaskTable("T", figures, (row,)), tmp_path, measure=False)
    assert printed(capsys)[0][-1] == cell


def test_measuring_evaluates_at_the_scales_that_are_shown(quick, tmp_path, monkeypatch, capsys):
    row = Row("R50", "mask2former/ade20k_semantic_r50", {"mIoU": "47.2"})
    workdir = tmp_path / row.workdir
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text("{}")
    asked = []

    def evaluated(folder, overrides):
        asked.append((folder, tuple(overrides)))
        return {"mIoU": 40.0 + len(overrides), "PQ": 30.0}

    monkeypatch.setattr(comparison, "_evaluated", evaluated)
    comparison.print_masks(MaskTable("T", ("PQ",), (row,)), tmp_path, measure=True)
    assert printed(capsys)[0][-1] == "30.00" and asked == [(workdir, ())]
    comparison.print_masks(MaskTable("T", ("mIoU", "mIoU MS"), (row,)), tmp_path, measure=True)
    assert printed(capsys)[0][-1] == "40.00 / 42.00"
    assert asked[1:] == [(workdir, ()), (workdir, comparison.MULTI_SCALE)]


# --------------------------------------------------------------------------------------------------
# Ablations

SWITCHES = {
    "Mask2Former": {},
    "no masked attention": {"model.masked": False},
    "no deep supervision": {"model.deep_supervision": False},
    "full masks, no points": {"model.points": 0},
    "bare queries uncharged": {"model.supervise_queries": False},
    "queries from zeros": {"model.learnable_queries": False, "model.supervise_queries": False},
}


@pytest.mark.parametrize("row", ablations.TINY, ids=lambda row: row.name)
def test_a_twin_differs_from_the_whole_model_in_its_part_alone(row):
    whole, twin = (
        comparison.load(r, [*comparison.TINY, *ablations.BUDGET]) for r in (ablations.TINY[0], row)
    )
    changed = SWITCHES[row.name]
    for path, value in changed.items():
        part, field = path.split(".")
        assert twin[part][field] == value
        twin[part][field] = whole[part].get(field)
        if twin[part][field] is None:
            del twin[part][field]
    assert twin.to_dict() == whole.to_dict()
    assert whole.eval.metric == "PQ" and whole.eval.tasks == ("panoptic", "semantic")


def test_the_last_change_of_a_field_holds_and_a_rows_own_over_all():
    row = Row("", ablations.CONFIG, overrides=("--config.model.points=0",))
    more = ("--config.model.points=7", "--config.eval.crop=(64, 64)", "--config.eval.crop=(32, 48)")
    recipe = comparison.load(row, more)
    assert recipe.model.points == 0 and tuple(recipe.eval.crop) == (32, 48)
    assert comparison.load(row, ["--config.steps", "7"]).steps == 7


@pytest.mark.parametrize("row", ablations.TINY[1:], ids=lambda row: row.name)
def test_a_twin_changes_what_the_paper_takes_away(row):
    """The same switches, on the large model's row of the same name, reach the system."""
    large = next(r for r in ablations.TABLE.rows if r.name == row.name)
    assert large.overrides == row.overrides
    system = systems.build(comparison.load(row, ablations.BUDGET).model)
    predictor, settings = system.module.predictor, system.settings
    found = {
        "model.masked": predictor.masked,
        "model.learnable_queries": predictor.learnable_queries,
        "model.points": settings.points,
        "model.deep_supervision": settings.deep_supervision,
        "model.supervise_queries": settings.supervise_queries,
    }
    usual = {
        "model.masked": True,
        "model.learnable_queries": True,
        "model.points": 48,
        "model.deep_supervision": True,
        "model.supervise_queries": True,
    }
    assert found == usual | SWITCHES[row.name]


def test_claims_are_about_the_twins_and_quote_the_rows_of_the_paper():
    names = [row.name for row in ablations.TINY]
    assert [claim.worse for claim in ablations.CLAIMS] == names[1:]
    published = {row.name: row.paper for row in ablations.TABLE.rows}
    for claim in ablations.CLAIMS:
        assert claim.better == names[0]
        if published[claim.worse]:
            pairs = [
                f"{metric} {published[claim.better][metric]} and {published[claim.worse][metric]}"
                for metric in ("PQ", "mIoU")
            ]
            assert claim.paper == ", ".join(pairs)


def test_the_plain_form_prints_the_papers_numbers(quick, tmp_path, capsys):
    assert ablations.main([f"--runs={tmp_path}"]) == 0
    lines = printed(capsys)
    assert [cells[0] for cells in lines] == [row.name for row in ablations.TINY]
    assert lines[1][1:4] == ["37.8", "47.1", "45.5"]


def test_zero_queries_save_their_features():
    rows = {row.name: row for row in ablations.TINY}
    whole, zeros = (
        analysis.parameters(systems.build(comparison.load(rows[name], ablations.BUDGET).model))
        for name in ("Mask2Former", "queries from zeros")
    )
    assert whole - zeros == 20 * 64


def test_twins_are_judged_on_both_metrics(monkeypatch, tmp_path, capsys):
    """A training in which masked attention is worth 3 PQ, the rest nothing, and mIoU is noise."""

    def train(recipe, workdir):
        config.save(recipe, workdir / "config.json")
        quality = 50.0 + recipe.seed - 3.0 * (not recipe.model.get("masked", True))
        noise = (-1.0) ** recipe.seed * len(recipe.model)
        return {"PQ": quality, "mIoU": 60.0 + noise, "step": 5, "classes": []}

    monkeypatch.setattr(loop, "train", train)
    out = tmp_path / "results.json"
    argv = ["--tiny", "--seeds=2", f"--runs={tmp_path}", f"--out={out}", "--config.steps=5"]
    assert ablations.main(argv) == 0
    result = json.loads(out.read_text())
    assert result["metrics"] == ["PQ", "mIoU"] and result["budget"][-1] == "--config.steps=5"
    assert [row["name"] for row in result["rows"]] == list(SWITCHES)
    assert result["rows"][1]["PQ"] == [47.0, 48.0]
    assert (result["rows"][1]["mean"], result["rows"][1]["spread"]) == (47.5, 0.71)
    verdicts = {(c["metric"], c["worse"]): c["verdict"] for c in result["claims"]}
    assert len(verdicts) == 2 * len(ablations.CLAIMS)
    assert verdicts["PQ", "no masked attention"] == "shows"
    assert verdicts["PQ", "queries from zeros"] == "undecided: seeds disagree"
    assert verdicts["mIoU", "no masked attention"] == "undecided: seeds disagree"
    text = capsys.readouterr().out
    assert "47.50 ± 0.71" in text and "47.00  48.00" in text
    assert "Mask2Former above no masked attention: PQ +3.00 ± 0.00, shows" in text


MICRO = (
    "--config.data.dataset.size=(32, 32)",
    "--config.data.dataset.train=8",
    "--config.data.dataset.validation=2",
    "--config.data.batch=8",
    "--config.augment.scale=(32, 32)",
    "--config.augment.crop=(32, 32)",
    "--config.eval.scale=(32, 32)",
    "--config.model.backbone.width=16",
    "--config.model.layers=1",
    "--config.model.features=32",
    "--config.model.hidden=8",
    "--config.model.queries=3",
    "--config.model.points=4",
    "--config.schedule.warmup_steps=1",
)


@pytest.mark.slow
def test_a_real_training_of_a_twin(tmp_path):
    """One step of a micro model; a second call takes it from its workdir."""
    args = argparse.Namespace(seeds=1, runs=tmp_path / "runs", out=None)
    rows = [row for row in ablations.TINY if row.name == "full masks, no points"]
    budget = [*ablations.BUDGET, *MICRO, "--config.steps=1"]
    result = comparison.run_tiny("T", rows, [], args, budget, ("PQ", "mIoU"))
    assert all(0 <= result["rows"][0][metric][0] <= 100 for metric in ("PQ", "mIoU"))
    assert comparison.run_tiny("T", rows, [], args, budget, ("PQ", "mIoU")) == result
