"""Whole files of mmsegmentation's SETR and UPerNet: every name and shape, there and back.

The names are written out here as the modules of mmsegmentation 0.17 name them.
"""

import chex
import jax
import numpy as np
import pytest

from segjax import importers, systems
from segjax.errors import SegjaxError

WIDTH, FEATURES, CLASSES = 32, 8, 5


def module(name, shape, bias=True):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def conv_module(name, shape):
    """mmcv's ConvModule with batch norm."""
    vector = shape[:1]
    norm = {f"{name}.bn.{part}": vector for part in ("running_mean", "running_var")}
    counter = {f"{name}.bn.num_batches_tracked": ()}
    return module(f"{name}.conv", shape, bias=False) | module(f"{name}.bn", vector) | norm | counter


def merged(*parts):
    return {name: shape for part in parts for name, shape in part.items()}


def backbone(final_norm):
    layers = []
    for i in range(4):
        layer = f"backbone.layers.{i}"
        layers += [
            module(f"{layer}.ln1", (WIDTH,)),
            {f"{layer}.attn.attn.in_proj_weight": (3 * WIDTH, WIDTH)},
            {f"{layer}.attn.attn.in_proj_bias": (3 * WIDTH,)},
            module(f"{layer}.attn.attn.out_proj", (WIDTH, WIDTH)),
            module(f"{layer}.ln2", (WIDTH,)),
            module(f"{layer}.ffn.layers.0.0", (4 * WIDTH, WIDTH)),
            module(f"{layer}.ffn.layers.1", (WIDTH, 4 * WIDTH)),
        ]
    return merged(
        {"backbone.cls_token": (1, 1, WIDTH), "backbone.pos_embed": (1, 17, WIDTH)},
        module("backbone.patch_embed.projection", (WIDTH, 3, 16, 16)),
        *layers,
        module("backbone.ln1", (WIDTH,)) if final_norm else {},
    )


def up_head(name, convs, k):
    widths = [WIDTH] + [FEATURES] * convs
    return merged(
        module(f"{name}.conv_seg", (CLASSES, FEATURES, 1, 1)),
        module(f"{name}.norm", (WIDTH,)),
        *(conv_module(f"{name}.up_convs.{i}.0", (FEATURES, widths[i], k, k)) for i in range(convs)),
    )


def naive():
    heads = [up_head(f"auxiliary_head.{i}", 2, 1) for i in range(3)]
    return merged(backbone(False), up_head("decode_head", 1, 1), *heads)


def pup():
    heads = [up_head(f"auxiliary_head.{i}", 2, 3) for i in range(3)]
    return merged(backbone(False), up_head("decode_head", 4, 3), *heads)


def mla():
    half = FEATURES // 2
    parts = [module("decode_head.conv_seg", (CLASSES, 4 * half, 1, 1))]
    for i in range(4):
        parts += [
            module(f"neck.norm.{i}", (WIDTH,)),
            conv_module(f"neck.mla.channel_proj.{i}", (FEATURES, WIDTH, 1, 1)),
            conv_module(f"neck.mla.feat_extract.{i}", (FEATURES, FEATURES, 3, 3)),
            conv_module(f"decode_head.up_convs.{i}.0", (half, FEATURES, 3, 3)),
            conv_module(f"decode_head.up_convs.{i}.1", (half, half, 3, 3)),
            module(f"auxiliary_head.{i}.conv_seg", (CLASSES, FEATURES, 1, 1)),
        ]
    return merged(backbone(False), *parts)


def upernet():
    neck, head = 12, FEATURES
    parts = []
    for i in range(4):
        parts += [
            module(f"neck.lateral_convs.{i}.conv", (neck, WIDTH, 1, 1)),
            module(f"neck.convs.{i}.conv", (neck, neck, 3, 3)),
            conv_module(f"decode_head.psp_modules.{i}.1", (head, neck, 1, 1)),
        ]
    for i in range(3):
        parts += [
            conv_module(f"decode_head.lateral_convs.{i}", (head, neck, 1, 1)),
            conv_module(f"decode_head.fpn_convs.{i}", (head, head, 3, 3)),
        ]
    return merged(
        backbone(True),
        *parts,
        conv_module("decode_head.bottleneck", (head, neck + 4 * head, 3, 3)),
        conv_module("decode_head.fpn_bottleneck", (head, 4 * head, 3, 3)),
        module("decode_head.conv_seg", (CLASSES, head, 1, 1)),
        conv_module("auxiliary_head.convs.0", (6, neck, 3, 3)),
        module("auxiliary_head.conv_seg", (CLASSES, 6, 1, 1)),
    )


SETR = dict(system="setr", features=FEATURES)
FILES = {
    "naive": ("setr", SETR | dict(decoder="naive"), naive),
    "pup": ("setr", SETR | dict(decoder="pup"), pup),
    "mla": ("setr", SETR | dict(decoder="mla"), mla),
    "upernet": (
        "upernet_vit",
        dict(system="upernet", neck_features=12, features=FEATURES, auxiliary_features=6),
        upernet,
    ),
}


def expected(model):
    backbone = dict(width=WIDTH, depth=4, heads=2, patch=16)
    shared = dict(backbone=backbone, classes=CLASSES, image_size=(64, 64), levels=(0, 1, 2, 3))
    system = systems.build(model | shared)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(system.init, jax.random.key(0), {"image": image})


def filled(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_comes_in_and_back(name):
    """Batch counters alone have no place."""
    layout, model, shapes = FILES[name]
    tensors = filled(shapes())
    tree = expected(model)
    variables = importers.to_variables(layout, tensors, tree)
    chex.assert_trees_all_equal_shapes(variables, tree)
    back = importers.to_published(layout, variables)
    assert set(back) == {name for name in tensors if not name.endswith("num_batches_tracked")}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_a_file_of_another_decoder_is_refused():
    layout, _, shapes = FILES["naive"]
    _, model, _ = FILES["mla"]
    with pytest.raises(SegjaxError, match=r"missing +neck\.norm\.0\.weight"):
        importers.to_variables(layout, filled(shapes()), expected(model))


@pytest.mark.parametrize(
    ("layout", "name", "path"),
    [
        ("setr", "decode_head.up_convs.3.0.conv.weight", "head/conv_3_0/conv/kernel"),
        ("setr", "decode_head.up_convs.2.1.bn.weight", "head/conv_2_1/norm/scale"),
        ("setr", "auxiliary_head.2.norm.bias", "auxiliary_2/norm/bias"),
        ("setr", "neck.mla.channel_proj.1.bn.running_var", "neck/lateral_1/norm/var"),
        (
            "upernet_vit",
            "decode_head.psp_modules.3.1.conv.weight",
            "head/pooling/grid_3/conv/kernel",
        ),
        ("upernet_vit", "auxiliary_head.convs.0.bn.num_batches_tracked", None),
    ],
)
def test_our_path_of_a_published_name(layout, name, path):
    assert importers.our_path(layout, name) == path
