"""Mask2Former and MaskFormer of Hugging Face transformers, as their files on the hub name tensors
(https://huggingface.co/models); a folder of .safetensors, or one file.

Mask2Former comes with a Swin, MaskFormer with a Swin or a ResNet.
"""

from __future__ import annotations

from segjax.importers.how import How, batch_norm, conv, dense, heads, norm, same

Rules = tuple[tuple[object, ...], ...]

LEVELS = "model.pixel_level_module."
PIXEL = LEVELS + "decoder."
QUERIES = "model.transformer_module."
LAYER, OURS = QUERIES + "decoder.layers.{i}.", "predictor/layer_{i}/"


def three(name: str, last: str) -> tuple[str, str, str]:
    """Queries, keys and values in matrices of their own."""
    return tuple(name.replace("*", part) + last for part in ("q", "k", "v"))


def swin(prefix: str) -> Rules:
    """A Swin; `prefix` leads to its embeddings and its encoder."""
    block = prefix + "encoder.layers.{s}.blocks.{b}."
    ours = "backbone/stage_{s}/block_{b}/"
    attention = tuple(f"{block}attention.self.{part}.{{w}}" for part in ("query", "key", "value"))
    down = prefix + "encoder.layers.{s}.downsample."
    return (
        (prefix + "embeddings.patch_embeddings.projection.{w}", "backbone/patch_embed/{w}", conv),
        (prefix + "embeddings.norm.{w}",             "backbone/patch_norm/{w}",          norm),
        (block + "layernorm_before.{w}",             ours + "norm1/{w}",                 norm),
        (block + "layernorm_after.{w}",              ours + "norm2/{w}",                 norm),
        (attention,                                  ours + "attention/qkv/{w}",         dense),
        (block + "attention.output.dense.{w}",       ours + "attention/proj/{w}",        heads),
        (block + "attention.self.relative_position_bias_table",
         ours + "attention/relative_position_bias_table",                                same),
        (block + "intermediate.dense.{w}",           ours + "mlp/fc1/{w}",               dense),
        (block + "output.dense.{w}",                 ours + "mlp/fc2/{w}",               dense),
        (down + "norm.{w}",                 "backbone/stage_{s}/downsample/norm/{w}",      norm),
        (down + "reduction.{w}",            "backbone/stage_{s}/downsample/reduction/{w}", dense),
    )  # fmt: skip


def resnet(prefix: str) -> Rules:
    """A ResNet under MaskFormer's encoder."""
    rules: list[tuple[object, ...]] = [
        (prefix + "embedder.embedder.convolution.{w}", "backbone/stem_conv/{w}", conv),
        (prefix + "embedder.embedder.normalization.{w}", "backbone/stem_norm/{w}", batch_norm),
    ]
    for stage in range(4):
        block = f"{prefix}encoder.stages.{stage}.layers.{{b}}."
        ours = f"backbone/res{stage + 2}_{{b}}/"
        for n in range(3):
            layer = f"{block}layer.{n}."
            rules.append((layer + "convolution.{w}", f"{ours}conv{n + 1}/{{w}}", conv))
            rules.append((layer + "normalization.{w}", f"{ours}norm{n + 1}/{{w}}", batch_norm))
        rules.append((block + "shortcut.convolution.{w}", ours + "shortcut/{w}", conv))
        rules.append((block + "shortcut.normalization.{w}", ours + "shortcut_norm/{w}", batch_norm))
    return tuple(rules)


def level_norms(name: str) -> Rules:
    """The norms of Swin's levels; `name` has a field for their number from 0."""
    return tuple((name.format(i), f"backbone/norm{i}/{{w}}", norm) for i in range(4))


