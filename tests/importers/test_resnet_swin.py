"""Files of ResNets and Swins: their names, detectron2's pickles, and pretrained backbones."""

from __future__ import annotations

import collections
import os
import pickle
import sys

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

from segjax import importers
from segjax.backbones.layers import BatchNorm, FrozenBatchNorm
from segjax.backbones.resnet import VARIANTS, ResNet
from segjax.backbones.swin import Swin
from segjax.errors import SegjaxError

RESNET = dict(width=2, depths=(1, 1, 2, 1))
SWIN = dict(width=4, depths=(1, 2, 1, 1), heads=(1, 2, 2, 2), window=2)


class Segmenter(nn.Module):
    """A backbone and a head."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, image):
        return nn.Dense(3, name="head")(self.backbone(image)["res2"])


def random_variables(backbone, seed=0):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(Segmenter(backbone).init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def backbone_of(variables):
    return {name: {"backbone": tree["backbone"]} for name, tree in variables.items()}


def write_pickle(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# --------------------------------------------------------------------------------------------------
# Names


BACKBONES = (
    ("resnet", ResNet(**RESNET)),
    ("resnet", ResNet(norm=BatchNorm, **RESNET)),
    ("resnet_detectron2", ResNet(**RESNET)),
    ("resnet_detectron2", ResNet(norm=BatchNorm, deep_stem=True, **RESNET)),
    ("swin", Swin(**SWIN)),
)


@pytest.mark.parametrize(("layout", "backbone"), BACKBONES)
def test_backbones_come_back_as_they_were(layout, backbone):
    variables = backbone_of(random_variables(backbone))
    tensors = importers.to_published(layout, variables)
    chex.assert_trees_all_equal(importers.to_variables(layout, tensors, variables), variables)


def published_shapes(layout, backbone):
    tensors = importers.to_published(layout, backbone_of(random_variables(backbone)))
    return {name: tensor.shape for name, tensor in tensors.items()}


def test_names_and_shapes_of_resnet50_are_torchvisions():
    """All of the classifier's 320 names but the counters of its 53 norms and `fc`."""
    shapes = published_shapes("resnet", ResNet(**VARIANTS["resnet50"]))
    assert len(shapes) == 320 - 53 - 2
    assert shapes["conv1.weight"] == (64, 3, 7, 7) and shapes["bn1.running_var"] == (64,)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.0.downsample.1.running_mean"] == (2048,)
    assert shapes["layer4.2.bn3.weight"] == (2048,)


def test_names_of_a_detectron2_resnet_differ_from_torchvisions_as_its_converter_says():
    """stem, res2..5, convN.norm, shortcut: the tensors are the same."""
    variables = backbone_of(random_variables(ResNet(**RESNET)))
    converted = {}
    for name, tensor in importers.to_published("resnet", variables).items():
        name = name if "layer" in name else f"stem.{name}"
        for t in range(1, 5):
            name = name.replace(f"layer{t}", f"res{t + 1}").replace(f"bn{t}", f"conv{t}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        converted[name] = tensor
    ours = importers.to_published("resnet_detectron2", variables)
    assert set(ours) == set(converted)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, converted[name])


def test_a_deep_stem_has_three_convolutions():
    shapes = published_shapes("resnet_detectron2", ResNet(deep_stem=True, **RESNET))
    stem = {name: shape for name, shape in shapes.items() if name.startswith("stem.")}
    assert stem["stem.conv3.weight"] == (4, 2, 3, 3)
    assert stem["stem.conv2.norm.running_mean"] == (2,)
    assert len(stem) == 3 * 5


def test_names_and_shapes_of_a_swin_are_the_authors():
    shapes = published_shapes("swin", Swin(**SWIN | dict(depths=(2,), heads=(2,))))
    block = {
        name.removeprefix("layers.0.blocks.1."): shape
        for name, shape in shapes.items()
        if name.startswith("layers.0.blocks.1.")
    }
    assert block == {
        "norm1.weight": (4,),
        "norm1.bias": (4,),
        "attn.qkv.weight": (12, 4),
        "attn.qkv.bias": (12,),
        "attn.relative_position_bias_table": (9, 2),
        "attn.proj.weight": (4, 4),
        "attn.proj.bias": (4,),
        "norm2.weight": (4,),
        "norm2.bias": (4,),
        "mlp.fc1.weight": (16, 4),
        "mlp.fc1.bias": (16,),
        "mlp.fc2.weight": (4, 16),
        "mlp.fc2.bias": (4,),
    }
    rest = {name for name in shapes if "blocks" not in name}
    assert rest == {
        f"{name}.{w}"
        for name in ("patch_embed.proj", "patch_embed.norm", "norm0")
        for w in ("weight", "bias")
    }
    assert shapes["patch_embed.proj.weight"] == (4, 3, 4, 4)


def test_merging_has_no_bias():
    shapes = published_shapes("swin", Swin(**SWIN))
    assert shapes["layers.1.downsample.reduction.weight"] == (16, 32)
    assert shapes["layers.1.downsample.norm.weight"] == (32,)
    assert "layers.1.downsample.reduction.bias" not in shapes
    assert not any(name.startswith("layers.3.downsample") for name in shapes)


