"""A pretrained backbone in a fresh model."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import importers, systems
from segjax.errors import SegjaxError


def fresh(seed=0, **model):
    model = (
        dict(
            system="regproxy",
            classes=7,
            early_block=0,
            image_size=(48, 48),
            backbone=dict(width=32, depth=1, heads=2, patch=8),
        )
        | model
    )
    image = jnp.zeros((1, 16, 16, 3))
    return jax.device_get(systems.build(model).init(jax.random.key(seed), {"image": image}))


def write(path, layout, variables, **further):
    backbone = {"params": {"backbone": variables["params"]["backbone"]}}
    tensors = importers.to_published(layout, backbone) | further
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("layout", "head"),
    [("timm", "head.weight"), ("deit", "head.bias"), ("hf_vit", "classifier.weight")],
)
def test_backbone_is_the_files_and_the_rest_stays(tmp_path, layout, head):
    pretrained, variables = fresh(1), fresh(2)
    further = {head: np.zeros((1000, 32), np.float32)}
    path = write(tmp_path / "x.safetensors", layout, pretrained, **further)
    result = importers.initialise(layout, path, variables)
    chex.assert_trees_all_equal(result["params"]["backbone"], pretrained["params"]["backbone"])
    chex.assert_trees_all_equal(result["params"]["head"], variables["params"]["head"])
    chex.assert_trees_all_equal(result["batch_stats"], variables["batch_stats"])


def test_a_released_segmenter_lends_its_backbone_to_other_classes(tmp_path):
    pretrained, variables = fresh(1, classes=150), fresh(2, classes=3)
    tensors = importers.to_published("regproxy", pretrained)
    path = tmp_path / "x.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    result = importers.initialise("regproxy", path, variables)
    chex.assert_trees_all_equal(result["params"]["backbone"], pretrained["params"]["backbone"])
    chex.assert_trees_all_equal(result["params"]["head"], variables["params"]["head"])


@pytest.mark.parametrize("distilled", [False, True])
def test_position_embedding_is_resized_as_torch_does(tmp_path, distilled):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    pretrained = fresh(1, distilled=distilled)
    variables = fresh(2, image_size=(72, 40), distilled=distilled)
    path = write(tmp_path / "x.safetensors", "timm", pretrained)
    result = importers.initialise("timm", path, variables, grid=(9, 5))
    extra = 1 + distilled
    theirs = pretrained["params"]["backbone"]["pos_embed"]
    grid = torch.tensor(theirs[:, extra:]).reshape(1, 6, 6, 32).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (9, 5), mode="bicubic", align_corners=False)
    ours = result["params"]["backbone"]["pos_embed"]
    np.testing.assert_array_equal(ours[:, :extra], theirs[:, :extra])
    wanted = grid.permute(0, 2, 3, 1).reshape(1, 45, 32).numpy()
    np.testing.assert_allclose(ours[:, extra:], wanted, rtol=1e-5, atol=1e-6)


def test_a_grid_that_is_not_square_must_be_told(tmp_path):
    path = write(tmp_path / "x.safetensors", "timm", fresh(1))
    with pytest.raises(SegjaxError, match="45 positions"):
        importers.initialise("timm", path, fresh(2, image_size=(72, 40)))


@pytest.mark.parametrize("file_distilled", [False, True])
def test_a_distillation_token_too_many_or_too_few_is_said(tmp_path, file_distilled):
    path = write(tmp_path / "x.safetensors", "deit", fresh(1, distilled=file_distilled))
    with pytest.raises(SegjaxError, match=f"config.model.distilled={file_distilled}"):
        importers.initialise("deit", path, fresh(2, distilled=not file_distilled))


def test_another_width_is_listed(tmp_path):
    other = dict(width=64, depth=1, heads=2, patch=8)
    path = write(tmp_path / "x.safetensors", "timm", fresh(1, backbone=other))
    with pytest.raises(SegjaxError, match=r"misshaped +blocks\.0\.attn\.qkv\.weight"):
        importers.initialise("timm", path, fresh(2))


def test_a_file_of_the_same_system_gives_all_but_the_heads_of_other_classes(tmp_path):
    pretrained, variables = fresh(1, classes=150), fresh(2, classes=3)
    tensors = importers.to_published("regproxy", pretrained)
    path = tmp_path / "x.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    heads = {"params/head/classifier/kernel", "params/head/classifier/bias"}
    result, left = importers.initialise_whole("regproxy", path, variables, heads)
    assert set(left) == heads
    chex.assert_trees_all_equal(
        result["params"]["head"]["affinity"], pretrained["params"]["head"]["affinity"]
    )
    chex.assert_trees_all_equal(
        result["params"]["head"]["classifier"], variables["params"]["head"]["classifier"]
    )
    chex.assert_trees_all_equal(result["batch_stats"], pretrained["batch_stats"])


def test_a_whole_model_that_differs_elsewhere_is_refused(tmp_path):
    stored, variables = fresh(1, classes=150), fresh(2, early_block=-1)
    with pytest.raises(SegjaxError, match="run: its model is not this one"):
        importers.initialise_from_run(stored, variables, (), "run")
    other = fresh(1, backbone=dict(width=64, depth=1, heads=2, patch=8))
    with pytest.raises(SegjaxError, match="run: its backbone is not this one"):
        importers.backbone_from_run(other, variables, "run")


def test_heads_are_what_follows_the_number_of_classes():
    model = dict(
        system="regproxy",
        classes=7,
        early_block=0,
        image_size=(48, 48),
        backbone=dict(width=32, depth=1, heads=2, patch=8),
    )
    assert systems.heads(model, (48, 48)) == {
        "params/head/classifier/kernel",
        "params/head/classifier/bias",
    }
