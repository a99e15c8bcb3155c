r"""CRM's Figure 7 and its cheaper schedule CRM*, from any workdir of CRM.

    pip install matplotlib
    python -m experiments.crm.figure7 --workdir=W [--turns=5] [--out=W/figure7]
    python -m experiments.crm.figure7 --workdir=W --star      # schedules beside the paper's CRM*

Figure 7 asks how many turns a refinement needs: n turns at the scales 1/n, 2/n, ..., 1, for n on
the horizontal axis. The curves of IoU and mBA on the workdir's evaluation split are drawn into
figure7.png, the numbers written beside it.

CRM* (93.9 / 76.3 at 1331 GFLOPs instead of 94.2 / 76.1 at 2536) is a row of the paper's cost table
that neither text nor code explains. --star measures the schedules that it could be: fewer scales,
each with all pixels asked or only those around the boundary, with the multiply-adds per pixel and
the seconds here. The nearest one is a guess, not a match.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from segjax import cli
from segjax.errors import SegjaxError

STAR = ((0.125, 0.25, 0.5, 1.0), (0.25, 0.5, 1.0), (0.5, 1.0), (0.25, 1.0), (1.0,))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--turns", default=5, type=int, help="most turns of a schedule")
    parser.add_argument("--star", action="store_true", help="schedules that CRM* could be")
    parser.add_argument("--out", type=pathlib.Path, help="a folder, by default WORKDIR/figure7")
    args = parser.parse_args(argv)
    out = args.out or args.workdir / "figure7"
    if args.star:
        schedules = [(scales, query) for query in ("all", "band") for scales in STAR]
        rows = [measure(args.workdir, scales, query) for scales, query in schedules]
        write(rows, out / "star.json")
        print_star(rows)
        return 0
    if importlib.util.find_spec("matplotlib") is None:
        raise SegjaxError("the figure needs matplotlib: pip install matplotlib.")
    if args.turns < 1:
        raise SegjaxError(f"--turns={args.turns}: take 1 or more.")
    rows = [measure(args.workdir, uniform(count), "all") for count in range(1, args.turns + 1)]
    write(rows, out / "figure7.json")
    draw(rows, out / "figure7.png")
    print(f"see {out / 'figure7.png'}")
    return 0


def uniform(count: int) -> tuple[float, ...]:
    """`count` scales that divide 0..1 evenly, up to 1."""
    return tuple((k + 1) / count for k in range(count))


def measure(workdir: pathlib.Path, scales: Sequence[float], query: str) -> dict[str, Any]:
    """What a schedule reaches on the evaluation split, and what it costs."""
    from segjax import config, systems
    from segjax.data import datasets
    from segjax.inference.measure import evaluate
    from segjax.runtime import setup
    from segjax.training import checkpoints

    setup()
    changes = [f'--config.model.scales="{tuple(scales)}"', f"--config.model.query={query}"]
    recipe = config.load(workdir / "config.json", changes)
    data = recipe.data
    system = systems.build(recipe.model)
    dataset = datasets.load(data.dataset.to_dict(), data.eval_split, data.data_dir)
    variables = checkpoints.load_variables(workdir, "best")[0]
    name = f"{' '.join(f'{scale:g}' for scale in scales)}, {query}"
    begin = time.monotonic()
    metrics = evaluate(system, variables, dataset, recipe.eval, progress=name)
    return {
        "scales": list(scales),
        "query": query,
        **{key: metrics[key] for key in ("IoU", "mBA", "coarse_IoU", "coarse_mBA", "images")},
        "seconds_per_image": (time.monotonic() - begin) / metrics["images"],
    }


def write(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")


def print_star(rows: Sequence[dict[str, Any]]) -> None:
    """The schedules, dearest first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Schedules; the paper's CRM 94.2/76.1, CRM* 93.9/76.3 at 0.53 of its FLOPs")
    for column in ("scales", "pixels asked", "IoU", "mBA", "s/image"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            " ".join(f"{scale:g}" for scale in row["scales"]),
            row["query"],
            f"{row['IoU']:.2f}",
            f"{row['mBA']:.2f}",
            f"{row['seconds_per_image']:.2f}",
        )
    Console().print(table)
    print("s/image is of a first call and has the compilation in it.")


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """IoU and mBA over the number of turns, with the coarse mask's as lines."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    turns = [len(row["scales"]) for row in rows]
    for axis, name in zip(axes, ("IoU", "mBA")):
        axis.plot(turns, [row[name] for row in rows], marker="o", label="refined")
        axis.axhline(rows[0][f"coarse_{name}"], color="gray", linestyle="--", label="coarse")
        axis.set(xlabel="turns, at scales 1/n .. 1", ylabel=f"{name} (%)", xticks=turns)
        axis.legend()
    figure.suptitle(f"{rows[0]['images']} images")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
