r"""RegProxy's Table 7: which layer's tokens the regions are learned from.

    python -m experiments.regproxy.table7                 # the paper's numbers beside exact counts
    python -m experiments.regproxy.table7 --tiny          # a six-block twin on generated scenes

RegProxy-S/16 on half of the schedule. M counts blocks: M = 0 are the embedded tokens, M = 12 the
last, normalised ones. The row M = 5 is trained, for the plain form to find it, with

    segjax train --config=configs/regproxy/ade20k_s16.py --config.steps=80000 \
        --config.model.early_block=4 --workdir=runs/regproxy/ade20k_s16_steps80000_early_block4
"""

from __future__ import annotations

import sys

from experiments import comparison
from experiments.comparison import Claim, Row
from segjax import cli

PAPER = {
    0: ("46.3", "76.8"),
    3: ("47.1", "79.0"),
    4: ("47.0", "78.8"),
    5: ("47.2", "78.2"),
    6: ("46.8", "77.7"),
    9: ("46.6", "76.1"),
    12: ("45.7", "75.2"),
}

HALF = ("--config.steps=80000",)

ROWS = (
    *(
        Row(
            f"M = {depth}",
            "regproxy/ade20k_s16",
            {"ADE20K": ade, "Cityscapes": city},
            (*HALF, f"--config.model.early_block={depth - 1}"),
        )
        for depth, (ade, city) in PAPER.items()
    ),
    Row("baseline", "linear_vit/ade20k_s16", {"ADE20K": "45.0", "Cityscapes": "75.4"}, HALF),
)

SIX_BLOCKS = ("--config.model.backbone.depth=6",)

TINY = (
    *(
        Row(
            f"M = {depth}",
            "regproxy/shapescapes_tiny",
            overrides=(*SIX_BLOCKS, f"--config.model.early_block={depth - 1}"),
        )
        for depth in (0, 1, 2, 3, 4, 6)
    ),
    Row("baseline", "linear_vit/shapescapes_tiny", overrides=SIX_BLOCKS),
)

CLAIMS = (
    Claim("M = 2", "M = 0", "M = 5 above M = 0 by 0.9 on ADE20K, M = 3 by 2.2 on Cityscapes"),
    Claim("M = 2", "M = 6", "M = 5 above the last layer by 1.5 on ADE20K, M = 3 by 3.8"),
    Claim("M = 2", "baseline", "+2.2 on ADE20K, +3.6 on Cityscapes"),
    Claim("M = 6", "baseline", "+0.7 on ADE20K, -0.2 on Cityscapes"),
)


def main(argv: list[str]) -> int:
    args, overrides = comparison.arguments(__doc__, argv)
    title = "RegProxy, Table 7"
    if args.tiny:
        comparison.run_tiny(title, TINY, CLAIMS, args, overrides)
    else:
        comparison.print_costs(title, ROWS, args.runs, args.measure)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
