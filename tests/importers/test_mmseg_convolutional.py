"""Whole files of mmsegmentation's DeepLabV3+ and OCRNet, of HSSN, and pretrained backbones: every
name and shape, there and back.

The names are written out here as the modules of mmsegmentation 0.30 name them.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import importers, systems
from segjax.decoders.projection import Projection
from segjax.errors import SegjaxError
from tests.importers.test_mmseg_decoders import conv_module, filled, merged, module

CLASSES = 5
HEAD, AUX = "decode_head", "auxiliary_head"


def conv(name, shape):
    return {f"{name}.weight": shape}


def norm(name, channels):
    """Batch norm alone."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def conv_norm(conv_name, norm_name, shape):
    return conv(conv_name, shape) | norm(norm_name, shape[0])


# --------------------------------------------------------------------------------------------------
# ResNet and DeepLabV3+


def bottleneck(name, inner, channels, shortcut):
    """`shortcut`: place of its convolution in `downsample`, None without one."""
    parts = [
        conv_norm(f"{name}.conv1", f"{name}.bn1", (inner, channels, 1, 1)),
        conv_norm(f"{name}.conv2", f"{name}.bn2", (inner, inner, 3, 3)),
        conv_norm(f"{name}.conv3", f"{name}.bn3", (4 * inner, inner, 1, 1)),
    ]
    if shortcut is not None:
        names = (f"{name}.downsample.{shortcut}", f"{name}.downsample.{shortcut + 1}")
        parts.append(conv_norm(*names, (4 * inner, channels, 1, 1)))
    return merged(*parts)


def resnet(prefix, shortcut):
    """Stages of 1, 2, 1 and 1 bottlenecks on a deep stem; 4 inner channels in the first."""
    parts = [
        conv_norm(f"{prefix}stem.0", f"{prefix}stem.1", (2, 3, 3, 3)),
        conv_norm(f"{prefix}stem.3", f"{prefix}stem.4", (2, 2, 3, 3)),
        conv_norm(f"{prefix}stem.6", f"{prefix}stem.7", (4, 2, 3, 3)),
    ]
    channels = 4
    for stage, depth in enumerate((1, 2, 1, 1), 1):
        inner = 4 * 2 ** (stage - 1)
        for block in range(depth):
            place = shortcut if block == 0 else None
            parts.append(bottleneck(f"{prefix}layer{stage}.{block}", inner, channels, place))
            channels = 4 * inner
    return merged(*parts)


def separable(name, features, channels):
    return merged(
        conv_module(f"{name}.depthwise_conv", (channels, 1, 3, 3)),
        conv_module(f"{name}.pointwise_conv", (features, channels, 1, 1)),
    )


def deeplab(shortcut):
    return merged(
        resnet("backbone.", shortcut),
        module(f"{HEAD}.conv_seg", (CLASSES, 6, 1, 1)),
        conv_module(f"{HEAD}.image_pool.1", (6, 128, 1, 1)),
        conv_module(f"{HEAD}.aspp_modules.0", (6, 128, 1, 1)),
        *(separable(f"{HEAD}.aspp_modules.{i}", 6, 128) for i in (1, 2, 3)),
        conv_module(f"{HEAD}.bottleneck", (6, 30, 3, 3)),
        conv_module(f"{HEAD}.c1_bottleneck", (2, 16, 1, 1)),
        separable(f"{HEAD}.sep_bottleneck.0", 6, 8),
        separable(f"{HEAD}.sep_bottleneck.1", 6, 6),
        module(f"{AUX}.conv_seg", (CLASSES, 3, 1, 1)),
        conv_module(f"{AUX}.convs.0", (3, 64, 3, 3)),
    )


def deeplab_model(pooled):
    return dict(
        system="deeplab_v3plus",
        backbone=dict(
            width=4, depths=(1, 2, 1, 1), deep_stem=True, stem_width=2, pool_shortcut=pooled
        ),
        classes=CLASSES,
        features=6,
        early_features=2,
        auxiliary_features=3,
    )


