"""CascadePSP's files, and ResNets of torchvision as the beginning of networks that see masks."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import importers, systems
from segjax.backbones.layers import BatchNorm
from segjax.backbones.resnet import ResNet
from segjax.errors import SegjaxError

TINY = dict(
    system="cascade_psp",
    backbone=dict(width=4, depths=(1, 1, 1, 1)),
    features=16,
    up_features=(12, 8, 4),
    head_features=6,
)


def shapes_of(model):
    system = systems.build(model)
    return jax.eval_shape(lambda: system.init(jax.random.key(0), {}))


def random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), tree)


def test_names_and_shapes_are_those_of_the_published_file():
    """Its 426 tensors but the counters of its 65 norms."""
    zeros = jax.tree.map(
        lambda x: np.broadcast_to(np.float32(0), x.shape), shapes_of(dict(system="cascade_psp"))
    )
    tensors = importers.to_published("cascade_psp", zeros)
    norms = [name for name in tensors if name.endswith("running_mean")]
    assert len(norms) == 65 and len(tensors) + len(norms) == 426
    for name, shape in {
        "feats.conv1.weight": (64, 6, 7, 7),
        "feats.layer4.2.conv3.weight": (2048, 512, 1, 1),
        "feats.layer1.0.downsample.1.running_var": (256,),
        "psp.stages.3.1.weight": (2048, 2048, 1, 1),
        "psp.bottleneck.weight": (1024, 10240, 1, 1),
        "psp.bottleneck.bias": (1024,),
        "up_1.conv.0.weight": (1280,),
        "up_1.conv.2.weight": (512, 1280, 3, 3),
        "up_2.conv.0.running_mean": (576,),
        "up_2.conv2.5.bias": (256,),
        "up_3.conv.3.bias": (32,),
        "up_3.shortcut.weight": (32, 256, 1, 1),
        "final_28.0.weight": (32, 1024, 1, 1),
        "final_56.2.weight": (1, 32, 1, 1),
        "final_11.weight": (32, 35, 1, 1),
        "final_21.bias": (1,),
    }.items():
        assert tensors[name].shape == shape


def test_tensors_come_back_as_they_were():
    """With the wrapper's prefix and the counters that the file has."""
    variables = random(shapes_of(TINY))
    tensors = importers.to_published("cascade_psp", variables)
    stored = {f"module.{name}": tensor for name, tensor in tensors.items()}
    stored["module.up_1.conv.0.num_batches_tracked"] = np.array(7)
    chex.assert_trees_all_equal(importers.to_variables("cascade_psp", stored, variables), variables)


@pytest.fixture
def classifier(tmp_path):
    """A file as of torchvision, of three channels, and its tensors."""
    backbone = ResNet(norm=BatchNorm, **TINY["backbone"])
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = random({name: {"backbone": tree} for name, tree in shapes.items()}, seed=1)
    tensors = importers.to_published("resnet", variables)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    path = tmp_path / "resnet.safetensors"
    save_file(tensors | {"fc.weight": np.zeros((5, 128), np.float32)}, path)
    return path, tensors


def test_an_encoder_of_masks_begins_as_a_classifier_that_does_not_see_them(classifier):
    path, tensors = classifier
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7)
    fresh = random(shapes_of(TINY))
    found = importers.initialise("resnet", path, fresh)
    kernel = found["params"]["backbone"]["stem_conv"]["kernel"]
    assert kernel.shape == (7, 7, 6, 4)
    np.testing.assert_array_equal(kernel[:, :, :3].transpose(3, 2, 0, 1), tensors["conv1.weight"])
    assert not kernel[:, :, 3:].any()
    mean = found["batch_stats"]["backbone"]["res5_0"]["norm3"]["mean"]
    np.testing.assert_array_equal(mean, tensors["layer4.0.bn3.running_mean"])
    chex.assert_trees_all_equal(found["params"]["psp"], fresh["params"]["psp"])


def test_a_file_of_a_wider_network_is_refused(classifier):
    path, tensors = classifier
    save_file(tensors | {"conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}, path)
    with pytest.raises(SegjaxError, match=r"misshaped +conv1\.weight \(8, 3, 7, 7\)"):
        importers.initialise("resnet", path, random(shapes_of(TINY)))
