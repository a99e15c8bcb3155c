r"""CRM's Table 6: alignment (CAM) and implicit function, IoU / mBA on BIG from PSPNet's masks.

    python -m experiments.crm.table6                     # the paper's numbers beside exact counts
    python -m experiments.crm.table6 --tiny              # four small twins on generated scenes

The models without a part are not public, nor is it said what took its place. Here a model without
CAM interpolates the features at every pixel and asks once, instead of asking beside the four cells
around it; one without the implicit function asks with features alone, without positions. Both are
trained by the recipe of the whole.

The twins see windows of 128 x 128 and refine held-back scenes of 1024 x 1024, about ten minutes
each on two CPU cores; every row has the same data, coarse masks and budget.
"""

from __future__ import annotations

import sys

from experiments import comparison
from experiments.comparison import Claim, Row
from segjax import cli

PARTS = {
    "neither": ("--config.model.cam=False", "--config.model.implicit=False"),
    "CAM": ("--config.model.implicit=False",),
    "implicit function": ("--config.model.cam=False",),
    "both": (),
}

PAPER = {
    "neither": "93.94/75.42",
    "CAM": "93.99/75.93",
    "implicit function": "93.96/75.55",
    "both": "94.18/76.09",
}

ROWS = tuple(
    Row(name, "crm/big_r50", {"IoU/mBA": PAPER[name]}, changes) for name, changes in PARTS.items()
)

TWINS = tuple(
    Row(name, "crm/shapescapes_tiny", overrides=changes) for name, changes in PARTS.items()
)


def _claim(better: str, worse: str) -> Claim:
    gaps = (float(b) - float(w) for b, w in zip(PAPER[better].split("/"), PAPER[worse].split("/")))
    return Claim(better, worse, "IoU {:+.2f}, mBA {:+.2f} on BIG".format(*gaps))


CLAIMS = (
    _claim("CAM", "neither"),
    _claim("implicit function", "neither"),
    _claim("both", "CAM"),
    _claim("both", "implicit function"),
)

BUDGET = (
    "--config.steps=1200",
    "--config.eval.every=1200",
    "--config.checkpoint.every=1200",
    "--config.data.dataset.validation=40",
    "--config.data.batch=8",
)
"""On top of `comparison.TINY`'s: the steps and batch of the config. With windows and scenes of half
the size, or a quarter of the steps, no row refines: all lose IoU to the coarse masks."""


def main(argv: list[str]) -> int:
    args, overrides = comparison.arguments(__doc__, argv)
    if args.tiny:
        budget = [*BUDGET, *overrides]
        comparison.run_tiny("CRM, Table 6", TWINS, CLAIMS, args, budget, ("mBA", "IoU"))
    else:
        comparison.print_refiners("CRM, Table 6", ROWS, args.runs, args.measure)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