MASK2FORMER = (
    *swin(LEVELS + "encoder."),
    *((f"{LEVELS}encoder.hidden_states_norms.stage{i + 1}.{{w}}", f"backbone/norm{i}/{{w}}", norm)
      for i in range(4)),
    # published name                             our path                                how
    (PIXEL + "input_projections.{i}.0.{w}",      "pixel_decoder/input_proj_{i}/conv/{w}", conv),
    (PIXEL + "input_projections.{i}.1.{w}",      "pixel_decoder/input_proj_{i}/norm/{w}", norm),
    (PIXEL + "level_embed",                      "pixel_decoder/level_embed",            same),
    *((f"{PIXEL}encoder.layers.{{i}}.self_attn.{part}.{{w}}",
       f"pixel_decoder/encoder_{{i}}/attention/{part}/{{w}}", dense)
      for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")),
    (PIXEL + "encoder.layers.{i}.self_attn_layer_norm.{w}",
     "pixel_decoder/encoder_{i}/self_norm/{w}",                                          norm),
    (PIXEL + "encoder.layers.{i}.fc{n}.{w}",     "pixel_decoder/encoder_{i}/ffn/linear{n}/{w}",
     dense),
    (PIXEL + "encoder.layers.{i}.final_layer_norm.{w}",
     "pixel_decoder/encoder_{i}/ffn_norm/{w}",                                           norm),
    (PIXEL + "adapter_1.0.{w}",                  "pixel_decoder/adapter_1/conv/{w}",     conv),
    (PIXEL + "adapter_1.1.{w}",                  "pixel_decoder/adapter_1/norm/{w}",     norm),
    (PIXEL + "layer_1.0.{w}",                    "pixel_decoder/layer_1/conv/{w}",       conv),
    (PIXEL + "layer_1.1.{w}",                    "pixel_decoder/layer_1/norm/{w}",       norm),
    (PIXEL + "mask_projection.{w}",              "pixel_decoder/mask_features/{w}",      conv),
    (QUERIES + "queries_features.weight",        "predictor/query_feat",                 same),
    (QUERIES + "level_embed.weight",             "predictor/level_embed",                same),
    (LAYER + "cross_attn.in_proj_{w}",           OURS + "cross_attention/in_proj/{w}",   dense),
    (LAYER + "cross_attn.out_proj.{w}",          OURS + "cross_attention/out_proj/{w}",  heads),
    (LAYER + "cross_attn_layer_norm.{w}",        OURS + "cross_norm/{w}",                norm),
    (QUERIES + "decoder.mask_predictor.mask_embedder.{i}.0.{w}",
     "predictor/mask_embed/linear_{i}/{w}",                                              dense),
)  # fmt: skip


def attention(name: str, ours: str) -> Rules:
    """An attention in four matrices."""
    how: How = dense
    return (
        (three(f"{name}.*_proj.", "{w}"), f"{ours}/in_proj/{{w}}", how),
        (f"{name}.out_proj.{{w}}", f"{ours}/out_proj/{{w}}", heads),
    )


MASKFORMER = (
    *swin(LEVELS + "encoder.model."),
    *resnet(LEVELS + "encoder."),
    *level_norms(LEVELS + "encoder.hidden_states_norms.{}.{{w}}"),
    # published name                             our path                                how
    (PIXEL + "fpn.stem.0.{w}",                   "pixel_decoder/layer_4/conv/{w}",       conv),
    (PIXEL + "fpn.stem.1.{w}",                   "pixel_decoder/layer_4/norm/{w}",       norm),
    *((f"{PIXEL}fpn.layers.{3 - k}.{theirs}.{n}.{{w}}", f"pixel_decoder/{mine}_{k}/{part}/{{w}}",
       how)
      for k in (3, 2, 1)
      for theirs, mine in (("proj", "adapter"), ("block", "layer"))
      for n, part, how in ((0, "conv", conv), (1, "norm", norm))),
    (PIXEL + "mask_projection.{w}",              "pixel_decoder/mask_features/{w}",      conv),
    (QUERIES + "input_projection.{w}",           "predictor/input_proj/{w}",             conv),
    *attention(LAYER + "encoder_attn",           OURS + "cross_attention"),
    (LAYER + "encoder_attn_layer_norm.{w}",      OURS + "cross_norm/{w}",                norm),
    ("mask_embedder.{i}.0.{w}",                  "predictor/mask_embed/linear_{i}/{w}",  dense),
)  # fmt: skip


def only_beside(rules: Rules, ours: str) -> Rules:
    """The rules, for models that have an array below `ours`."""
    return tuple((*rule, ours) for rule in rules)


# What both have comes last.
RULES = (
    *only_beside(MASK2FORMER, "pixel_decoder/level_embed"),
    *only_beside(MASKFORMER, "pixel_decoder/layer_4"),
    (QUERIES + "queries_embedder.weight",        "predictor/query_embed",                same),
    *attention(LAYER + "self_attn",              OURS + "self_attention"),
    (LAYER + "self_attn_layer_norm.{w}",         OURS + "self_norm/{w}",                 norm),
    (LAYER + "fc{n}.{w}",                        OURS + "ffn/linear{n}/{w}",             dense),
    (LAYER + "final_layer_norm.{w}",             OURS + "ffn_norm/{w}",                  norm),
    (QUERIES + "decoder.layernorm.{w}",          "predictor/decoder_norm/{w}",           norm),
    ("class_predictor.{w}",                      "predictor/class_embed/{w}",            dense),
)  # fmt: skip

DROPPED = (
    "criterion.empty_weight",
    "*.relative_position_index",
    "*.num_batches_tracked",
    # Of a Swin, after its last level; nothing reads it.
    LEVELS + "encoder.model.layernorm.*",
    LEVELS + "encoder.swin.layernorm.*",
    LEVELS + "encoder.layernorm.*",
)
