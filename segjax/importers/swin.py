"""Swin Transformers as their authors name them (github.com/microsoft/Swin-Transformer, under
"model"), and, behind a prefix, as backbones of systems built on their detection code.

A training initialisation: there is no segmentation head in these files.
"""

from __future__ import annotations

from segjax.importers.how import conv, dense, heads, norm, same
from segjax.importers.resnet import Rows


def rules(prefix: str = "", ours: str = "backbone/") -> Rows:
    """The rows of a backbone whose names start with `prefix` and whose paths start with `ours`."""
    block, our_block = prefix + "layers.{s}.blocks.{b}.", ours + "stage_{s}/block_{b}/"
    down, our_down = prefix + "layers.{s}.downsample.", ours + "stage_{s}/downsample/"
    table = "relative_position_bias_table"
    return (
        # published name                   our path                               how
        (prefix + "patch_embed.proj.{w}",  ours + "patch_embed/{w}",              conv),
        (prefix + "patch_embed.norm.{w}",  ours + "patch_norm/{w}",               norm),
        (block + "norm{n}.{w}",            our_block + "norm{n}/{w}",             norm),
        (block + "attn.qkv.{w}",           our_block + "attention/qkv/{w}",       dense),
        (block + "attn.proj.{w}",          our_block + "attention/proj/{w}",      heads),
        (block + "attn." + table,          our_block + "attention/" + table,      same),
        (block + "mlp.fc{n}.{w}",          our_block + "mlp/fc{n}/{w}",           dense),
        (down + "norm.{w}",                our_down + "norm/{w}",                 norm),
        (down + "reduction.{w}",           our_down + "reduction/{w}",            dense),
        (prefix + "norm{n}.{w}",           ours + "norm{n}/{w}",                  norm),
    )  # fmt: skip


RULES = rules()

# The ImageNet classifier with its norm, and what follows from the sizes.
DROPPED = ("head.*", "norm.*", "*.attn_mask", "*.relative_position_index")

# The norms of the levels are not in the files of classifiers: they start as they are.
FRESH = ("backbone/norm[0-9]/*",)
