"""500 images of PASCAL VOC 2012 with exact boundaries (Cheng et al., CascadePSP, CVPR 2020), one
object each, and the coarse masks of a segmentation network.
"""

from __future__ import annotations

from os import PathLike

from segjax.data import refinement
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Source

TEST_SET = refinement.TestSet(
    dataset="pascal_relabelled",
    title="Relabelled PASCAL VOC 2012",
    folders={"validation": ("", "val")},
    page="https://github.com/hkchengrex/CascadePSP/blob/master/docs/dataset.md",
    archives="Relabeled PASCAL VOC 2012 and the segmentation inputs of a network",
    layout="""
X_im.jpg              (500 images)
X_gt.png              exact masks, 255 where the object is
X_seg.png             coarse masks
""",
)


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    coarse: str = "",
) -> Dataset:
    """Loads a split.

    Args:
        split: "validation".
        data_dir: where prepared data lies.
        manual_dir: holds the files; default <data_dir>/downloads/manual/pascal_relabelled. When it
            is gone, an existing prepared copy is used.
        coarse: a folder (relative to `manual_dir`) of X_seg.png to take in place of those beside
            the images, e.g. those of another network.
    """
    return TEST_SET.load(split, data_dir, manual_dir, coarse)


def label_space(**options: object) -> LabelSpace:
    """Background and object."""
    return refinement.LABEL_SPACE


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    coarse: str = "",
) -> Source:
    """The files of a split. Options as in `load`."""
    return TEST_SET.source(split, data_dir, manual_dir, coarse)
