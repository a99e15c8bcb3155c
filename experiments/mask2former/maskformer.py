r"""MaskFormer's rows in the tables of RegProxy, HSSN, PISR and CMT-DeepLab.

    python -m experiments.mask2former.maskformer                     # papers' numbers, exact counts
    python -m experiments.mask2former.maskformer --table=pisr_3 --measure

All but one are models of MaskFormer's zoo. HSSN's Swin-S on Cityscapes is not: its row has the
Cityscapes recipe of R101 with the optimizer of the Swins. HSSN's rows are mIoU of the 7 and of
the 19 classes; the 19 are what is measured here. PISR's Swin-L is printed under COCO's test set
with the zoo's number on its validation set. Of PISR's ADE20K rows we remember other parts of the
PQ in MaskFormer's own paper for R50: PQth 32.2, PQst 39.7, SQ 76.7, RQ 42.8.

FLOPs here are fvcore's count, without the masks that only training needs, as the tables have them.
"""

from __future__ import annotations

import sys

from experiments import comparison
from experiments.comparison import MaskTable, Row
from segjax import cli

AT_512 = ("--config.eval.scale=(512, 512)",)
AT_640 = ("--config.eval.scale=(640, 640)",)

SWIN_ON_CITYSCAPES = (
    "--config.model.backbone=swin_s",
    "--config.optimizer.learning_rate=6e-5",
    "--config.optimizer.weight_decay=0.01",
    "--config.optimizer.rates=()",
    "--config.schedule.warmup_steps=1500",
)

PARTS = ("PQ", "PQth", "PQst")


def parts(*figures: str) -> dict[str, str]:
    return dict(zip((*PARTS, "SQ", "RQ"), figures))


TABLES = {
    "regproxy_4": MaskTable(
        "RegProxy, Table 4: ADE20K",
        ("mIoU", "mIoU MS"),
        (
            Row(
                "MaskFormer Swin-T",
                "maskformer/ade20k_semantic_swin_t",
                {
                    "FLOPs": "55G",
                    "#params": "42M",
                    "mIoU": "46.7",
                    "mIoU MS": "48.8",
                    "FPS": "22.1",
                },
                counted=AT_512,
            ),
        ),
    ),
    "hssn_2": MaskTable(
        "HSSN, Table 2: Cityscapes",
        ("mIoU",),
        (
            Row(
                "MaskFormer Swin-S",
                "maskformer/cityscapes_semantic_r101",
                {"mIoU of 7": "92.96", "mIoU of 19": "82.57"},
                SWIN_ON_CITYSCAPES,
            ),
            Row("HSSN on it", paper={"mIoU of 7": "94.39", "mIoU of 19": "83.74"}),
        ),
    ),
    "pisr_2": MaskTable(
        "PISR, Table 2: COCO test",
        PARTS,
        (
            Row(
                "MaskFormer Swin-L",
                "maskformer/coco_panoptic_swin_l",
                parts("52.7", "58.5", "44.0"),
            ),
        ),
    ),
    "pisr_3": MaskTable(
        "PISR, Table 3: ADE20K panoptic",
        (*PARTS, "SQ", "RQ"),
        (
            Row(
                "MaskFormer R50",
                "maskformer/ade20k_panoptic_r50",
                parts("34.7", "32.5", "38.0", "76.3", "41.7"),
                counted=AT_640,
            ),
            Row("+ PISR", paper=parts("36.1", "34.7", "39.0", "78.3", "44.3")),
            Row(
                "MaskFormer R101",
                "maskformer/ade20k_panoptic_r101",
                parts("35.7", "34.5", "38.0", "77.4", "43.8"),
                counted=AT_640,
            ),
            Row("+ PISR", paper=parts("37.0", "35.6", "39.7", "79.9", "45.2")),
        ),
    ),
    "cmt_deeplab_1": MaskTable(
        "CMT-DeepLab, Table 1: COCO",
        PARTS,
        (
            Row(
                "MaskFormer Swin-B",
                "maskformer/coco_panoptic_swin_b",
                {"#params": "102M", **parts("51.8", "56.9", "44.1"), "test-dev PQ/th/st": "-"},
            ),
            Row(
                "MaskFormer Swin-L",
                "maskformer/coco_panoptic_swin_l",
                {
                    "#params": "212M",
                    **parts("52.7", "58.5", "44.0"),
                    "test-dev PQ/th/st": "53.3/59.1/44.5",
                },
            ),
        ),
    ),
}


def main(argv: list[str]) -> int:
    return comparison.print_mask_tables(__doc__, TABLES, argv)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