@pytest.mark.parametrize(
    ("layout", "name", "path"),
    [
        ("resnet", "layer3.5.bn2.running_var", "backbone/res4_5/norm2/var"),
        ("resnet", "fc.weight", None),
        ("resnet_detectron2", "stem.conv1.norm.weight", "backbone/stem_norm/scale"),
        ("resnet_detectron2", "stem.fc.bias", None),
        ("swin", "norm3.weight", "backbone/norm3/scale"),
        ("swin", "norm.weight", None),
        ("swin", "layers.0.blocks.1.attn_mask", None),
        ("swin", "layers.0.blocks.1.attn.relative_position_index", None),
    ],
)
def test_our_path_of_a_published_name(layout, name, path):
    assert importers.our_path(layout, name) == path


# --------------------------------------------------------------------------------------------------
# Pretrained backbones


@pytest.mark.parametrize("norm", [FrozenBatchNorm, BatchNorm])
def test_a_pretrained_resnet_brings_its_statistics(tmp_path, norm):
    """Frozen ones, with the affine map, into "constants"; trained ones into "batch_stats"."""
    backbone = ResNet(norm=norm, **RESNET)
    pretrained, fresh = random_variables(backbone, 1), random_variables(backbone, 2)
    tensors = importers.to_published("resnet", backbone_of(pretrained))
    tensors |= {"fc.weight": np.zeros((1000, 64)), "bn1.num_batches_tracked": np.array(3)}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "x.safetensors")
    result = importers.initialise("resnet", tmp_path / "x.safetensors", fresh)
    assert set(result) == {"params", "constants" if norm is FrozenBatchNorm else "batch_stats"}
    chex.assert_trees_all_equal(backbone_of(result), backbone_of(pretrained))
    chex.assert_trees_all_equal(result["params"]["head"], fresh["params"]["head"])