def hssn():
    projection = f"{HEAD}.proj_head.proj"
    return merged(
        deeplab(1),
        module(f"{projection}.0", (7, 128, 1, 1)),
        norm(f"{projection}.1", 7),
        module(f"{projection}.3", (4, 7, 1, 1)),
        {f"{HEAD}.step": (1,), "criterion.empty_weight": (6,)},
    )


# --------------------------------------------------------------------------------------------------
# HRNet and OCRNet


def exchange(name, widths):
    parts = []
    for i, wide in enumerate(widths):
        for n in (1, 2):
            unit = f"{name}.branches.{i}.0"
            parts.append(conv_norm(f"{unit}.conv{n}", f"{unit}.bn{n}", (wide, wide, 3, 3)))
        for j, other in enumerate(widths):
            fuse = f"{name}.fuse_layers.{i}.{j}"
            if j > i:
                parts.append(conv_norm(f"{fuse}.0", f"{fuse}.1", (wide, other, 1, 1)))
            for k in range(i - j):
                out = wide if k == i - j - 1 else other
                names = (f"{fuse}.{k}.0", f"{fuse}.{k}.1")
                parts.append(conv_norm(*names, (out, other, 3, 3)))
    return merged(*parts)


def hrnet(prefix):
    """Stages of 2 and 3 branches; 3 channels in the finest."""
    return merged(
        conv_norm(f"{prefix}conv1", f"{prefix}bn1", (2, 3, 3, 3)),
        conv_norm(f"{prefix}conv2", f"{prefix}bn2", (2, 2, 3, 3)),
        bottleneck(f"{prefix}layer1.0", 2, 2, 0),
        conv_norm(f"{prefix}transition1.0.0", f"{prefix}transition1.0.1", (3, 8, 3, 3)),
        conv_norm(f"{prefix}transition1.1.0.0", f"{prefix}transition1.1.0.1", (6, 8, 3, 3)),
        exchange(f"{prefix}stage2.0", (3, 6)),
        conv_norm(f"{prefix}transition2.2.0.0", f"{prefix}transition2.2.0.1", (12, 6, 3, 3)),
        exchange(f"{prefix}stage3.0", (3, 6, 12)),
        exchange(f"{prefix}stage3.1", (3, 6, 12)),
    )


def ocrnet():
    coarse, head = f"{HEAD}.0", f"{HEAD}.1"
    attention = f"{head}.object_context_block"
    return merged(
        hrnet("backbone."),
        module(f"{coarse}.conv_seg", (CLASSES, 21, 1, 1)),
        conv_module(f"{coarse}.convs.0", (21, 21, 1, 1)),
        module(f"{head}.conv_seg", (CLASSES, 6, 1, 1)),
        conv_module(f"{head}.bottleneck", (6, 21, 3, 3)),
        conv_module(f"{attention}.key_project.0", (4, 6, 1, 1)),
        conv_module(f"{attention}.key_project.1", (4, 4, 1, 1)),
        conv_module(f"{attention}.query_project.0", (4, 6, 1, 1)),
        conv_module(f"{attention}.query_project.1", (4, 4, 1, 1)),
        conv_module(f"{attention}.value_project", (4, 6, 1, 1)),
        conv_module(f"{attention}.out_project", (6, 4, 1, 1)),
        conv_module(f"{attention}.bottleneck", (6, 12, 1, 1)),
    )


OCRNET = dict(
    system="ocrnet",
    backbone=dict(width=3, stem=2, modules=(1, 2), blocks=1),
    classes=CLASSES,
    features=6,
    key_features=4,
)


# --------------------------------------------------------------------------------------------------
# There and back


def expected(model):
    system = systems.build(model)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(system.init, jax.random.key(0), {"image": image})


def with_projection():
    """HSSN's variables: the network's, the projection beside them, and the step."""
    network = expected(deeplab_model(pooled=True))
    x = jax.ShapeDtypeStruct((1, 1, 1, 128), np.float32)
    projection = jax.eval_shape(lambda x: Projection(7, 4).init(jax.random.key(0), x, False), x)
    both = {name: tree | {"projection": projection[name]} for name, tree in network.items()}
    return both | {"hierarchy": {"step": jax.ShapeDtypeStruct((), jnp.float32)}}


