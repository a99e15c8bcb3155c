"""The files of Segmenter's authors (github.com/rstrudel/segmenter), with the linear decoder or the
Mask Transformer; tensors lie under "model".

The encoder keeps timm's names behind a prefix, and its ImageNet classifiers, which nothing uses.
"""

from __future__ import annotations

from segjax.importers import timm
from segjax.importers.how import dense, heads, norm, same

DECODER = "decoder.blocks.{i}"
OURS = "decoder/block_{i}"

RULES = (
    # published name                  our path                        how
    *((f"encoder.{name}", *rest) for name, *rest in timm.RULES),
    ("decoder.head.{w}",              "decoder/classifier/{w}",       dense),
    ("decoder.cls_emb",               "decoder/cls_emb",              same),
    ("decoder.proj_dec.{w}",          "decoder/proj_dec/{w}",         dense),
    (DECODER + ".norm{n}.{w}",        OURS + "/norm{n}/{w}",          norm),
    (DECODER + ".attn.qkv.{w}",       OURS + "/attention/qkv/{w}",    dense),
    (DECODER + ".attn.proj.{w}",      OURS + "/attention/proj/{w}",   heads),
    (DECODER + ".mlp.fc{n}.{w}",      OURS + "/mlp/fc{n}/{w}",        dense),
    ("decoder.decoder_norm.{w}",      "decoder/decoder_norm/{w}",     norm),
    ("decoder.mask_norm.{w}",         "decoder/mask_norm/{w}",        norm),
    # Multiplied from the right, so these two are not transposed.
    ("decoder.proj_patch",            "decoder/proj_patch",           same),
    ("decoder.proj_classes",          "decoder/proj_classes",         same),
)  # fmt: skip

DROPPED = ("encoder.head.*", "encoder.head_dist.*", "encoder.pre_logits.*")
