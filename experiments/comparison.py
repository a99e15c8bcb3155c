"""What the experiments of a paper share: rows of a table, what they cost, and small trainings.

A table has two forms. The plain one prints the paper's numbers beside what this machine has:
parameters and multiply-adds, counted exactly, and mIoU (of masks also PQ and AP) where a workdir of
the row is there.
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import segjax
from segjax import analysis, config, systems
from segjax.data import datasets
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import evaluation
from segjax.inference.measure import evaluate
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
    """The paper's direction: the row `better` has the higher figure.

    Attributes:
        better, worse: names of tiny rows.
        paper: where the paper says so, with its numbers.
    """

    better: str
    worse: str
    paper: str


@dataclasses.dataclass(frozen=True)
class MaskTable:
    """A table of systems that answer with masks.

    Attributes:
        title: above it.
        figures: what is measured of its rows, see `_figure`.
        rows: its lines.
    """

    title: str
    figures: tuple[str, ...]
    rows: tuple[Row, ...]


def arguments(doc: str, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that every table has; what is left over are changes to the tiny configs.

    Raises:
        SegjaxError: an option that means nothing here.
    """
    parser = _parser(doc)
    parser.add_argument("--tiny", action="store_true", help="train small twins of the rows")
    parser.add_argument("--seeds", default=3, type=int, help="trainings of each tiny row")
    parser.add_argument("--out", type=pathlib.Path, help="also write the tiny results as JSON here")
    args, overrides = parser.parse_known_args(argv)
    if args.seeds < 1:
        raise SegjaxError(f"--seeds={args.seeds}: take 1 or more.")
    if overrides and not args.tiny:
        raise SegjaxError(f"{overrides[0]} means nothing without --tiny; see --help.")
    return args, overrides


def _parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--runs", default="runs", type=pathlib.Path, help="where workdirs are found and made"
    )
    parser.add_argument(
        "--measure", action="store_true", help="evaluate the rows' workdirs in RUNS first"
    )
    return parser


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
    here = ("params", "MACs, mmcv", "MACs, all", "input", "mIoU SS / MS")
    figures = ("mIoU", "mIoU MS")

    def cells(row: Row) -> list[str]:
        return [*_costs(row, all_windows), _reached(row, runs, measure, figures)]

    _print_beside(title, rows, here, cells)
    named = next(row for row in rows if row.config)
    print(
        "MACs, mmcv: as the papers count, without attention. MACs, all: every convolution and"
        f" matrix product.\nmIoU here: of workdirs such as {runs / named.workdir}, once measured"
        " with --measure."
    )


def print_mask_tables(doc: str, tables: Mapping[str, MaskTable], argv: Sequence[str]) -> int:
    """The program of a file of such tables: prints the one that is asked for, or all.

    Returns:
        The exit code, 0.
    """
    parser = _parser(doc)
    parser.add_argument("--table", choices=tables, help="print this one alone")
    args = parser.parse_args(argv)
    for name in [args.table] if args.table else tables:
        print_masks(tables[name], args.runs, args.measure)
    return 0


def print_masks(table: MaskTable, runs: pathlib.Path, measure: bool) -> None:
    """A table of the paper's numbers beside exact counts and the figures found in `runs`.

    Args:
        table: what to print.
        runs: where workdirs are looked for.
        measure: evaluates them; otherwise only what was measured before is shown.
    """

    def cells(row: Row) -> list[str]:
        return [*_mask_costs(row), _reached(row, runs, measure, table.figures)]

    figures = " / ".join(table.figures)
    _print_beside(table.title, table.rows, ("params", "FLOPs, fvcore", "input", figures), cells)
    named = next(row for row in table.rows if row.config)
    print(
        "FLOPs, fvcore: of the network and its semantic result, multiply-adds as one, without"
        f" masks that only training needs.\n{figures} here: of workdirs such as"
        f" {runs / named.workdir}, once measured with --measure."
    )


def print_refiners(title: str, rows: Sequence[Row], runs: pathlib.Path, measure: bool) -> None:
    """A table of systems that sharpen masks: the paper's numbers beside parameters and the IoU and
    mBA found in `runs`; `measure` as of `print_costs`."""
    figures = ("IoU", "mBA")

    def cells(row: Row) -> list[str]:
        system = systems.build(load(row).model)
        return [
            f"{analysis.parameters(system):,}",
            _reached(row, runs, measure, figures),
        ]

    _print_beside(title, rows, ("params", " / ".join(figures)), cells)
    print(
        f"IoU / mBA here: of workdirs such as {runs / rows[-1].workdir}, once measured with"
        " --measure."
    )


