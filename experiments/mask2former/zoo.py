r"""The model zoos of Mask2Former and MaskFormer: published figures beside exact counts.

    python -m experiments.mask2former.zoo                            # all tables, a few minutes
    python -m experiments.mask2former.zoo --table=ade20k_semantic
    python -m experiments.mask2former.zoo --table=ade20k_semantic --measure

`--measure` evaluates the workdirs of the rows that are found in RUNS, such as
runs/mask2former/ade20k_semantic_r50, made from the official file by `segjax import`; it needs the
dataset.

FLOPs here are fvcore's count, see `segjax.analysis.fvcore_flops`; on ADE20K for the crop of the
training, as in the papers' tables, elsewhere for an image that fills the evaluation scale. The
papers give means over 100 validation images for COCO, which no single size reproduces, so their
FLOPs stand here for ADE20K semantic alone. There all figures round to the paper's but two: 97.41 G
for Mask2Former's 98G of Swin-S, and 72.48 G for MaskFormer's 73G of R101.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments import comparison
from experiments.comparison import MaskTable, Row
from segjax import cli

NAMES = {
    "r50": "R50",
    "r101": "R101",
    "r101c": "R101c",
    "swin_t": "Swin-T",
    "swin_s": "Swin-S",
    "swin_b": "Swin-B",
    "swin_b_in22k": "Swin-B, ImageNet-22k",
    "swin_l": "Swin-L",
    "per_pixel_r50": "per-pixel baseline, R50",
    "per_pixel_plus_r50": "per-pixel baseline+, R50",
}

PANOPTIC = ("PQ", "AP", "mIoU")
SEMANTIC = ("mIoU", "mIoU MS")


def rows(
    prefix: str,
    columns: Sequence[str],
    published: Mapping[str, str],
    flops: Mapping[str, str] | None = None,
    sides: Mapping[str, int] | None = None,
) -> tuple[Row, ...]:
    """The lines of a table.

    Args:
        prefix: of the configs: "mask2former/coco_panoptic".
        columns: of the published figures.
        published: variant -> these figures, with slashes between.
        flops: variant -> the paper's.
        sides: variant -> side of the square image to count at; the evaluation's size if left out.
    """
    return tuple(
        Row(
            NAMES[variant],
            f"{prefix}_{variant}",
            ({"FLOPs": flops[variant]} if flops else {}) | dict(zip(columns, figures.split("/"))),
            counted=(f"--config.eval.scale=({sides[variant]}, {sides[variant]})",) if sides else (),
        )
        for variant, figures in published.items()
    )


ADE_SIDES = {name: 640 if name.startswith(("swin_b", "swin_l")) else 512 for name in NAMES}
ADE_640 = dict.fromkeys(NAMES, 640)

TABLES = {
    "coco_panoptic": MaskTable(
        "Mask2Former, COCO panoptic",
        PANOPTIC,
        rows(
            "mask2former/coco_panoptic",
            PANOPTIC,
            {
                "r50": "51.9/41.7/61.7",
                "r101": "52.6/42.6/62.4",
                "swin_t": "53.2/43.3/63.2",
                "swin_s": "54.6/44.7/64.2",
                "swin_b": "55.1/45.2/65.1",
                "swin_b_in22k": "56.4/46.3/67.1",
                "swin_l": "57.8/48.6/67.4",
            },
        ),
    ),
    "coco_instance": MaskTable(
        "Mask2Former, COCO instances",
        ("AP",),
        rows(
            "mask2former/coco_instance",
            ("AP", "boundary AP"),
            {
                "r50": "43.7/30.6",
                "r101": "44.2/31.1",
                "swin_t": "45.0/31.8",
                "swin_s": "46.3/32.9",
                "swin_b": "46.7/33.2",
                "swin_b_in22k": "48.1/34.4",
                "swin_l": "50.1/36.2",
            },
        ),
    ),
    "ade20k_panoptic": MaskTable(
        "Mask2Former, ADE20K panoptic",
        PANOPTIC,
        rows(
            "mask2former/ade20k_panoptic",
            PANOPTIC,
            {"r50": "39.7/26.5/46.1", "swin_l": "48.1/34.2/54.5"},
            sides=ADE_640,
        ),
    ),
    "ade20k_instance": MaskTable(
        "Mask2Former, ADE20K instances",
        ("AP",),
        rows(
            "mask2former/ade20k_instance", ("AP",), {"r50": "26.4", "swin_l": "34.9"}, sides=ADE_640
        ),
    ),
    "ade20k_semantic": MaskTable(
        "Mask2Former, ADE20K semantic",
        SEMANTIC,
        rows(
            "mask2former/ade20k_semantic",
            SEMANTIC,
            {
                "r50": "47.2/49.2",
                "r101": "47.8/50.1",
                "swin_t": "47.7/49.6",
                "swin_s": "51.3/52.4",
                "swin_b": "52.4/53.7",
                "swin_b_in22k": "53.9/55.1",
                "swin_l": "56.1/57.3",
            },
            {
                "r50": "71G",
                "r101": "90G",
                "swin_t": "74G",
                "swin_s": "98G",
                "swin_b": "223G",
                "swin_b_in22k": "223G",
                "swin_l": "403G",
            },
            ADE_SIDES,
        ),
    ),
    "cityscapes_panoptic": MaskTable(
        "Mask2Former, Cityscapes panoptic",
        PANOPTIC,
        rows(
            "mask2former/cityscapes_panoptic",
            PANOPTIC,
            {
                "r50": "62.1/37.3/77.5",
                "r101": "62.4/37.7/78.6",
                "swin_t": "63.9/39.1/80.5",
                "swin_s": "64.8/40.7/81.8",
                "swin_b": "66.1/42.8/82.7",
                "swin_l": "66.6/43.6/82.9",
            },
        ),
    ),
    "cityscapes_instance": MaskTable(
        "Mask2Former, Cityscapes instances",
        ("AP",),
        rows(
            "mask2former/cityscapes_instance",
            ("AP",),
            {
                "r50": "37.4",
                "r101": "38.5",
                "swin_t": "39.7",
                "swin_s": "41.8",
                "swin_b": "42.0",
                "swin_l": "43.7",
            },
        ),
    ),
    "cityscapes_semantic": MaskTable(
        "Mask2Former, Cityscapes semantic",
        SEMANTIC,
        rows(
            "mask2former/cityscapes_semantic",
            SEMANTIC,
            {
                "r50": "79.4/82.2",
                "r101": "80.1/81.9",
                "swin_t": "82.1/83.0",
                "swin_s": "82.6/83.6",
                "swin_b": "83.3/84.5",
                "swin_l": "83.3/84.3",
            },
        ),
    ),
    "mapillary_panoptic": MaskTable(
        "Mask2Former, Mapillary Vistas panoptic",
        ("PQ", "mIoU"),
        rows(
            "mask2former/mapillary_panoptic",
            ("PQ", "mIoU"),
            {"r50": "36.3/50.7", "swin_l": "45.5/60.8"},
        ),
    ),
    "mapillary_semantic": MaskTable(
        "Mask2Former, Mapillary Vistas semantic",
        SEMANTIC,
        rows(
            "mask2former/mapillary_semantic",
            SEMANTIC,
            {"r50": "57.4/59.0", "swin_l": "63.2/64.7"},
        ),
    ),
    "maskformer_coco_panoptic": MaskTable(
        "MaskFormer, COCO panoptic",
        ("PQ",),
        rows(
            "maskformer/coco_panoptic",
            ("PQ",),
            {
                "r50": "46.5",
                "r101": "47.6",
                "swin_t": "47.7",
                "swin_s": "49.7",
                "swin_b": "51.8",
                "swin_l": "52.7",
            },
        ),
    ),
    "maskformer_ade20k_panoptic": MaskTable(
        "MaskFormer, ADE20K panoptic",
        ("PQ",),
        rows("maskformer/ade20k_panoptic", ("PQ",), {"r50": "34.7", "r101": "35.7"}, sides=ADE_640),
    ),
    "maskformer_ade20k_semantic": MaskTable(
        "MaskFormer, ADE20K semantic",
        SEMANTIC,
        rows(
            "maskformer/ade20k_semantic",
            SEMANTIC,
            {
                "r50": "44.5/46.7",
                "r101": "45.5/47.2",
                "r101c": "46.0/48.1",
                "swin_t": "46.7/48.8",
                "swin_s": "49.8/51.0",
                "swin_b": "52.7/53.9",
                "swin_l": "54.1/55.6",
            },
            {
                "r50": "53G",
                "r101": "73G",
                "r101c": "80G",
                "swin_t": "55G",
                "swin_s": "79G",
                "swin_b": "195G",
                "swin_l": "375G",
            },
            ADE_SIDES,
        )
        + rows(
            "maskformer/ade20k",
            SEMANTIC,
            {"per_pixel_r50": "39.2/40.9", "per_pixel_plus_r50": "41.9/42.9"},
        ),
    ),
    "maskformer_cityscapes_semantic": MaskTable(
        "MaskFormer, Cityscapes semantic",
        SEMANTIC,
        rows(
            "maskformer/cityscapes_semantic",
            SEMANTIC,
            {"r101": "78.5/80.3", "r101c": "79.7/81.4"},
        ),
    ),
    "maskformer_mapillary_semantic": MaskTable(
        "MaskFormer, Mapillary Vistas semantic",
        SEMANTIC,
        rows("maskformer/mapillary_semantic", SEMANTIC, {"r50": "53.1/55.4"}),
    ),
}


def main(argv: list[str]) -> int:
    return comparison.print_mask_tables(__doc__, TABLES, argv)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
