"""Tables of published names: complete, invertible, and plain about what doesn't fit."""

from __future__ import annotations

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from segjax import importers, systems
from segjax.backbones.vit import ViT
from segjax.errors import SegjaxError

CASES = Path(__file__).parents[1] / "parity" / "cases" / "regproxy"
TINY = dict(width=32, depth=2, heads=2, patch=8)


def expected(**model):
    model = dict(system="regproxy", classes=7, image_size=(64, 64)) | model
    if model["system"] == "regproxy":
        model = dict(early_block=0) | model
    system = systems.build(model)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(system.init, jax.random.key(0), {"image": image})


def numbered(tree):
    """The tree filled with numbers that are all different."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    filled = [
        np.arange(end - leaf.size, end, dtype=np.float32).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends)
    ]
    return jax.tree.unflatten(structure, filled)


def test_the_tensors_of_t16_ade_come_back_as_they_were():
    """All 166 names of the released file; batch counters alone have no place."""
    meta = json.loads((CASES / "t16_ade_160x96.json").read_text())
    shapes = {name: tuple(shape) for name, shape, _ in meta["tensors"]}
    assert len(shapes) == 166
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    tree = expected(classes=150, backbone="vit_ti16", early_block=4, image_size=(512, 512))
    variables = importers.to_variables("regproxy", tensors, tree)
    chex.assert_trees_all_equal_shapes(variables, tree)
    back = importers.to_published("regproxy", variables)
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert set(back) == set(tensors) - counters and len(counters) == 2
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_the_hybrid_r26_has_253_names_and_comes_back():
    variables = numbered(expected(backbone="vit_r26_s32", early_block=-1, classes=150))
    tensors = importers.to_published("regproxy", variables)
    assert len(tensors) + 2 == 253
    stem = "backbone.patch_embed.backbone"
    assert tensors[f"{stem}.stem.conv.weight"].shape == (64, 3, 7, 7)
    assert tensors[f"{stem}.stages.1.blocks.0.downsample.conv.weight"].shape == (512, 256, 1, 1)
    assert tensors[f"{stem}.stages.3.blocks.1.norm3.weight"].shape == (2048,)
    assert tensors["backbone.patch_embed.proj.weight"].shape == (384, 2048, 1, 1)
    assert not any("projection" in name for name in tensors)
    again = importers.to_variables("regproxy", tensors, variables)
    chex.assert_trees_all_equal(again, variables)


@pytest.mark.parametrize("case", ["segmenter_t16_linear", "segmenter_inference"])
def test_the_tensors_of_segmenter_come_back_as_they_were(case):
    """All but the ImageNet classifiers, which nothing uses."""
    meta = json.loads((CASES / f"{case}.json").read_text())
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(shape, np.float32) for n, shape, _ in meta["tensors"]}
    classes, size = meta["run"]["args"]["num_classes"], meta["run"]["args"]["img_size"]
    depth = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder.blocks."))
    tree = expected(
        system="segmenter",
        classes=classes,
        backbone=dict(width=192, depth=depth, heads=3, patch=16),
        decoder=meta["run"]["args"]["decoder"],
        image_size=tuple(size),
    )
    variables = importers.to_variables("segmenter", tensors, tree)
    back = importers.to_published("segmenter", variables)
    dropped = {name for name in tensors if name.startswith("encoder.head")}
    assert set(back) == set(tensors) - dropped
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def backbone_of(variables):
    return {"params": {"backbone": variables["params"]["backbone"]}}


NOT_OF_VITS = (
    *("resnet", "resnet_detectron2", "hrnet", "swin", "deeplab_v3plus", "ocrnet", "hssn"),
    *("mask2former", "maskformer", "transformers", "crm", "cascade_psp"),
)


@pytest.mark.parametrize("layout", [x for x in importers.layouts() if x not in NOT_OF_VITS])
@pytest.mark.parametrize("distilled", [False, True])
def test_backbones_come_back_in_every_layout(layout, distilled):
    variables = numbered(backbone_of(expected(backbone=TINY, distilled=distilled)))
    tensors = importers.to_published(layout, variables)
    chex.assert_trees_all_equal(importers.to_variables(layout, tensors, variables), variables)


def test_hybrid_backbones_come_back_under_timm_names():
    variables = numbered(backbone_of(expected(backbone="vit_r26_s32", early_block=-1)))
    tensors = importers.to_published("timm", variables)
    assert "patch_embed.backbone.stages.0.blocks.0.downsample.norm.bias" in tensors
    chex.assert_trees_all_equal(importers.to_variables("timm", tensors, variables), variables)


def test_timm_names_and_shapes_are_those_of_its_files():
    tree = backbone_of(expected(backbone=TINY | {"depth": 1}, distilled=True))
    tensors = importers.to_published("timm", numbered(tree))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "cls_token": (1, 1, 32),
        "dist_token": (1, 1, 32),
        "pos_embed": (1, 66, 32),
        "patch_embed.proj.weight": (32, 3, 8, 8),
        "patch_embed.proj.bias": (32,),
        "blocks.0.norm1.weight": (32,),
        "blocks.0.norm1.bias": (32,),
        "blocks.0.attn.qkv.weight": (96, 32),
        "blocks.0.attn.qkv.bias": (96,),
        "blocks.0.attn.proj.weight": (32, 32),
        "blocks.0.attn.proj.bias": (32,),
        "blocks.0.norm2.weight": (32,),
        "blocks.0.norm2.bias": (32,),
        "blocks.0.mlp.fc1.weight": (128, 32),
        "blocks.0.mlp.fc1.bias": (128,),
        "blocks.0.mlp.fc2.weight": (32, 128),
        "blocks.0.mlp.fc2.bias": (32,),
        "norm.weight": (32,),
        "norm.bias": (32,),
    }


def test_a_vit_of_transformers_gives_the_same_features(tmp_path):
    """Tiny and random, through the files that it saves: embeddings, a block and the last norm."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is the oracle; pip install .[test]"
    )
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    theirs = transformers.ViTModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    image = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.tensor(image).permute(0, 3, 1, 2), output_hidden_states=True)
    theirs.save_pretrained(tmp_path)
    tensors = importers.read(tmp_path)
    ours = ViT(width=32, depth=2, heads=4, patch=8, image_size=(32, 32))
    params = jax.eval_shape(ours.init, jax.random.key(0), image)["params"]
    variables = importers.to_variables("hf_vit", tensors, {"params": {"backbone": params}})
    levels = ours.apply({"params": variables["params"]["backbone"]}, image)
    for level, hidden in (
        ("embedded", out.hidden_states[0]),
        ("block_0", out.hidden_states[1]),
        ("norm", out.last_hidden_state),
    ):
        wanted = hidden[:, 1:].numpy().reshape(2, 4, 4, 32)
        np.testing.assert_allclose(levels[level], wanted, rtol=1e-4, atol=2e-5)