def _print_beside(
    title: str, rows: Sequence[Row], here: Sequence[str], cells: Callable[[Row], list[str]]
) -> None:
    """The paper's columns, and those of `here` with what `cells` says of each row."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    columns = list(dict.fromkeys(column for row in rows for column in row.paper))
    table = Table(title=title)
    table.add_column("row", no_wrap=True)
    for name in columns:
        table.add_column(f"paper\n{name}", justify="right", no_wrap=True)
    for name in here:
        table.add_column(f"here\n{name}", justify="right", no_wrap=True)
    for row in track(rows, len(rows), title):
        table.add_row(row.name, *(row.paper.get(name, "") for name in columns), *cells(row))
    console = Console()
    natural = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, natural)  # long lines are better than broken numbers
    console.print(table)


def load(row: Row, more: Sequence[str] = ()) -> config.ConfigDict:
    """The config of a row with `more` changes; of those of one field the last holds, and the row's
    own over all."""
    said = [*more, *row.overrides]
    # Said twice, tuples would be joined.
    fields = [text.partition("=")[0] if "=" in text else None for text in said]
    changes = [
        text for i, text in enumerate(said) if not fields[i] or fields[i] not in fields[i + 1 :]
    ]
    return config.load(str(ROOT / "configs" / f"{row.config}.py"), changes)


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


def _mask_costs(row: Row) -> list[str]:
    if not row.config:
        return ["", "", ""]
    recipe = load(row, row.counted)
    system, size = systems.build(recipe.model), tuple(recipe.eval.scale)[::-1]
    try:
        flops = f"{analysis.fvcore_flops(system, size).published / 1e9:.2f}G"
    except SegjaxError:  # a per-pixel baseline
        flops = "-"
    return [f"{analysis.parameters(system) / 1e6:.3f}M", flops, "{} x {}".format(*size)]


def _reached(row: Row, runs: pathlib.Path, measure: bool, figures: Sequence[str]) -> str:
    """The figures of a workdir with slashes between, "-" where there is none."""
    if not row.config:
        return ""
    workdir = runs / row.workdir
    if not (workdir / "config.json").is_file():
        return "-"
    found: dict[bool, dict[str, Any]] = {}
    for several in sorted({figure.endswith(MULTI) for figure in figures}):
        path = workdir / ("multi_scale.json" if several else "single_scale.json")
        if measure:
            try:
                metrics = _evaluated(workdir, MULTI_SCALE if several else ())
                evaluation.write_metrics(metrics, path)
            except SegjaxError as error:
                print(f"{row.name}: {error}", file=sys.stderr)
        found[several] = json.loads(path.read_text()) if path.is_file() else {}
    return " / ".join(
        _figure(found[figure.endswith(MULTI)], figure.removesuffix(MULTI)) for figure in figures
    )


MULTI = " MS"
"""The end of a figure that is measured at several scales and flipped."""


def _figure(metrics: Mapping[str, Any], name: str) -> str:
    """ "mIoU", "PQ", "SQ", "RQ", "AP", or the PQ of things, "PQth", or stuff, "PQst"."""
    part = {"PQth": "things", "PQst": "stuff"}.get(name)
    value = metrics.get("panoptic", {}).get(part, {}).get("PQ") if part else metrics.get(name)
    return "-" if value is None else f"{value:.2f}"


def _evaluated(workdir: pathlib.Path, overrides: Sequence[str]) -> dict[str, Any]:
    recipe = config.load(workdir / "config.json", overrides)
    data = recipe.data
    dataset = datasets.load(data.dataset.to_dict(), data.eval_split, data.data_dir)
    variables, _, _ = checkpoints.load_variables(workdir, "best")
    return evaluate(
        *(systems.of_config(recipe, workdir), variables, dataset, recipe.eval),
        progress=str(workdir),
        hierarchy=systems.hierarchy_of(recipe, workdir) if recipe.hierarchy.tree else None,
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
    metrics: Sequence[str] = ("mIoU",),
) -> dict[str, Any]:
    """Trains every row with every seed, prints mean and spread, and judges the claims.

    A training that is already in `args.runs` is taken from there, so one that was cut short is
    resumed by the same command.

    Args:
        title: above the table.
        rows: its lines.
        claims: judged on every metric.
        args: of `arguments`.
        overrides: changes to the configs of all rows.
        metrics: what is reported; "mean" and "spread" of a row are those of the first.

    Returns:
        What was printed, as plain values; also written to `args.out`.
    """
    setup()
    jobs = [(row, seed) for seed in range(args.seeds) for row in rows]
    found: dict[str, dict[str, list[float]]] = {
        metric: {row.name: [] for row in rows} for metric in metrics
    }
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    begin = time.monotonic()
    for done, (row, seed) in enumerate(jobs):
        left = (time.monotonic() - begin) / max(done, 1) * (len(jobs) - done)
        eta = f", {left:.0f} s left" if done else ""
        print(f"{done + 1}/{len(jobs)}: {row.name}, seed {seed}{eta}", file=sys.stderr, flush=True)
        reached, took = _trained(row, seed, args.runs, overrides)
        for metric in metrics:
            found[metric][row.name].append(reached[metric])
        seconds[row.name].append(took)
    first = found[metrics[0]]
    result = {
        "title": title,
        "metrics": list(metrics),
        "budget": [*TINY, *overrides],
        "machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{platform.machine()}, segjax {segjax.__version__}, jax {jax.__version__}",
        "rows": [
            {
                "name": row.name,
                "config": row.config,
                "overrides": list(row.overrides),
                **{
                    metric: [round(value, 3) for value in found[metric][row.name]]
                    for metric in found
                },
                "mean": round(statistics.fmean(first[row.name]), 2),
                "spread": _spread(first[row.name]),
                "seconds": [round(value, 1) for value in seconds[row.name]],
            }
            for row in rows
        ],
        "claims": [
            {"metric": metric, **_judged(claim, found[metric])}
            for claim in claims
            for metric in metrics
        ],
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print_tiny(result)
    return result


def _trained(
    row: Row, seed: int, runs: pathlib.Path, overrides: Sequence[str]
) -> tuple[dict[str, float], float]:
    """The metrics and seconds of one training, from its workdir if it was done before."""
    recipe = load(row, [*TINY, *overrides, f"--config.seed={seed}"])
    workdir = runs / "tiny" / row.workdir.replace("/", "_") / f"seed_{seed}"
    done = workdir / "tiny.json"
    if done.is_file():
        kept = json.loads(done.read_text())
        if not config.diff(config.read(workdir / "config.json"), recipe):
            return kept, kept["seconds"]
        raise SegjaxError(f"{workdir}: it was trained with other settings; take another --runs.")
    workdir.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with open(workdir / "said.txt", "a") as said, contextlib.redirect_stdout(said):
        metrics = loop.train(recipe, workdir)
    took = time.monotonic() - begin
    reached = {name: value for name, value in metrics.items() if isinstance(value, float)}
    done.write_text(json.dumps({**reached, "seconds": took}))
    return reached, took


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

    metrics = result["metrics"]
    table = Table(title=f"{result['title']}: tiny twins, {' and '.join(metrics)} on shapescapes")
    table.add_column("row")
    for metric in metrics:
        above = f"{metric}\n" if len(metrics) > 1 else ""
        table.add_column(f"{above}mean ± spread", justify="right")
        table.add_column(f"{above}each seed", justify="right")
    table.add_column("s", justify="right")
    for row in result["rows"]:
        cells = []
        for metric in metrics:
            values = row[metric]
            cells.append(f"{statistics.fmean(values):.2f}{_plus_minus(_spread(values))}")
            cells.append("  ".join(f"{value:.2f}" for value in values))
        table.add_row(row["name"], *cells, f"{statistics.fmean(row['seconds']):.0f}")
    Console(width=max(Console().width, 120)).print(table)
    for claim in result["claims"]:
        named = f"{claim['metric']} " if len(metrics) > 1 else ""
        print(
            f"{claim['better']} above {claim['worse']}: {named}{claim['gap']:+.2f}"
            f"{_plus_minus(claim['spread'])}, {claim['verdict']}  (paper: {claim['paper']})"
        )
    print(f"on {result['machine']}")


def _plus_minus(spread: float | None) -> str:
    return "" if spread is None else f" ± {spread:.2f}"
