"""HSSN on DeepLabV3+ in the files of its authors (github.com/qhanghu/HSSN_pytorch).

Their `decode_head.step`, one number, counts the calls of the loss; it is a variable here too.
"""

from __future__ import annotations

from segjax.importers import deeplab_v3plus, resnet
from segjax.importers.how import How, conv
from segjax.importers.how import batch_norm as bn

PROJECTION = "decode_head.proj_head.proj"

scalar = How({}, lambda leaf, x, shape: x.reshape(shape), lambda leaf, x: x.reshape(1))

RULES = (
    *deeplab_v3plus.rules((resnet.POOLED,)),
    # published name        our path                   how
    (PROJECTION + ".0.{w}", "projection/conv_0/{w}",   conv),
    (PROJECTION + ".1.{w}", "projection/norm/{w}",     bn),
    (PROJECTION + ".3.{w}", "projection/conv_1/{w}",   conv),
    ("decode_head.step",    "step",                    scalar),
)  # fmt: skip

DROPPED = ("*.num_batches_tracked", "criterion.empty_weight", "*.relative_position_index")
