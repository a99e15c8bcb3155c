"""ViT backbones as timm names them: AugReg (plain, and the hybrids R26+S/32 and R50+L/32) and DeiT.

A training initialisation: there is no segmentation head in these files.
"""

from __future__ import annotations

from segjax.importers.how import conv, dense, heads, norm, same

UNIT = "patch_embed.backbone.stages.{s}.blocks.{b}"
OURS = "backbone/stem/stage{s}_block{b}"

RULES = (
    # published name                       our path                                 how
    ("cls_token",                          "backbone/cls_token",                    same),
    ("dist_token",                         "backbone/dist_token",                   same),
    ("pos_embed",                          "backbone/pos_embed",                    same),
    ("patch_embed.proj.{w}",               "backbone/patch_embed/{w}",              conv),
    ("blocks.{i}.norm{n}.{w}",             "backbone/block_{i}/norm{n}/{w}",        norm),
    ("blocks.{i}.attn.qkv.{w}",            "backbone/block_{i}/attention/qkv/{w}",  dense),
    ("blocks.{i}.attn.proj.{w}",           "backbone/block_{i}/attention/proj/{w}", heads),
    ("blocks.{i}.mlp.fc{n}.{w}",           "backbone/block_{i}/mlp/fc{n}/{w}",      dense),
    ("norm.{w}",                           "backbone/norm/{w}",                     norm),
    ("patch_embed.backbone.stem.conv.{w}", "backbone/stem/conv/{w}",                conv),
    ("patch_embed.backbone.stem.norm.{w}", "backbone/stem/norm/{w}",                norm),
    (UNIT + ".conv{n}.{w}",                OURS + "/conv{n}/{w}",                   conv),
    (UNIT + ".norm{n}.{w}",                OURS + "/norm{n}/{w}",                   norm),
    (UNIT + ".downsample.conv.{w}",        OURS + "/shortcut/{w}",                  conv),
    (UNIT + ".downsample.norm.{w}",        OURS + "/shortcut_norm/{w}",             norm),
)  # fmt: skip

# The ImageNet classifiers.
DROPPED = ("head.*", "head_dist.*", "pre_logits.*")
