"""ResNets as detectron2 names them: its model zoo's .pkl ("torchvision/R-50.pkl", DeepLab's R-103)
and, behind a prefix, the backbones of systems built on it.

A training initialisation: there is no segmentation head in these files.
"""

from __future__ import annotations

from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv
from segjax.importers.resnet import Rows


def rules(prefix: str = "", ours: str = "backbone/") -> Rows:
    """The rows of a backbone whose names start with `prefix` and whose paths start with `ours`.

    The only convolution of a plain stem and the first one of a deep stem have the same name.
    """
    stem, unit, our_unit = prefix + "stem.", prefix + "res{s}.{b}.", ours + "res{s}_{b}/"
    return (
        # published name             our path                         how
        (stem + "conv1.{w}",         ours + "stem_conv/{w}",          conv),
        (stem + "conv1.norm.{w}",    ours + "stem_norm/{w}",          bn),
        (stem + "conv{n}.{w}",       ours + "stem_conv{n}/{w}",       conv),
        (stem + "conv{n}.norm.{w}",  ours + "stem_norm{n}/{w}",       bn),
        (unit + "conv{n}.{w}",       our_unit + "conv{n}/{w}",        conv),
        (unit + "conv{n}.norm.{w}",  our_unit + "norm{n}/{w}",        bn),
        (unit + "shortcut.{w}",      our_unit + "shortcut/{w}",       conv),
        (unit + "shortcut.norm.{w}", our_unit + "shortcut_norm/{w}",  bn),
    )  # fmt: skip


RULES = rules()

# The ImageNet classifier, which the converted torchvision files carry under "stem".
DROPPED = ("stem.fc.*", "linear.*", "*.num_batches_tracked")
