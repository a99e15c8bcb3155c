"""CRM in the files of its authors (github.com/dvlab-research/Entity, High-Quality-Segmention):
"model_45705", and what their training writes; both have names behind "module.".

The encoder's fourth stage is in the file, and its output is used nowhere.
"""

from __future__ import annotations

from segjax.importers import resnet
from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv, dense

CAM = "aspp_."

RULES = (
    *resnet.rules("feats.", shortcuts=(resnet.PLAIN,)),
    # published name                     our path                           how
    (CAM + "aspp1_128.atrous_conv.{w}",  "alignment/project_0/conv/{w}",    conv),
    (CAM + "aspp1_128.bn.{w}",           "alignment/project_0/norm1/{w}",   bn),
    (CAM + "bn1_128.{w}",                "alignment/project_0/norm2/{w}",   bn),
    (CAM + "aspp1_256.atrous_conv.{w}",  "alignment/project_1/conv/{w}",    conv),
    (CAM + "aspp1_256.bn.{w}",           "alignment/project_1/norm1/{w}",   bn),
    (CAM + "bn1_256.{w}",                "alignment/project_1/norm2/{w}",   bn),
    (CAM + "aspp1_1024.atrous_conv.{w}", "alignment/project_2/conv/{w}",    conv),
    (CAM + "aspp1_1024.bn.{w}",          "alignment/project_2/norm1/{w}",   bn),
    (CAM + "bn1_1024.{w}",               "alignment/project_2/norm2/{w}",   bn),
    (CAM + "last_conv.0.{w}",            "alignment/mix/{w}",               conv),
    (CAM + "last_conv.1.{w}",            "alignment/mix_norm/{w}",          bn),
    ("imnet.layers.0.{w}",               "implicit/layer_0/{w}",            dense),
    ("imnet.layers.2.{w}",               "implicit/layer_1/{w}",            dense),
    ("imnet.layers.4.{w}",               "implicit/layer_2/{w}",            dense),
    ("imnet.layers.6.{w}",               "implicit/layer_3/{w}",            dense),
    ("imnet.layers.8.{w}",               "implicit/layer_4/{w}",            dense),
)  # fmt: skip

DROPPED = ("*.num_batches_tracked", "feats.layer4.*")
