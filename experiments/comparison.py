"""What the experiments of a paper share: rows of a table, what they cost, and small trainings.

A table has two forms. The plain one prints the paper's numbers beside what this machine has:
parameters and multiply-adds, counted exactly, and mIoU where a workdir of the row is there.
`--tiny` trains small twins of the rows on generated scenes, several seeds each, and says whether
the paper's direction shows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

import segjax
from segjax import analysis, config, systems
from segjax.data import datasets
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import evaluation
from segjax.runtime import setup
from segjax.training import checkpoints, loop

ROOT = pathlib.Path(__file__).resolve().parents[1]

MULTI_SCALE = (
    "--config.eval.flip=True",
    "--config.eval.ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a paper's table.

    Attributes:
        name: as the table prints it.
        config: file below configs/, without ".py"; "" for what is only quoted.
        paper: column -> the paper's number, as printed there.
        overrides: changes to the config.
        counted: further changes for counting alone, where the paper counts at another size than
            the model is evaluated at.
    """

    name: str
    config: str = ""
    paper: dict[str, str] = dataclasses.field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()

    @property
    def workdir(self) -> str:
        """Its name below RUNS: "regproxy/ade20k_s16_early_block0"."""
        return "_".join([self.config, *map(_short, self.overrides)])


@dataclasses.dataclass(frozen=True)
class Claim:
    """The paper's direction: the row `better` has the higher mIoU.

    Attributes:
        better, worse: names of tiny rows.
        paper: where the paper says so, with its numbers.
    """

    better: str
    worse: str
    paper: str


