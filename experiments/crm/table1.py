r"""CRM's Table 1: IoU / mBA on BIG's test images, from the coarse masks of four networks.

    python -m experiments.crm.table1              # the paper's numbers beside those of workdirs
    python -m experiments.crm.table1 --measure    # refines BIG with the workdirs in RUNS first

BIG's files hold one coarse mask per image. Those of the other three networks go into folders of
their own with the same names; name the four by `--coarse=FCN-8s=FOLDER`, once for each. Workdirs
are those of an import:

    segjax import --layout=crm --checkpoint=model_45705 --config=configs/crm/big_r50.py \
        --workdir=runs/crm/big_r50

The gain is the mean over the four networks of what a method adds to the coarse masks.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from typing import NamedTuple

from segjax import cli
from segjax.errors import SegjaxError

NETWORKS = ("FCN-8s", "DeepLabV3+", "RefineNet", "PSPNet")

PAPER = {
    "coarse mask": ((72.39, 53.63), (89.42, 60.25), (90.20, 62.03), (90.49, 59.63)),
    "SegFix": ((72.69, 55.21), (89.95, 64.34), (90.73, 65.95), (91.01, 63.25)),
    "MGMatting": ((72.31, 57.32), (90.49, 67.48), (90.98, 68.40), (91.62, 66.73)),
    "CascadePSP": ((77.87, 67.04), (92.23, 74.59), (92.79, 74.77), (93.93, 75.32)),
    "CRM": ((79.62, 69.47), (91.84, 74.96), (92.89, 75.50), (94.18, 76.09)),
}
"""Method -> (IoU, mBA) from the masks of each of NETWORKS."""

PAPERS_GAIN = {
    "coarse mask": (0.00, 0.00),
    "SegFix": (0.47, 3.30),
    "MGMatting": (0.73, 6.10),
    "CascadePSP": (3.58, 14.05),
    "CRM": (4.01, 15.12),
}
"""As the paper prints it."""

CONFIGS = {"CascadePSP": "cascade_psp/big_r50", "CRM": "crm/big_r50"}


class Figures(NamedTuple):
    """In per cent."""

    iou: float
    mba: float


def gain(method: tuple[tuple[float, float], ...]) -> Figures:
    """What a method adds to the coarse masks, on average."""
    coarse = PAPER["coarse mask"]
    return Figures(
        *(
            statistics.fmean(ours[i] - theirs[i] for ours, theirs in zip(method, coarse))
            for i in range(2)
        )
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs", default="runs", type=pathlib.Path, help="where workdirs lie")
    parser.add_argument("--measure", action="store_true", help="refine BIG first")
    parser.add_argument(
        "--coarse",
        action="append",
        default=[],
        metavar="NETWORK=FOLDER",
        help="where the masks of a network lie; without, BIG's own are taken for PSPNet's",
    )
    args = parser.parse_args(argv)
    folders = _folders(args.coarse)
    if args.measure:
        for method, config in CONFIGS.items():
            for network in folders or ("PSPNet",):
                measure(args.runs / config, method, network, folders.get(network, ""))
    print_table(args.runs)
    return 0


def _folders(options: list[str]) -> dict[str, str]:
    folders = dict(text.partition("=")[::2] for text in options)
    for network in folders:
        if network not in NETWORKS:
            raise SegjaxError(f"--coarse={network}=...: take one of {', '.join(NETWORKS)}.")
    return folders


def measure(workdir: pathlib.Path, method: str, network: str, folder: str) -> None:
    """Refines BIG's test images and writes the figures into the workdir, if it is there."""
    from segjax import config, systems
    from segjax.data import datasets
    from segjax.inference import evaluation
    from segjax.inference.measure import evaluate
    from segjax.runtime import setup
    from segjax.training import checkpoints

    if not (workdir / "config.json").is_file():
        return
    setup()
    recipe = config.load(workdir / "config.json")
    big = {"name": "big", **({"coarse": folder} if folder else {})}
    try:
        metrics = evaluate(
            systems.build(recipe.model),
            checkpoints.load_variables(workdir, "best")[0],
            datasets.load(big, "test", recipe.data.data_dir),
            recipe.eval,
            progress=f"{method} on masks of {network}",
        )
    except SegjaxError as error:
        print(f"{method}, {network}: {error}", file=sys.stderr)
        return
    evaluation.write_metrics(metrics, _kept(workdir, network))


def _kept(workdir: pathlib.Path, network: str) -> pathlib.Path:
    return workdir / f"big_{network.replace('+', 'plus')}.json"


def print_table(runs: pathlib.Path) -> None:
    """The paper's numbers, below each what was measured here."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="CRM, Table 1: IoU / mBA on BIG")
    table.add_column("method", no_wrap=True)
    for network in (*NETWORKS, "mean gain"):
        table.add_column(network, justify="right", no_wrap=True)
    for method, numbers in PAPER.items():
        cells = [f"{iou:.2f} / {mba:.2f}" for iou, mba in (*numbers, PAPERS_GAIN[method])]
        table.add_row(method, *cells)
        if method not in CONFIGS:
            continue
        found = []
        for network in NETWORKS:
            path = _kept(runs / CONFIGS[method], network)
            metrics = json.loads(path.read_text()) if path.is_file() else None
            found.append(f"{metrics['IoU']:.2f} / {metrics['mBA']:.2f}" if metrics else "-")
        table.add_row("  here", *found, "")
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