def test_one_error_lists_all_that_does_not_fit():
    tree = expected(backbone=TINY)
    tensors = importers.to_published("regproxy", numbered(tree))
    del tensors["backbone.cls_token"], tensors["backbone.layers.1.attn.attn.in_proj_weight"]
    tensors["backbone.layers.2.ln1.weight"] = np.zeros(32)
    tensors["decode_head.mlp.0.0.weight"] = np.zeros((19, 32))
    with pytest.raises(SegjaxError) as error:
        importers.to_variables("regproxy", tensors, tree, "some.pth")
    first, *faults = str(error.value).splitlines()
    assert "some.pth" in first and "2 missing, 1 extra, 1 misshaped" in first
    assert sorted(fault.split()[:2] for fault in faults) == [
        ["extra", "backbone.layers.2.ln1.weight"],
        ["misshaped", "decode_head.mlp.0.0.weight"],
        ["missing", "backbone.cls_token"],
        ["missing", "backbone.layers.1.attn.attn.in_proj_weight"],
    ]
    assert "(19, 32), the model needs (7, 32)" in str(error.value)


def test_a_plain_file_does_not_pass_for_a_hybrid():
    """vit2mmseg's renamed projection stays random officially; here it is said."""
    tree = expected(backbone="vit_r26_s32", early_block=-1)
    leaves = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), tree)
    tensors = importers.to_published("regproxy", leaves)
    for w in ("weight", "bias"):
        name = f"backbone.patch_embed.proj.{w}"
        tensors[name.replace("proj", "projection")] = tensors.pop(name)
    with pytest.raises(SegjaxError, match=r"missing +backbone\.patch_embed\.proj\.weight"):
        importers.to_variables("regproxy", tensors, tree)


def test_an_unknown_layout_is_answered_with_the_known_ones():
    with pytest.raises(SegjaxError, match=r"no layout 'regproxi'.*hf_vit.*timm"):
        importers.to_published("regproxi", {})


def test_names_of_wrapped_models_are_understood():
    """`module.` is DistributedDataParallel's, `vit.` a ViTForImageClassification's."""
    variables = numbered(backbone_of(expected(backbone=TINY)))
    tensors = importers.to_published("hf_vit", variables)
    wrapped = {f"module.vit.{name}": tensor for name, tensor in tensors.items()}
    chex.assert_trees_all_equal(importers.to_variables("hf_vit", wrapped, variables), variables)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("backbone.layers.3.ln1.weight", "backbone/block_3/norm1/scale"),
        ("backbone.ln1.bias", "backbone/norm/bias"),
        ("decode_head.affinity_head.0.depthwise_conv.bn.num_batches_tracked", None),
    ],
)
def test_our_path_of_a_published_name(name, path):
    assert importers.our_path("regproxy", name) == path