def arguments(doc: str, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that every table has; what is left over are changes to the tiny configs.

    Raises:
        SegjaxError: an option that means nothing here.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tiny", action="store_true", help="train small twins of the rows")
    parser.add_argument("--seeds", default=3, type=int, help="trainings of each tiny row")
    parser.add_argument(
        "--runs", default="runs", type=pathlib.Path, help="where workdirs are found and made"
    )
    parser.add_argument(
        "--measure", action="store_true", help="evaluate the rows' workdirs in RUNS first"
    )
    parser.add_argument("--out", type=pathlib.Path, help="also write the tiny results as JSON here")
    args, overrides = parser.parse_known_args(argv)
    if args.seeds < 1:
        raise SegjaxError(f"--seeds={args.seeds}: take 1 or more.")
    if overrides and not args.tiny:
        raise SegjaxError(f"{overrides[0]} means nothing without --tiny; see --help.")
    return args, overrides


# --------------------------------------------------------------------------------------------------
# What a row costs, and what it reaches where weights and data are


def print_costs(
    title: str,
    rows: Sequence[Row],
    runs: pathlib.Path,
    measure: bool,
    all_windows: bool = False,
) -> None:
    """A table of the paper's numbers beside exact counts and the mIoU found in `runs`.

    Args:
        title: above it.
        rows: its lines.
        runs: where workdirs are looked for.
        measure: evaluates them; otherwise only what was measured before is shown.
        all_windows: multiply-adds of a whole image, not of one window.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    columns = list(dict.fromkeys(column for row in rows for column in row.paper))
    table = Table(title=title)
    table.add_column("row", no_wrap=True)
    for name in columns:
        table.add_column(f"paper\n{name}", justify="right", no_wrap=True)
    for name in ("here\nparams", "here\nMACs, mmcv", "here\nMACs, all", "here\ninput"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("here\nmIoU SS / MS", justify="right", no_wrap=True)
    for row in track(rows, len(rows), title):
        cells = [row.paper.get(name, "") for name in columns]
        table.add_row(row.name, *cells, *_costs(row, all_windows), _reached(row, runs, measure))
    console = Console()
    natural = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, natural)  # long lines are better than broken numbers
    console.print(table)
    named = next(row for row in rows if row.config)
    print(
        "MACs, mmcv: as the papers count, without attention. MACs, all: every convolution and"
        f" matrix product.\nmIoU here: of workdirs such as {runs / named.workdir}, once measured"
        " with --measure."
    )


def load(row: Row, more: Sequence[str] = ()) -> config.ConfigDict:
    """The config of a row."""
    return config.load(str(ROOT / "configs" / f"{row.config}.py"), [*row.overrides, *more])


def _costs(row: Row, all_windows: bool) -> list[str]:
    if not row.config:
        return ["", "", "", ""]
    cost = analysis.of_config(load(row, row.counted))
    times = cost.windows if all_windows else 1
    return [
        f"{cost.parameters / 1e6:.3f}M",
        f"{cost.macs_mmcv * times / 1e9:.2f}G",
        f"{cost.macs * times / 1e9:.2f}G",
        f"{times} x " * (times > 1) + "{} x {}".format(*cost.size),
    ]


def _reached(row: Row, runs: pathlib.Path, measure: bool) -> str:
    """ "single / multi-scale" of a workdir, "-" where there is none."""
    if not row.config:
        return ""
    workdir = runs / row.workdir
    if not (workdir / "config.json").is_file():
        return "-"
    found = []
    for name, overrides in (("single_scale", ()), ("multi_scale", MULTI_SCALE)):
        path = workdir / f"{name}.json"
        if measure:
            try:
                evaluation.write_metrics(_evaluated(workdir, overrides), path)
            except SegjaxError as error:
                print(f"{row.name}: {error}", file=sys.stderr)
        found.append(f"{json.loads(path.read_text())['mIoU']:.2f}" if path.is_file() else "-")
    return " / ".join(found)


def _evaluated(workdir: pathlib.Path, overrides: Sequence[str]) -> dict[str, Any]:
    recipe = config.load(workdir / "config.json", overrides)
    data = recipe.data
    dataset = datasets.load(data.dataset.to_dict(), data.eval_split, data.data_dir)
    variables, _, _ = checkpoints.load_variables(workdir, "best")
    return evaluation.evaluate(
        systems.build(recipe.model), variables, dataset, recipe.eval, progress=str(workdir)
    )


# --------------------------------------------------------------------------------------------------
# Small twins

TINY = (
    "--config.steps=300",
    "--config.eval.every=300",
    "--config.checkpoint.every=300",
    # Scenes that nothing was tuned on.
    "--config.data.dataset.seed=1",
    "--config.data.dataset.validation=200",
)
"""The budget of every tiny row: 300 steps of 16 scenes, 200 scenes held back."""


def run_tiny(
    title: str,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    args: argparse.Namespace,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains every row with every seed, prints mean and spread, and judges the claims.

    A training that is already in `args.runs` is taken from there.

    Returns:
        What was printed, as plain values; also written to `args.out`.
    """
    setup()
    jobs = [(row, seed) for seed in range(args.seeds) for row in rows]
    found: dict[str, list[float]] = {row.name: [] for row in rows}
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    begin = time.monotonic()
    for done, (row, seed) in enumerate(jobs):
        left = (time.monotonic() - begin) / max(done, 1) * (len(jobs) - done)
        eta = f", {left:.0f} s left" if done else ""
        print(f"{done + 1}/{len(jobs)}: {row.name}, seed {seed}{eta}", file=sys.stderr, flush=True)
        miou, took = _trained(row, seed, args.runs, overrides)
        found[row.name].append(miou)
        seconds[row.name].append(took)
    result = {
        "title": title,
        "budget": [*TINY, *overrides],
        "machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{platform.machine()}, segjax {segjax.__version__}, jax {jax.__version__}",
        "rows": [
            {
                "name": row.name,
                "config": row.config,
                "overrides": list(row.overrides),
                "mIoU": [round(value, 3) for value in found[row.name]],
                "mean": round(statistics.fmean(found[row.name]), 2),
                "spread": _spread(found[row.name]),
                "seconds": [round(value, 1) for value in seconds[row.name]],
            }
            for row in rows
        ],
        "claims": [_judged(claim, found) for claim in claims],
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print_tiny(result)
    return result


def _trained(
    row: Row, seed: int, runs: pathlib.Path, overrides: Sequence[str]
) -> tuple[float, float]:
    """mIoU and seconds of one training, from its workdir if it was done before."""
    recipe = load(row, [*TINY, *overrides, f"--config.seed={seed}"])
    workdir = runs / "tiny" / row.workdir.replace("/", "_") / f"seed_{seed}"
    done = workdir / "tiny.json"
    if done.is_file():
        kept = json.loads(done.read_text())
        if not config.diff(config.read(workdir / "config.json"), recipe):
            return kept["mIoU"], kept["seconds"]
        raise SegjaxError(f"{workdir}: it was trained with other settings; take another --runs.")
    workdir.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with open(workdir / "said.txt", "a") as said, contextlib.redirect_stdout(said):
        miou = loop.train(recipe, workdir)["mIoU"]
    took = time.monotonic() - begin
    done.write_text(json.dumps({"mIoU": miou, "seconds": took}))
    return miou, took


def _short(override: str) -> str:
    """ "--config.model.early_block=0" -> "early_block0", for a folder's name."""
    field, _, value = override.partition("=")
    kept = "".join(c for c in value if c.isalnum() or c in ".-")
    return field.rpartition(".")[2] + kept


def _spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds, of a sample; one seed has none."""
    return round(statistics.stdev(values), 2) if len(values) > 1 else None


def _judged(claim: Claim, found: dict[str, list[float]]) -> dict[str, Any]:
    gaps = [a - b for a, b in zip(found[claim.better], found[claim.worse])]
    if all(gap > 0 for gap in gaps):
        verdict = "shows"
    elif all(gap < 0 for gap in gaps):
        verdict = "the opposite shows"
    else:
        verdict = "undecided: seeds disagree"
    return {
        "better": claim.better,
        "worse": claim.worse,
        "paper": claim.paper,
        "gap": round(statistics.fmean(gaps), 2),
        "spread": _spread(gaps),
        "verdict": verdict,
    }


def print_tiny(result: dict[str, Any]) -> None:
    """The rows with mean and spread, and what became of each claim."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['title']}: tiny twins, mIoU on shapescapes")
    for name in ("row", "mean ± spread", "each seed", "s"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in result["rows"]:
        table.add_row(
            row["name"],
            f"{row['mean']:.2f}{_plus_minus(row['spread'])}",
            "  ".join(f"{value:.2f}" for value in row["mIoU"]),
            f"{statistics.fmean(row['seconds']):.0f}",
        )
    Console(width=max(Console().width, 100)).print(table)
    for claim in result["claims"]:
        print(
            f"{claim['better']} above {claim['worse']}: {claim['gap']:+.2f}"
            f"{_plus_minus(claim['spread'])}, {claim['verdict']}  (paper: {claim['paper']})"
        )
    print(f"on {result['machine']}")


def _plus_minus(spread: float | None) -> str:
    return "" if spread is None else f" ± {spread:.2f}"
