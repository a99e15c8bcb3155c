"""UPerNet on a ViT in files of mmsegmentation 0.17 (github.com/open-mmlab/mmsegmentation)."""

from __future__ import annotations

from segjax.importers import mmseg_vit
from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv

HEAD, AUX = "decode_head", "auxiliary_head"
POOL = HEAD + ".psp_modules.{i}.1"

RULES = (
    *mmseg_vit.BACKBONE,
    # published name                           our path                         how
    ("neck.lateral_convs.{i}.conv.{w}",        "neck/lateral_{i}/{w}",          conv),
    ("neck.convs.{i}.conv.{w}",                "neck/conv_{i}/{w}",             conv),
    (POOL + ".conv.{w}",                       "head/pooling/grid_{i}/conv/{w}", conv),
    (POOL + ".bn.{w}",                         "head/pooling/grid_{i}/norm/{w}", bn),
    (HEAD + ".bottleneck.conv.{w}",            "head/bottleneck/conv/{w}",      conv),
    (HEAD + ".bottleneck.bn.{w}",              "head/bottleneck/norm/{w}",      bn),
    (HEAD + ".lateral_convs.{i}.conv.{w}",     "head/lateral_{i}/conv/{w}",     conv),
    (HEAD + ".lateral_convs.{i}.bn.{w}",       "head/lateral_{i}/norm/{w}",     bn),
    (HEAD + ".fpn_convs.{i}.conv.{w}",         "head/fpn_{i}/conv/{w}",         conv),
    (HEAD + ".fpn_convs.{i}.bn.{w}",           "head/fpn_{i}/norm/{w}",         bn),
    (HEAD + ".fpn_bottleneck.conv.{w}",        "head/fusion/conv/{w}",          conv),
    (HEAD + ".fpn_bottleneck.bn.{w}",          "head/fusion/norm/{w}",          bn),
    (HEAD + ".conv_seg.{w}",                   "head/classifier/conv/{w}",      conv),
    (AUX + ".convs.{i}.conv.{w}",              "auxiliary/conv_{i}/conv/{w}",   conv),
    (AUX + ".convs.{i}.bn.{w}",                "auxiliary/conv_{i}/norm/{w}",   bn),
    (AUX + ".conv_seg.{w}",                    "auxiliary/classifier/conv/{w}", conv),
)  # fmt: skip

DROPPED = mmseg_vit.DROPPED
