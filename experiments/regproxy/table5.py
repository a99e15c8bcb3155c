r"""RegProxy's Table 5: comparison with the state of the art on Cityscapes.

    python -m experiments.regproxy.table5                 # the paper's numbers beside exact counts
    python -m experiments.regproxy.table5 --tiny          # sliding windows over generated scenes

The table's FLOPs are those of the 8 windows of a 1024 x 2048 image, in mmcv's count, which leaves
out attention; so are the MACs here. Rows without a config are quoted.
"""

from __future__ import annotations

import sys

from experiments import comparison
from experiments.comparison import Claim, Row
from segjax import cli


def paper(crop: str, flops: str, params: str, miou: str) -> dict[str, str]:
    return {"crop": crop, "FLOPs": flops, "#params": params, "mIoU SS/MS": miou}


# The table counts 8 windows for Segmenter too; its own evaluation makes 6 of an image.
STRIDE = ("--config.eval.stride=(512, 512)",)

ROWS = (
    Row("DeepLabV3+ ResNet-18", paper=paper("769", "992G", "12M", "76.3 / 77.9")),
    Row("OCRNet HRNet-W18", paper=paper("full", "424G", "12M", "78.6 / 80.5")),
    Row("SegFormer MiT-B0", paper=paper("768", "52G", "4M", "75.3 / -")),
    Row("SegFormer MiT-B1", paper=paper("1024", "244G", "14M", "78.5 / 80.0")),
    Row("RegProxy ViT-Ti/16", "regproxy/cityscapes_ti16", paper("768", "69G", "6M", "76.5 / 77.7")),
    Row("RegProxy ViT-S/16", "regproxy/cityscapes_s16", paper("768", "270G", "23M", "79.8 / 81.5")),
    Row("OCRNet HRNet-W48", paper=paper("full", "1297G", "70M", "80.7 / 81.9")),
    Row("Auto-DeepLab NAS-F48", paper=paper("769", "-", "44M", "- / 80.4")),
    Row("Axial-DeepLab-XL", paper=paper("-", "2447G", "173M", "- / 81.1")),
    Row("DeepLabV3+ ResNeSt-200", paper=paper("full", "-", "88M", "- / 82.7")),
    Row("SETR ViT-B/16", paper=paper("768", "-", "98M", "79.5 / -")),
    Row("SETR ViT-L/16", paper=paper("768", "-", "318M", "79.3 / 82.2")),
    Row(
        "Segmenter ViT-B/16",
        "segmenter/cityscapes_b16_mask",
        paper("768", "1344G", "103M", "- / 80.6"),
        counted=STRIDE,
    ),
    Row(
        "Segmenter ViT-L/16",
        "segmenter/cityscapes_l16_mask",
        paper("768", "-", "337M", "79.1 / 81.3"),
        counted=STRIDE,
    ),
    Row(
        "RegProxy ViT-B/16", "regproxy/cityscapes_b16", paper("768", "1064G", "88M", "81.0 / 82.2")
    ),
    Row("RegProxy ViT-L/16", "regproxy/cityscapes_l16", paper("768", "-", "307M", "81.4 / 82.7")),
)

# Scenes twice as wide as a window, three windows over each.
SLIDING = (
    "--config.data.dataset.size=(96, 192)",
    "--config.augment.scale=(192, 96)",
    "--config.augment.crop=(96, 96)",
    "--config.model.image_size=(96, 96)",
    "--config.eval.mode=slide",
    "--config.eval.scale=(192, 96)",
    "--config.eval.crop=(96, 96)",
    "--config.eval.stride=(64, 64)",
)
NARROW = ("--config.model.backbone.width=64",)

TINY = (
    Row("linear, width 128", "linear_vit/shapescapes_tiny", overrides=SLIDING),
    Row("Segmenter, width 128", "segmenter/shapescapes_tiny", overrides=SLIDING),
    Row("RegProxy, width 64", "regproxy/shapescapes_tiny", overrides=SLIDING + NARROW),
    Row("RegProxy, width 128", "regproxy/shapescapes_tiny", overrides=SLIDING),
)

CLAIMS = (
    Claim("RegProxy, width 128", "linear, width 128", "S 79.8 and 76.1 (Table 3)"),
    Claim("RegProxy, width 128", "Segmenter, width 128", "B 82.2 and 80.6, multi-scale"),
    Claim("RegProxy, width 128", "RegProxy, width 64", "S 79.8 and Ti 76.5"),
)


def main(argv: list[str]) -> int:
    args, overrides = comparison.arguments(__doc__, argv)
    title = "RegProxy, Table 5"
    if args.tiny:
        comparison.run_tiny(title, TINY, CLAIMS, args, overrides)
    else:
        comparison.print_costs(title, ROWS, args.runs, args.measure, all_windows=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
