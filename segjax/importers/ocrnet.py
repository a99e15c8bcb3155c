"""OCRNet on HRNet in files of mmsegmentation (github.com/open-mmlab/mmsegmentation)."""

from __future__ import annotations

from segjax.importers import hrnet
from segjax.importers.deeplab_v3plus import conv_module
from segjax.importers.how import conv

COARSE, HEAD = "decode_head.0.", "decode_head.1."
ATTENTION = HEAD + "object_context_block."


RULES = (
    *hrnet.rules("backbone.", "backbone/"),
    *conv_module(COARSE + "convs.{i}", "coarse/conv_{i}"),
    (COARSE + "conv_seg.{w}", "coarse/classifier/conv/{w}", conv),
    *conv_module(HEAD + "bottleneck", "head/bottleneck"),
    *conv_module(ATTENTION + "query_project.{i}", "head/attention/query_{i}"),
    *conv_module(ATTENTION + "key_project.{i}", "head/attention/key_{i}"),
    *conv_module(ATTENTION + "value_project", "head/attention/value"),
    *conv_module(ATTENTION + "out_project", "head/attention/out"),
    *conv_module(ATTENTION + "bottleneck", "head/attention/bottleneck"),
    (HEAD + "conv_seg.{w}", "head/classifier/conv/{w}", conv),
)

DROPPED = ("*.num_batches_tracked",)