def test_a_pretrained_resnet_is_read_from_detectron2s_pickle(tmp_path):
    pretrained, fresh = (random_variables(ResNet(**RESNET), seed) for seed in (1, 2))
    tensors = importers.to_published("resnet_detectron2", backbone_of(pretrained))
    content = {
        "model": tensors | {"stem.fc.weight": np.zeros((1000, 64))},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    path = write_pickle(tmp_path / "R-50.pkl", content)
    result = importers.initialise("resnet_detectron2", path, fresh)
    chex.assert_trees_all_equal(backbone_of(result), backbone_of(pretrained))


def write_swin(path, variables, **further):
    """As the classifiers are: under "model", without norms of levels."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    tensors = importers.to_published("swin", backbone_of(variables)) | further
    torch.save({"model": {k: torch.tensor(np.array(v)) for k, v in tensors.items()}}, path)
    return path


def without_level_norms(variables):
    backbone = variables["params"]["backbone"]
    kept = {name: tree for name, tree in backbone.items() if not name.startswith("norm")}
    return {"params": {"backbone": kept}}


def test_norms_that_a_pretrained_swin_lacks_stay_as_they_are(tmp_path):
    pretrained, fresh = (random_variables(Swin(**SWIN), seed) for seed in (1, 2))
    further = {
        "norm.weight": np.zeros(32),
        "head.weight": np.zeros((1000, 32)),
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((4, 4), np.int64),
        "layers.1.blocks.1.attn_mask": np.zeros((4, 4, 4)),
    }
    path = write_swin(tmp_path / "x.pth", without_level_norms(pretrained), **further)
    result = importers.initialise("swin", path, fresh)
    chex.assert_trees_all_equal(without_level_norms(result), without_level_norms(pretrained))
    for name in ("norm0", "norm1", "norm2", "norm3"):
        chex.assert_trees_all_equal(
            result["params"]["backbone"][name], fresh["params"]["backbone"][name]
        )


def test_norms_that_a_file_has_are_taken(tmp_path):
    pretrained, fresh = (random_variables(Swin(**SWIN), seed) for seed in (1, 2))
    result = importers.initialise("swin", write_swin(tmp_path / "x.pth", pretrained), fresh)
    chex.assert_trees_all_equal(backbone_of(result), backbone_of(pretrained))


def test_only_norms_of_levels_may_be_lacking(tmp_path):
    pretrained, fresh = (random_variables(Swin(**SWIN), seed) for seed in (1, 2))
    tensors = importers.to_published("swin", without_level_norms(pretrained))
    del tensors["patch_embed.norm.weight"]
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(SegjaxError, match="1 missing") as error:
        importers.initialise("swin", tmp_path / "x.safetensors", fresh)
    assert "patch_embed.norm.weight" in str(error.value)


def test_another_window_is_said(tmp_path):
    path = write_swin(tmp_path / "x.pth", random_variables(Swin(**SWIN | dict(window=3))))
    with pytest.raises(SegjaxError, match=r"misshaped +layers\.0\.blocks\.0\.attn\.relative"):
        importers.initialise("swin", path, random_variables(Swin(**SWIN)))


def test_a_model_without_backbone_cannot_be_initialised(tmp_path):
    path = write_swin(tmp_path / "x.pth", random_variables(Swin(**SWIN)))
    with pytest.raises(SegjaxError, match="no backbone"):
        importers.initialise("swin", path, {"params": {"head": {"kernel": np.zeros((2, 2))}}})


# --------------------------------------------------------------------------------------------------
# Pickles


ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "a.bias": np.ones(3, np.float64),
    "count": np.array(3),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_are_read(tmp_path, protocol):
    content = {"model": collections.OrderedDict(ARRAYS), "__author__": "someone", "matching": True}
    checkpoint = importers.load(write_pickle(tmp_path / "x.pkl", content, protocol))
    assert set(checkpoint.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], array, strict=True)
    assert checkpoint.meta == {"__author__": "someone", "matching": True}


def test_pickles_of_python_2_and_old_numpy_are_read(tmp_path):
    """numpy.core instead of numpy._core, bytes where strings are now."""
    new = pickle.dumps({"model": {"x": np.arange(3, dtype=np.uint8)}}, 0)
    old = new.replace(b"numpy._core", b"numpy.core")
    assert old != new
    (tmp_path / "x.pkl").write_bytes(old)
    np.testing.assert_array_equal(importers.read(tmp_path / "x.pkl")["x"], [0, 1, 2])
    python2 = b"(dp0\nS'model'\np1\n(dp2\nS'x'\np3\n" + pickle.dumps(np.eye(2), 0)[:-1] + b"ss."
    (tmp_path / "x.pkl").write_bytes(python2)
    np.testing.assert_array_equal(importers.read(tmp_path / "x.pkl")["x"], np.eye(2))


def test_tensors_of_torch_in_a_plain_pickle_are_read(tmp_path):
    """As Mask2Former's converter of Swin writes them."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    model = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    path = write_pickle(tmp_path / "x.pkl", {"model": model, "__author__": "third_party"})
    found = importers.read(path)
    np.testing.assert_array_equal(found["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["b"], np.ones(2, np.float32), strict=True)


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    calls = {
        f"{os.mkdir.__module__}.mkdir": Call(os.mkdir, str(trap)),
        "builtins.eval": Call(eval, f"__import__('os').mkdir({str(trap)!r})"),
        "builtins.getattr": Call(getattr, "", "join"),
        "numpy.load": Call(np.load, "x.npy"),
        "_pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(trap)))),
    }
    for name, call in calls.items():
        for content in (call, {"model": {"x": np.ones(2)}, "hook": call}):
            path = write_pickle(tmp_path / "evil.pkl", content)
            with pytest.raises(SegjaxError, match=r"evil\.pkl: .*would execute") as error:
                importers.read(path)
            assert name in str(error.value) and "\n" not in str(error.value)
    assert not trap.exists()


def test_arrays_of_objects_hide_nothing(tmp_path):
    trap = tmp_path / "trap"
    hidden = np.array([Call(os.mkdir, str(trap))], dtype=object)
    path = write_pickle(tmp_path / "evil.pkl", {"model": {"x": hidden}})
    with pytest.raises(SegjaxError, match="would execute"):
        importers.read(path)
    path = write_pickle(tmp_path / "odd.pkl", {"model": {"x": np.array(["a", None], object)}})
    with pytest.raises(SegjaxError, match="holds no tensors"):
        importers.read(path)
    assert not trap.exists()


def test_bytes_that_torch_would_unpickle_are_refused_too(tmp_path):
    """A storage is a file within the file."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    trap = tmp_path / "trap"
    torch.save(Call(os.mkdir, str(trap)), tmp_path / "inner.pth")
    call = Call(torch.storage._load_from_bytes, (tmp_path / "inner.pth").read_bytes())
    path = write_pickle(tmp_path / "evil.pkl", {"model": {"x": np.ones(2)}, "hook": call})
    with pytest.raises(SegjaxError, match=r"evil\.pkl"):
        importers.read(path)
    assert not trap.exists()


def test_encodings_are_not_looked_for(tmp_path):
    """`codecs.encode` would import the module that a file names."""
    call = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00thistR."
    (tmp_path / "evil.pkl").write_bytes(call)
    with pytest.raises(SegjaxError, match=r"evil\.pkl: .*bytes as this"):
        importers.read(tmp_path / "evil.pkl")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_pickle_is_one_sentence(tmp_path, share):
    path = write_pickle(tmp_path / "x.pkl", {"model": ARRAYS})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SegjaxError, match=r"x\.pkl: it is damaged or incomplete") as error:
        importers.read(path)
    assert "\n" not in str(error.value)


def test_a_pickle_of_something_else_is_said(tmp_path):
    with pytest.raises(SegjaxError, match="it holds a list, not named tensors"):
        importers.read(write_pickle(tmp_path / "x.pkl", [1, 2]))


def test_arrays_in_a_pickle_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert set(importers.read(write_pickle(tmp_path / "x.pkl", {"model": ARRAYS}))) == set(ARRAYS)
