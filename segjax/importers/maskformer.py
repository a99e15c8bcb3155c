"""MaskFormer's files: the zoo's .pkl and what the official code saves
(github.com/facebookresearch/MaskFormer), with or without the encoder, and the per-pixel baselines.
"""

from __future__ import annotations

from segjax.importers import mask2former
from segjax.importers.how import conv, dense, heads, norm
from segjax.importers.mask2former import PIXEL, PREDICTOR

ENCODER = PIXEL + "transformer.encoder.layers.{i}."
OUR_ENCODER = "pixel_decoder/encoder_{i}/"
LAYER = PREDICTOR + "transformer.decoder.layers.{i}."
QUERY = "predictor/layer_{i}/"


def pyramid(ours: str) -> tuple[tuple[object, ...], ...]:
    """The FPN's rules; it lies one level deeper beside an encoder."""
    return (
        (PIXEL + "adapter_{k}.{w}",      ours + "adapter_{k}/conv/{w}", conv),
        (PIXEL + "adapter_{k}.norm.{w}", ours + "adapter_{k}/norm/{w}", norm),
        (PIXEL + "layer_{k}.{w}",        ours + "layer_{k}/conv/{w}",   conv),
        (PIXEL + "layer_{k}.norm.{w}",   ours + "layer_{k}/norm/{w}",   norm),
        (PIXEL + "mask_features.{w}",    ours + "mask_features/{w}",    conv),
    )  # fmt: skip


RULES = (
    *mask2former.BACKBONE,
    *mask2former.MASK_EMBED,
    *pyramid("pixel_decoder/"),
    *pyramid("pixel_decoder/fpn/"),
    # published name                     our path                              how
    (PIXEL + "input_proj.{w}",           "pixel_decoder/input_proj/{w}",       conv),
    (ENCODER + "self_attn.in_proj_{w}",  OUR_ENCODER + "self_attention/in_proj/{w}", dense),
    (ENCODER + "self_attn.out_proj.{w}", OUR_ENCODER + "self_attention/out_proj/{w}", heads),
    (ENCODER + "linear{n}.{w}",          OUR_ENCODER + "ffn/linear{n}/{w}",    dense),
    (ENCODER + "norm1.{w}",              OUR_ENCODER + "self_norm/{w}",        norm),
    (ENCODER + "norm2.{w}",              OUR_ENCODER + "ffn_norm/{w}",         norm),
    (PREDICTOR + "input_proj.{w}",       "predictor/input_proj/{w}",           conv),
    (LAYER + "self_attn.in_proj_{w}",    QUERY + "self_attention/in_proj/{w}", dense),
    (LAYER + "self_attn.out_proj.{w}",   QUERY + "self_attention/out_proj/{w}", heads),
    (LAYER + "multihead_attn.in_proj_{w}", QUERY + "cross_attention/in_proj/{w}", dense),
    (LAYER + "multihead_attn.out_proj.{w}", QUERY + "cross_attention/out_proj/{w}", heads),
    (LAYER + "linear{n}.{w}",            QUERY + "ffn/linear{n}/{w}",          dense),
    (LAYER + "norm1.{w}",                QUERY + "self_norm/{w}",              norm),
    (LAYER + "norm2.{w}",                QUERY + "cross_norm/{w}",             norm),
    (LAYER + "norm3.{w}",                QUERY + "ffn_norm/{w}",               norm),
    (PREDICTOR + "transformer.decoder.norm.{w}", "predictor/decoder_norm/{w}", norm),
    # The baseline without queries.
    ("sem_seg_head.predictor.{w}",       "predictor/{w}",                      conv),
)  # fmt: skip

RENAMES = mask2former.RENAMES

DROPPED = mask2former.DROPPED
