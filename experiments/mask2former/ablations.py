r"""Mask2Former's ablations: what each of its parts is worth.

    python -m experiments.mask2former.ablations           # the paper's numbers beside exact counts
    python -m experiments.mask2former.ablations --tiny    # small twins on generated scenes

One part at a time is taken from the model: the mask of the cross-attention (Table 4a), the losses
of all predictions but the last, the points at which masks are compared (Table 5), the loss of the
bare queries, or the learnable query features themselves (Table 4b; zeros in their place all predict
the same, so they are not charged either). The paper's numbers are of R50: AP and PQ on COCO, mIoU
on ADE20K. We know none for deep supervision and for the loss of the bare queries alone; for masks
compared in full we only know the memory of an image in training, 18 GB for 6 GB.

The twins, in results/ablations.json, see 64 x 64 scenes and have 200 steps from scratch, two seeds
each. Their points are a fifth of the pixels of the mask logits, as in the paper; masks are compared
in full on these 16 x 16 pixels. Seconds are of a machine that did much else.
"""

from __future__ import annotations

import sys

from experiments import comparison
from experiments.comparison import Claim, MaskTable, Row
from segjax import cli

CONFIG = "mask2former/shapescapes_tiny"

NO_MASK = ("--config.model.masked=False",)
LAST_ONLY = ("--config.model.deep_supervision=False",)
FULL_MASKS = ("--config.model.points=0",)
UNCHARGED = ("--config.model.supervise_queries=False",)
ZEROS = ("--config.model.learnable_queries=False", *UNCHARGED)

R50 = "mask2former/ade20k_semantic_r50"
AT_512 = ("--config.eval.scale=(512, 512)",)


def paper(ap: str, pq: str, miou: str) -> dict[str, str]:
    return {"AP": ap, "PQ": pq, "mIoU": miou}


TABLE = MaskTable(
    "Mask2Former R50, Tables 4 and 5",
    ("mIoU",),
    (
        Row("Mask2Former", R50, paper("43.7", "51.9", "47.2"), counted=AT_512),
        Row("no masked attention", R50, paper("37.8", "47.1", "45.5"), NO_MASK, AT_512),
        Row("no deep supervision", R50, {}, LAST_ONLY, AT_512),
        Row("full masks, no points", R50, {}, FULL_MASKS, AT_512),
        Row("bare queries uncharged", R50, {}, UNCHARGED, AT_512),
        Row("queries from zeros", R50, paper("42.9", "51.2", "45.4"), ZEROS, AT_512),
    ),
)

TINY = (
    Row("Mask2Former", CONFIG),
    Row("no masked attention", CONFIG, overrides=NO_MASK),
    Row("no deep supervision", CONFIG, overrides=LAST_ONLY),
    Row("full masks, no points", CONFIG, overrides=FULL_MASKS),
    Row("bare queries uncharged", CONFIG, overrides=UNCHARGED),
    Row("queries from zeros", CONFIG, overrides=ZEROS),
)

CLAIMS = (
    Claim("Mask2Former", "no masked attention", "PQ 51.9 and 47.1, mIoU 47.2 and 45.5"),
    Claim("Mask2Former", "no deep supervision", "no number known"),
    Claim("Mask2Former", "full masks, no points", "a third of the memory, 6 and 18 GB"),
    Claim("Mask2Former", "bare queries uncharged", "no number known"),
    Claim("Mask2Former", "queries from zeros", "PQ 51.9 and 51.2, mIoU 47.2 and 45.4"),
)

SIZE = "(64, 64)"

BUDGET = (
    "--config.steps=200",
    "--config.eval.every=200",
    "--config.checkpoint.every=200",
    "--config.data.dataset.validation=100",
    f"--config.data.dataset.size={SIZE}",
    f"--config.augment.scale={SIZE}",
    f"--config.augment.crop={SIZE}",
    f"--config.eval.scale={SIZE}",
    f"--config.eval.crop={SIZE}",
    f"--config.eval.stride={SIZE}",
    "--config.augment.max_segments=16",  # the scenes have 12 at most
    "--config.model.backbone.depths=(1, 1, 1, 1)",
    "--config.model.encoder_layers=1",
    "--config.model.queries=20",
    "--config.model.points=48",
    "--config.log.tensorboard=False",
)
"""In place of `comparison.TINY`'s, so that all trainings take less than an hour of one core."""


def main(argv: list[str]) -> int:
    args, overrides = comparison.arguments(__doc__, argv)
    if args.tiny:
        budget = [*BUDGET, *overrides]
        comparison.run_tiny("Mask2Former", TINY, CLAIMS, args, budget, ("PQ", "mIoU"))
    else:
        comparison.print_masks(TABLE, args.runs, args.measure)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
