"""CascadePSP in the files of its authors (github.com/hkchengrex/CascadePSP), those of the package
segmentation-refinement included: they have the same names, behind "module."."""

from __future__ import annotations

from segjax.importers import resnet
from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv

RULES = (
    *resnet.rules("feats.", shortcuts=(resnet.PLAIN,)),
    # published name         our path                  how
    ("psp.stages.{n}.1.{w}", "psp/grid_{n}/{w}",       conv),
    ("psp.bottleneck.{w}",   "psp/bottleneck/{w}",     conv),
    ("up_{n}.conv.0.{w}",    "up_{n}/norm1/{w}",       bn),
    ("up_{n}.conv.2.{w}",    "up_{n}/conv1/{w}",       conv),
    ("up_{n}.conv.3.{w}",    "up_{n}/norm2/{w}",       bn),
    ("up_{n}.conv.5.{w}",    "up_{n}/conv2/{w}",       conv),
    ("up_{n}.conv2.0.{w}",   "up_{n}/norm3/{w}",       bn),
    ("up_{n}.conv2.2.{w}",   "up_{n}/conv3/{w}",       conv),
    ("up_{n}.conv2.3.{w}",   "up_{n}/norm4/{w}",       bn),
    ("up_{n}.conv2.5.{w}",   "up_{n}/conv4/{w}",       conv),
    ("up_{n}.shortcut.{w}",  "up_{n}/shortcut/{w}",    conv),
    ("final_28.0.{w}",       "head_8/conv1/{w}",       conv),
    ("final_28.2.{w}",       "head_8/conv2/{w}",       conv),
    ("final_56.0.{w}",       "head_4/conv1/{w}",       conv),
    ("final_56.2.{w}",       "head_4/conv2/{w}",       conv),
    ("final_11.{w}",         "head_1/conv1/{w}",       conv),
    ("final_21.{w}",         "head_1/conv2/{w}",       conv),
)  # fmt: skip

DROPPED = ("*.num_batches_tracked",)
