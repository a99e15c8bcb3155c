"""The plain ViT in files of mmsegmentation 0.15 and later: the rows that its layouts share."""

from __future__ import annotations

from segjax.importers.how import conv, dense, heads, norm, same

BLOCK = "backbone.layers.{i}"

BACKBONE = (
    # published name                        our path                                 how
    ("backbone.cls_token",                  "backbone/cls_token",                    same),
    ("backbone.dist_token",                 "backbone/dist_token",                   same),
    ("backbone.pos_embed",                  "backbone/pos_embed",                    same),
    ("backbone.patch_embed.projection.{w}", "backbone/patch_embed/{w}",              conv),
    (BLOCK + ".ln{n}.{w}",                  "backbone/block_{i}/norm{n}/{w}",        norm),
    (BLOCK + ".attn.attn.in_proj_{w}",      "backbone/block_{i}/attention/qkv/{w}",  dense),
    (BLOCK + ".attn.attn.out_proj.{w}",     "backbone/block_{i}/attention/proj/{w}", heads),
    (BLOCK + ".ffn.layers.0.0.{w}",         "backbone/block_{i}/mlp/fc1/{w}",        dense),
    (BLOCK + ".ffn.layers.1.{w}",           "backbone/block_{i}/mlp/fc2/{w}",        dense),
    ("backbone.ln1.{w}",                    "backbone/norm/{w}",                     norm),
)  # fmt: skip

DROPPED = ("*.num_batches_tracked",)
