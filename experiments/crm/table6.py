r"""CRM's Table 6: alignment (CAM) and implicit function, IoU / mBA on BIG from PSPNet's masks.

    python -m experiments.crm.table6                     # the paper's numbers beside exact counts
    python -m experiments.crm.table6 --tiny              # four small twins on generated scenes

The models without a part are not public, nor is it said what took its place. Here a model without
CAM interpolates the features at every pixel and asks once, instead of asking beside the four cells
around it; one without the implicit function asks with features alone, without positions. Both are
trained by the recipe of the whole.

The twins, in results/table6.json, see windows of 64 x 64 and refine held-back scenes of 512 x 512;
every row has the same data, coarse masks and budget.
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
    "--config.steps=1000",
    "--config.eval.every=1000",
    "--config.checkpoint.every=1000",
    "--config.data.dataset.size=(64, 64)",
    "--config.data.dataset.validation_size=(512, 512)",
    "--config.data.dataset.coarse_size=(128, 128)",
    "--config.augment.crop=(64, 64)",
    "--config.data.dataset.validation=40",
    "--config.data.batch=8",
)
"""On top of `comparison.TINY`'s: half the sizes of the config."""


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
