"""ViT and DeiT as Hugging Face transformers saves them (ViTModel, ViTForImageClassification,
DeiTForImageClassificationWithTeacher, ...).

Queries, keys and values lie apart. Their configs use a norm epsilon of 1e-12, ours is 1e-6; how
much that changes the features of a published file has not been measured.
"""

from __future__ import annotations

from segjax.importers.how import conv, dense, heads, norm, same

BLOCK = "encoder.layer.{i}"
HEADS = BLOCK + ".attention.attention"
QKV = (HEADS + ".query.{w}", HEADS + ".key.{w}", HEADS + ".value.{w}")

RULES = (
    # published name                               our path                                 how
    ("embeddings.cls_token",                       "backbone/cls_token",                    same),
    ("embeddings.distillation_token",              "backbone/dist_token",                   same),
    ("embeddings.position_embeddings",             "backbone/pos_embed",                    same),
    ("embeddings.patch_embeddings.projection.{w}", "backbone/patch_embed/{w}",              conv),
    (BLOCK + ".layernorm_before.{w}",              "backbone/block_{i}/norm1/{w}",          norm),
    (QKV,                                          "backbone/block_{i}/attention/qkv/{w}",  dense),
    (BLOCK + ".attention.output.dense.{w}",        "backbone/block_{i}/attention/proj/{w}", heads),
    (BLOCK + ".layernorm_after.{w}",               "backbone/block_{i}/norm2/{w}",          norm),
    (BLOCK + ".intermediate.dense.{w}",            "backbone/block_{i}/mlp/fc1/{w}",        dense),
    (BLOCK + ".output.dense.{w}",                  "backbone/block_{i}/mlp/fc2/{w}",        dense),
    ("layernorm.{w}",                              "backbone/norm/{w}",                     norm),
)  # fmt: skip

# What a classifying or masking model adds around the encoder.
DROPPED = (
    "classifier.*", "cls_classifier.*", "distillation_classifier.*", "pooler.*",
    "embeddings.mask_token", "decoder.*",
)  # fmt: skip

# Models with a head keep the encoder under such a prefix.
PREFIXES = ("vit.", "deit.")
