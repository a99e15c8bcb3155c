"""Mask2Former's files: the zoo's .pkl and what the official code saves
(github.com/facebookresearch/Mask2Former).

Image models of the zoo say `static_query` where today's code says `query_feat`.
"""

from __future__ import annotations

from segjax.importers import resnet_detectron2, swin
from segjax.importers.how import conv, dense, heads, norm, same

PIXEL, OURS = "sem_seg_head.pixel_decoder.", "pixel_decoder/"
LAYER, OUR_LAYER = PIXEL + "transformer.encoder.layers.{i}.", OURS + "encoder_{i}/"
PREDICTOR = "sem_seg_head.predictor."
CROSS = PREDICTOR + "transformer_cross_attention_layers.{i}."
SELF = PREDICTOR + "transformer_self_attention_layers.{i}."
FFN = PREDICTOR + "transformer_ffn_layers.{i}."
QUERY = "predictor/layer_{i}/"

BACKBONE = (
    *resnet_detectron2.rules("backbone.", "backbone/"),
    *swin.rules("backbone.", "backbone/"),
)

MASK_EMBED = (
    (PREDICTOR + "class_embed.{w}",           "predictor/class_embed/{w}",         dense),
    (PREDICTOR + "mask_embed.layers.{i}.{w}", "predictor/mask_embed/linear_{i}/{w}", dense),
    (PREDICTOR + "query_embed.weight",        "predictor/query_embed",             same),
)  # fmt: skip

RULES = (
    *BACKBONE,
    *MASK_EMBED,
    # published name                          our path                           how
    (PIXEL + "input_proj.{i}.0.{w}",          OURS + "input_proj_{i}/conv/{w}",  conv),
    (PIXEL + "input_proj.{i}.1.{w}",          OURS + "input_proj_{i}/norm/{w}",  norm),
    (PIXEL + "transformer.level_embed",       OURS + "level_embed",              same),
    (LAYER + "self_attn.sampling_offsets.{w}", OUR_LAYER + "attention/sampling_offsets/{w}", dense),
    (LAYER + "self_attn.attention_weights.{w}", OUR_LAYER + "attention/attention_weights/{w}",
     dense),
    (LAYER + "self_attn.value_proj.{w}",      OUR_LAYER + "attention/value_proj/{w}", dense),
    (LAYER + "self_attn.output_proj.{w}",     OUR_LAYER + "attention/output_proj/{w}", dense),
    (LAYER + "norm1.{w}",                     OUR_LAYER + "self_norm/{w}",       norm),
    (LAYER + "norm2.{w}",                     OUR_LAYER + "ffn_norm/{w}",        norm),
    (LAYER + "linear{n}.{w}",                 OUR_LAYER + "ffn/linear{n}/{w}",   dense),
    (PIXEL + "adapter_1.{w}",                 OURS + "adapter_1/conv/{w}",       conv),
    (PIXEL + "adapter_1.norm.{w}",            OURS + "adapter_1/norm/{w}",       norm),
    (PIXEL + "layer_1.{w}",                   OURS + "layer_1/conv/{w}",         conv),
    (PIXEL + "layer_1.norm.{w}",              OURS + "layer_1/norm/{w}",         norm),
    (PIXEL + "mask_features.{w}",             OURS + "mask_features/{w}",        conv),
    (CROSS + "multihead_attn.in_proj_{w}",    QUERY + "cross_attention/in_proj/{w}", dense),
    (CROSS + "multihead_attn.out_proj.{w}",   QUERY + "cross_attention/out_proj/{w}", heads),
    (CROSS + "norm.{w}",                      QUERY + "cross_norm/{w}",          norm),
    (SELF + "self_attn.in_proj_{w}",          QUERY + "self_attention/in_proj/{w}", dense),
    (SELF + "self_attn.out_proj.{w}",         QUERY + "self_attention/out_proj/{w}", heads),
    (SELF + "norm.{w}",                       QUERY + "self_norm/{w}",           norm),
    (FFN + "linear{n}.{w}",                   QUERY + "ffn/linear{n}/{w}",       dense),
    (FFN + "norm.{w}",                        QUERY + "ffn_norm/{w}",            norm),
    (PREDICTOR + "decoder_norm.{w}",          "predictor/decoder_norm/{w}",      norm),
    (PREDICTOR + "query_feat.weight",         "predictor/query_feat",            same),
    (PREDICTOR + "level_embed.weight",        "predictor/level_embed",           same),
)  # fmt: skip

# Old files lack the level "pixel_decoder", re-saved ones may have it twice (the official loader
# inserts it blindly).
RENAMES = (
    (r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", PIXEL),
    (r"^sem_seg_head\.(pixel_decoder\.)+", PIXEL),
    (r"\.static_query\.", ".query_feat."),
)

DROPPED = (
    "criterion.empty_weight",
    "*.num_batches_tracked",
    "*.relative_position_index",
    "*.attn_mask",
    "pixel_mean",
    "pixel_std",
)
