"""The files of RegProxy's authors (github.com/YiF-Zhang/RegionProxy, mmcv format): the six ADE20K
and four Cityscapes models.

In the hybrids the 1x1 projection is called `proj`, not `projection`. The affinity's last
convolution keeps its channel order: neighbour, then cell.
"""

from __future__ import annotations

from segjax.importers.how import batch_norm as bn
from segjax.importers.how import conv, dense, heads, norm, pointwise, same

BLOCK = "backbone.layers.{i}"
STEM = "backbone.patch_embed.backbone"
UNIT = STEM + ".stages.{s}.blocks.{b}"
HEAD = "decode_head.affinity_head"
OURS = "backbone/stem/stage{s}_block{b}"

# A fourth entry restricts a rule to models that have such a path.
RULES = (
    # published name                        our path                                 how
    ("backbone.cls_token",                  "backbone/cls_token",                    same),
    ("backbone.dist_token",                 "backbone/dist_token",                   same),
    ("backbone.pos_embed",                  "backbone/pos_embed",                    same),
    ("backbone.patch_embed.proj.{w}",       "backbone/patch_embed/{w}",              conv,
     "backbone/stem/"),
    ("backbone.patch_embed.projection.{w}", "backbone/patch_embed/{w}",              conv),
    (BLOCK + ".ln{n}.{w}",                  "backbone/block_{i}/norm{n}/{w}",        norm),
    (BLOCK + ".attn.attn.in_proj_{w}",      "backbone/block_{i}/attention/qkv/{w}",  dense),
    (BLOCK + ".attn.attn.out_proj.{w}",     "backbone/block_{i}/attention/proj/{w}", heads),
    (BLOCK + ".ffn.layers.0.0.{w}",         "backbone/block_{i}/mlp/fc1/{w}",        dense),
    (BLOCK + ".ffn.layers.1.{w}",           "backbone/block_{i}/mlp/fc2/{w}",        dense),
    ("backbone.ln1.{w}",                    "backbone/norm/{w}",                     norm),
    (STEM + ".stem.conv.{w}",               "backbone/stem/conv/{w}",                conv),
    (STEM + ".stem.norm.{w}",               "backbone/stem/norm/{w}",                norm),
    (UNIT + ".conv{n}.{w}",                 OURS + "/conv{n}/{w}",                   conv),
    (UNIT + ".norm{n}.{w}",                 OURS + "/norm{n}/{w}",                   norm),
    (UNIT + ".downsample.conv.{w}",         OURS + "/shortcut/{w}",                  conv),
    (UNIT + ".downsample.norm.{w}",         OURS + "/shortcut_norm/{w}",             norm),
    (HEAD + ".0.depthwise_conv.conv.{w}",   "head/affinity/depthwise/{w}",           conv),
    (HEAD + ".0.depthwise_conv.bn.{w}",     "head/affinity/depthwise_norm/{w}",      bn),
    (HEAD + ".0.pointwise_conv.conv.{w}",   "head/affinity/pointwise/{w}",           pointwise),
    (HEAD + ".0.pointwise_conv.bn.{w}",     "head/affinity/pointwise_norm/{w}",      bn),
    (HEAD + ".1.conv.{w}",                  "head/affinity/logits/{w}",              pointwise),
    ("decode_head.mlp.0.0.{w}",             "head/classifier/{w}",                   dense),
)  # fmt: skip

DROPPED = ("*.num_batches_tracked",)