FILES = {
    "v1c": ("deeplab_v3plus", lambda: expected(deeplab_model(pooled=False)), lambda: deeplab(0)),
    "v1d": ("deeplab_v3plus", lambda: expected(deeplab_model(pooled=True)), lambda: deeplab(1)),
    "hssn": ("hssn", with_projection, hssn),
    "ocrnet": ("ocrnet", lambda: expected(OCRNET), ocrnet),
}


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_comes_in_and_back(name):
    """What the computation has no use for alone has no place."""
    layout, tree, shapes = FILES[name]
    tensors, tree = filled(shapes()), tree()
    variables = importers.to_variables(layout, tensors, tree)
    chex.assert_trees_all_equal_shapes(variables, tree)
    back = importers.to_published(layout, variables)
    unused = ("num_batches_tracked", "empty_weight")
    assert set(back) == {name for name in tensors if not name.endswith(unused)}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_a_file_with_the_other_shortcut_is_refused():
    tensors = filled(deeplab(1))
    with pytest.raises(SegjaxError, match=r"missing +backbone\.layer1\.0\.downsample\.0\.weight"):
        importers.to_variables("deeplab_v3plus", tensors, expected(deeplab_model(pooled=False)))


@pytest.mark.parametrize(
    ("layout", "name", "path"),
    [
        ("hssn", "decode_head.step", "step"),
        ("hssn", "decode_head.proj_head.proj.1.running_var", "projection/norm/var"),
        ("hssn", "backbone.layer4.0.downsample.1.weight", "backbone/res5_0/pooled_shortcut/kernel"),
        ("hssn", "decode_head.c1_bottleneck.conv.weight", "head/early_bottleneck/conv/kernel"),
        (
            "deeplab_v3plus",
            "decode_head.sep_bottleneck.1.depthwise_conv.bn.bias",
            "head/fusion_1/depthwise_norm/bias",
        ),
        ("deeplab_v3plus", "auxiliary_head.convs.0.bn.num_batches_tracked", None),
        ("hrnet", "transition3.3.0.1.weight", "backbone/new_branch3_3/norm/scale"),
        ("hrnet", "stage4.2.fuse_layers.0.3.0.weight", "backbone/stage4_2/fuse_0_3/conv/kernel"),
        ("hrnet", "stage4.2.fuse_layers.3.0.1.1.bias", "backbone/stage4_2/fuse_3_0_1/norm/bias"),
        ("hrnet", "incre_modules.0.0.conv1.weight", None),
    ],
)
def test_our_path_of_a_published_name(layout, name, path):
    assert importers.our_path(layout, name) == path


# --------------------------------------------------------------------------------------------------
# Pretrained backbones


@pytest.mark.parametrize(
    ("layout", "model", "shapes", "classifier"),
    [
        ("resnet", deeplab_model(pooled=False), lambda: resnet("", 0), {"fc.weight": (1000, 128)}),
        ("resnet", deeplab_model(pooled=True), lambda: resnet("", 1), {"fc.bias": (1000,)}),
        ("hrnet", OCRNET, lambda: hrnet(""), {"classifier.bias": (1000,)}),
    ],
    ids=["v1c", "v1d", "hrnet"],
)
def test_a_classifier_brings_its_backbone_alone(tmp_path, layout, model, shapes, classifier):
    tensors = filled(shapes() | classifier)
    save_file(tensors, tmp_path / "x.safetensors")
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), expected(model))
    result = importers.initialise(layout, tmp_path / "x.safetensors", fresh)
    backbone = {name: {"backbone": tree["backbone"]} for name, tree in result.items()}
    back = importers.to_published(layout, backbone)
    assert set(back) == {
        name
        for name in tensors
        if name not in classifier and not name.endswith("num_batches_tracked")
    }
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    chex.assert_trees_all_equal(result["params"]["head"], fresh["params"]["head"])
