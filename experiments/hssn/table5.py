r"""HSSN's Table 5: the two parts of its loss, mIoU of every level, the leaves' last (^1).

    python -m experiments.hssn.table5                     # the paper's numbers beside exact counts
    python -m experiments.hssn.table5 --tiny              # four small twins on generated scenes

FTM is the focal tree-min loss (Eq. 6), TT the tree-triplet loss (Eq. 7). Without FTM the leaves
have their softmax cross entropy: the row "none" is Table 6's CCE. What is assumed of the networks
and recipes is told there, in table6.py. Of the twins all but TT are those of Table 6, and with the
same --runs they are not trained again.
"""

from __future__ import annotations

import sys

from experiments.comparison import Row
from experiments.hssn import levels, table6
from experiments.hssn.levels import Twins
from segjax import cli

PARTS = {
    "none": table6.LOSSES["CCE"],
    "FTM": table6.LOSSES["FTM"],
    "TT": table6.loss("cce", triplets=True),
    "FTM + TT": table6.LOSSES["Full"],
}

TRIPLETS_ALONE = {
    "Mapillary Vistas 2.0": "83.06 68.61 38.29",
    "PASCAL-Person-Part": "95.92 86.03 72.27",
}

PAPER = {
    dataset: {
        "none": numbers["CCE"],
        "FTM": numbers["FTM"],
        "TT": TRIPLETS_ALONE[dataset],
        "FTM + TT": numbers["Full"],
    }
    for dataset, numbers in table6.PAPER.items()
}

TABLES = tuple(
    table6.table(
        "HSSN, Table 5",
        dataset,
        {name: (PARTS[name], numbers) for name, numbers in PAPER[dataset].items()},
    )
    for dataset in PAPER
)

TWINS = Twins(
    "HSSN, Table 5",
    tuple(Row(name, table6.CONFIG, overrides=changes) for name, changes in PARTS.items()),
    (
        levels.claim(PAPER, "FTM", "none"),
        levels.claim(PAPER, "TT", "none"),
        levels.claim(PAPER, "FTM", "TT"),
        levels.claim(PAPER, "FTM + TT", "FTM"),
        levels.claim(PAPER, "FTM + TT", "TT"),
    ),
    table6.BUDGET,
)


def main(argv: list[str]) -> int:
    return levels.run(__doc__, TABLES, argv, TWINS)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
