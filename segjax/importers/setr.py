"""SETR in files of mmsegmentation 0.17 (github.com/open-mmlab/mmsegmentation): naive, PUP and MLA.

MLA's auxiliary heads are classifiers alone. The neck's maps are numbered in the order in which it
gives them, the deepest first; its norms and lateral convolutions follow the levels, the shallowest
first.
"""

from __future__ import annotations

from segjax.importers import mmseg_vit
from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv, norm

HEAD, AUX = "decode_head", "auxiliary_head.{a}"
UP = ".up_convs.{i}.{j}"
LATERAL, EXTRACT = "neck.mla.channel_proj.{i}", "neck.mla.feat_extract.{i}"

RULES = (
    *mmseg_vit.BACKBONE,
    # published name           our path                                  how
    ("neck.norm.{i}.{w}",      "neck/norm_{i}/{w}",                      norm),
    (LATERAL + ".conv.{w}",    "neck/lateral_{i}/conv/{w}",              conv),
    (LATERAL + ".bn.{w}",      "neck/lateral_{i}/norm/{w}",              bn),
    (EXTRACT + ".conv.{w}",    "neck/conv_{i}/conv/{w}",                 conv),
    (EXTRACT + ".bn.{w}",      "neck/conv_{i}/norm/{w}",                 bn),
    (HEAD + ".norm.{w}",       "head/norm/{w}",                          norm),
    (HEAD + UP + ".conv.{w}",  "head/conv_{i}_{j}/conv/{w}",             conv),
    (HEAD + UP + ".bn.{w}",    "head/conv_{i}_{j}/norm/{w}",             bn),
    (HEAD + ".conv_seg.{w}",   "head/classifier/conv/{w}",               conv),
    (AUX + ".norm.{w}",        "auxiliary_{a}/norm/{w}",                 norm),
    (AUX + UP + ".conv.{w}",   "auxiliary_{a}/conv_{i}_{j}/conv/{w}",    conv),
    (AUX + UP + ".bn.{w}",     "auxiliary_{a}/conv_{i}_{j}/norm/{w}",    bn),
    (AUX + ".conv_seg.{w}",    "auxiliary_{a}/classifier/conv/{w}",      conv),
)  # fmt: skip

DROPPED = mmseg_vit.DROPPED
