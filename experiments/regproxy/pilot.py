r"""RegProxy's pilot experiment (its first table): classifying superpixels instead of patches.

    python -m experiments.regproxy.pilot                  # the paper's numbers beside exact counts
    python -m experiments.regproxy.pilot --tiny           # small twins on generated scenes

No code was published; what the paper leaves open is our design (segjax/systems/superpixel_vit.py).
The paper's baseline has two numbers. The first is the bilinear baseline of Table 3; we read the
second as patches painted whole ("square"), which is our guess.
"""

from __future__ import annotations

import sys

from experiments import comparison
from experiments.comparison import Claim, Row
from segjax import cli


def paper(flops: str, params: str, ade: str, city: str) -> dict[str, str]:
    return {"FLOPs": flops, "#params": params, "ADE20K": ade, "Cityscapes": city}


SQUARE = ("--config.model.regions=square",)

ROWS = tuple(
    row
    for size, flops, params, baseline, square, slic in (
        ("ti16", "3.8G", "5.7M", ("39.0", "72.3"), ("37.8", "68.1"), ("40.9", "74.1")),
        ("s16", "14.9G", "22.0M", ("45.4", "76.1"), ("44.2", "71.8"), ("46.0", "75.9")),
        ("b16", "58.8G", "86.6M", ("47.1", "78.5"), ("45.6", "75.1"), ("47.3", "77.3")),
    )
    for row in (
        Row(f"{size} bilinear", f"linear_vit/ade20k_{size}", paper(flops, params, *baseline)),
        Row(f"{size} square", f"superpixel_vit/ade20k_{size}", paper("", "", *square), SQUARE),
        Row(f"{size} SLIC", f"superpixel_vit/ade20k_{size}", paper("-", "-", *slic)),
    )
)

TINY = (
    Row("bilinear", "linear_vit/shapescapes_tiny"),
    Row("square", "superpixel_vit/shapescapes_square_tiny"),
    Row("SLIC", "superpixel_vit/shapescapes_slic_tiny"),
)

CLAIMS = (
    Claim("SLIC", "square", "+3.1 (Ti), +1.8 (S), +1.7 (B) on ADE20K"),
    Claim("SLIC", "bilinear", "+1.9 (Ti), +0.6 (S), +0.2 (B) on ADE20K; -1.2 (B) on Cityscapes"),
    Claim("bilinear", "square", "+1.2 (Ti), +1.2 (S), +1.5 (B) on ADE20K"),
)


def main(argv: list[str]) -> int:
    args, overrides = comparison.arguments(__doc__, argv)
    title = "RegProxy, pilot experiment"
    if args.tiny:
        comparison.run_tiny(title, TINY, CLAIMS, args, overrides)
    else:
        comparison.print_costs(title, ROWS, args.runs, args.measure)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
