"""ADE20K's validation images, their segmentation by a network taken apart into objects.

So CascadePSP refines scenes (Cheng et al., CVPR 2020, scene parsing).

The layout is that of the published "split" inputs: an image X_im.jpg has a mask for every connected
part of every class that is larger than 32 x 32 pixels, X_C.K_gt.png and X_C.K_seg.png, C being the
class (1 to 150) and K the number of the part. An example is one part. What is right or wrong within
a part says little of the scene; whole label maps are refined and scored by
`experiments.crm.scenes`.
"""

from __future__ import annotations

from os import PathLike

from segjax.data import refinement
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Source


def image_of(part: str) -> str:
    """X for the part X_C.K."""
    return part.rpartition("_")[0]


TEST_SET = refinement.TestSet(
    dataset="ade20k_refinement",
    title="ADE20K in parts",
    folders={"validation": ("", "split_ss")},
    page="https://github.com/hkchengrex/CascadePSP/blob/master/docs/dataset.md",
    archives="a pre-processed 'split' input of ADE20K",
    layout="""
split_ss/ADE_val_00000001_im.jpg
split_ss/ADE_val_00000001_1.1_gt.png    class 1, part 1: exact
split_ss/ADE_val_00000001_1.1_seg.png   class 1, part 1: of the network
""",
    image_of=image_of,
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
        manual_dir: holds the files; default <data_dir>/downloads/manual/ade20k_refinement. When it
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
