r"""CRM's Table 5: what each turn of the refinement reaches, with CAM and the implicit function and
without; IoU / mBA on BIG from PSPNet's masks.

    python -m experiments.crm.table5 [--runs=runs]           # of imported or trained models
    python -m experiments.crm.table5 --tiny [--runs=runs]    # of the twins that Table 6 trained

`segjax eval` writes the figures of every turn into metrics.json, and this table reads them there
and from the twins' last evaluation.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence

from experiments.comparison import Row
from experiments.crm import table6
from segjax import cli

SCALES = (0.125, 0.25, 0.5, 1.0)

PAPER = {
    "neither": ("92.68/63.70", "93.49/69.23", "93.85/73.43", "93.94/75.42"),
    "both": ("93.07/65.61", "93.88/71.41", "94.15/74.95", "94.18/76.09"),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs", default="runs", type=pathlib.Path, help="where workdirs lie")
    parser.add_argument("--tiny", action="store_true", help="of the small twins")
    args = parser.parse_args(argv)
    rows = {row.name: row for row in (table6.TWINS if args.tiny else table6.ROWS)}
    found = {name: turns_of(rows[name], args.runs, args.tiny) for name in PAPER}
    print_table(found)
    return 0


def turns_of(row: Row, runs: pathlib.Path, tiny: bool) -> list[list[tuple[float, float]]]:
    """(IoU, mBA) after each turn, of every training that is there."""
    if tiny:
        folder = runs / "tiny" / row.workdir.replace("/", "_")
        files = sorted(folder.glob("seed_*/metrics.json"))
    else:
        files = [path for path in [runs / row.workdir / "metrics.json"] if path.is_file()]
    kept = [json.loads(path.read_text()) for path in files]
    return [[(turn["IoU"], turn["mBA"]) for turn in metrics["turns"]] for metrics in kept]


def print_table(found: dict[str, list[list[tuple[float, float]]]]) -> None:
    """A row for each scale; of several trainings the mean."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="CRM, Table 5: IoU / mBA after each turn")
    table.add_column("scale", no_wrap=True)
    for name in PAPER:
        table.add_column(f"paper\n{name}", justify="right", no_wrap=True)
        count = len(found[name])
        table.add_column(f"here, {count} run{'s' * (count != 1)}\n{name}", justify="right")
    for turn, scale in enumerate(SCALES):
        cells = []
        for name, numbers in PAPER.items():
            cells += [numbers[turn], _mean([run[turn] for run in found[name] if turn < len(run)])]
        table.add_row(f"{scale:g}", *cells)
    Console().print(table)


def _mean(figures: Sequence[tuple[float, float]]) -> str:
    if not figures:
        return "-"
    return "/".join(f"{statistics.fmean(column):.2f}" for column in zip(*figures))


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
