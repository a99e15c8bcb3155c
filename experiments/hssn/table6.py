r"""HSSN's Table 6: losses of a class tree, mIoU of every level, the leaves' last (^1).

    python -m experiments.hssn.table6                     # the paper's numbers beside exact counts
    python -m experiments.hssn.table6 --tiny              # six small twins on generated scenes

CCE is the softmax cross entropy of the leaves alone, as without a tree: what is said of the other
levels follows from the leaf. BCE and Focal score every node by itself; TM and FTM (Eq. 5 and 6) put
the tree's constraints into them; Full is FTM with the tree-triplet loss (Eq. 7). The paper's rows
don't say which network was trained: taken to be DeepLabV3+, R101. Nor is its recipe for Mapillary
public (see the config). On Person-Part the schedule is the released code's and the loss the
paper's, without the cross entropies and the region mutual information that this code adds.
Parameters are those of one network; that of Full has the projection too.

The twins, in results/table6.json, are a small DeepLabV3+ from scratch on 64 x 64 scenes, 250 steps
of 8, two seeds; every loss has the same network, data and initial parameters (but for those of the
projection) and is read by the best path of summed sigmoid scores (CCE by its best leaf). Seconds
are of a machine that did much else.
"""

from __future__ import annotations

import sys

from experiments.comparison import Row
from experiments.hssn import levels
from experiments.hssn.levels import LevelTable, Twins
from segjax import cli


def loss(name: str, triplets: bool = False) -> tuple[str, ...]:
    """Changes to a config that has the paper's loss."""
    return (
        f"--config.hierarchy.tree_loss={name}",
        *(() if triplets else ("--config.hierarchy.triplet_weight=0.0",)),
    )


LOSSES = {
    "CCE": loss("cce"),
    "BCE": loss("bce"),
    "Focal": loss("focal"),
    "TM": loss("tm"),
    "FTM": loss("ftm"),
    "Full": loss("ftm", triplets=True),
}

THE_PAPERS_LOSS = (
    "--config.hierarchy.tree_weight=1.0",
    "--config.hierarchy.ce_weight=0.0",
    "--config.hierarchy.rmi_weight=0.0",
    "--config.hierarchy.margin=0.0",
    "--config.hierarchy.triplet_sampling=random",
    "--config.hierarchy.void=ignore",
    "--config.hierarchy.scores=sigmoid",
)
"""In place of the released recipe's on people; as `configs.common.hierarchy.paper` has it."""

DATASETS = {
    "Mapillary Vistas 2.0": (
        "hssn/mapillary_deeplab_v3plus_r101",
        (),
        ("--config.eval.scale=(1024, 512)",),
    ),
    "PASCAL-Person-Part": (
        "hssn/person_part_deeplab_v3plus_r101",
        THE_PAPERS_LOSS,
        ("--config.eval.scale=(480, 480)",),
    ),
}
"""title: config, changes to it, and the size that costs are counted at, the crop of training."""

FIGURES = ("mIoU^3", "mIoU^2", "mIoU^1")

PAPER = {
    "Mapillary Vistas 2.0": {
        "CCE": "81.86 68.17 37.43",
        "BCE": "81.56 67.61 37.26",
        "Focal": "82.63 68.48 38.09",
        "TM": "83.48 69.13 38.69",
        "FTM": "84.17 69.62 39.17",
        "Full": "85.27 71.40 40.16",
    },
    "PASCAL-Person-Part": {
        "CCE": "93.58 83.04 67.84",
        "BCE": "93.12 82.55 67.38",
        "Focal": "94.07 83.66 68.42",
        "TM": "95.32 85.99 72.17",
        "FTM": "96.33 86.72 72.89",
        "Full": "97.69 88.20 75.44",
    },
}


def table(title: str, dataset: str, rows: dict[str, tuple[tuple[str, ...], str]]) -> LevelTable:
    """A table of one dataset. `rows`: name -> changes to the loss, and the paper's numbers."""
    config, changes, counted = DATASETS[dataset]
    return LevelTable(
        f"{title}: {dataset}",
        FIGURES,
        tuple(
            Row(name, config, dict(zip(FIGURES, paper.split())), (*changes, *own), counted)
            for name, (own, paper) in rows.items()
        ),
    )


TABLES = tuple(
    table(
        "HSSN, Table 6",
        dataset,
        {name: (LOSSES[name], numbers) for name, numbers in PAPER[dataset].items()},
    )
    for dataset in DATASETS
)

CONFIG = "hssn/shapescapes_tiny"

SIZE = "(64, 64)"

BUDGET = (
    "--config.steps=250",
    "--config.eval.every=250",
    "--config.checkpoint.every=250",
    "--config.hierarchy.triplet_ramp=250",
    "--config.data.batch=8",
    f"--config.data.dataset.size={SIZE}",
    f"--config.augment.scale={SIZE}",
    f"--config.augment.crop={SIZE}",
    f"--config.eval.scale={SIZE}",
    f"--config.eval.crop={SIZE}",
    f"--config.eval.stride={SIZE}",
    "--config.log.tensorboard=False",
)
"""In place of `comparison.TINY`'s, so that all trainings take less than an hour of one core."""

TWINS = Twins(
    "HSSN, Table 6",
    tuple(Row(name, CONFIG, overrides=changes) for name, changes in LOSSES.items()),
    (
        levels.claim(PAPER, "Full", "FTM"),
        levels.claim(PAPER, "FTM", "TM"),
        levels.claim(PAPER, "TM", "BCE"),
        levels.claim(PAPER, "CCE", "BCE"),
        levels.claim(PAPER, "Focal", "BCE"),
        levels.claim(PAPER, "FTM", "Focal"),
        levels.claim(PAPER, "Full", "CCE"),
    ),
    BUDGET,
)


def main(argv: list[str]) -> int:
    return levels.run(__doc__, TABLES, argv, TWINS)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
