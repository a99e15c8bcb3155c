"""ResNets as detectron2 and mmsegmentation build them, against plain torch and plain loops; what
trains and what is constant."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from segjax import importers
from segjax.backbones.layers import BatchNorm, Conv, FrozenBatchNorm
from segjax.backbones.resnet import (
    OUTPUT_STRIDE_8,
    VARIANTS,
    Bottleneck,
    ResNet,
    block_means,
)

DEEP = dict(deep_stem=True, last_stage_dilations=(1, 2))


def tiny(**fields):
    return ResNet(**(dict(width=4, depths=(1, 1, 2, 2)) | fields))


@functools.cache
def random_variables(model):
    """Every leaf random, variances positive."""
    return random_variables_of(model, np.zeros((1, 32, 32, 3), np.float32))


def random_variables_of(module, x):
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, image):
    return model.apply(variables, image)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(size=(2, 45, 67, 3)).astype(np.float32)


def plain_resnet(torch, tensors, image, depths, deep_stem, last_stage_dilations):
    """The whole network on tensors under detectron2's names. -> {"res2": [B, C, h, w], ...}"""
    functional = torch.nn.functional

    def conv(x, name, stride=1, dilation=1):
        weight = tensors[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        x = functional.conv2d(x, weight, None, stride, padding, dilation)
        norm = [tensors[f"{name}.norm.{w}"] for w in ("running_mean", "running_var")]
        affine = [tensors[f"{name}.norm.{w}"] for w in ("weight", "bias")]
        return functional.batch_norm(x, *norm, *affine, training=False, eps=1e-5)

    x = torch.tensor(image).permute(0, 3, 1, 2)
    x = conv(x, "stem.conv1", 2).relu()
    if deep_stem:
        x = conv(conv(x, "stem.conv2").relu(), "stem.conv3").relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    levels = {}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"res{stage + 2}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            dilation = last_stage_dilations[block] if stage == 3 else 1
            shortcut = conv(x, f"{name}.shortcut", stride) if block == 0 else x
            x = conv(x, f"{name}.conv1").relu()
            x = conv(x, f"{name}.conv2", stride, dilation).relu()
            x = (conv(x, f"{name}.conv3") + shortcut).relu()
        levels[f"res{stage + 2}"] = x
    return levels


@pytest.mark.parametrize("norm", [FrozenBatchNorm, BatchNorm])
@pytest.mark.parametrize("deep", [False, True])
def test_every_level_is_torchs_also_at_odd_sizes(image, norm, deep):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    model = tiny(norm=norm, **(DEEP if deep else {}))
    variables = random_variables(model)
    levels = run(model, variables, image)
    under_backbone = {name: {"backbone": tree} for name, tree in variables.items()}
    tensors = importers.to_published("resnet_detectron2", under_backbone)
    tensors = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    expected = plain_resnet(torch, tensors, image, model.depths, deep, (1, 2) if deep else (1, 1))
    assert list(levels) == ["res2", "res3", "res4", "res5"]
    for name, level in levels.items():
        wanted = expected[name].permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(level, wanted, rtol=1e-4, atol=1e-4)
    assert levels["res2"].shape == (2, 12, 17, 16) and levels["res5"].shape == (2, 2, 3, 128)


@pytest.mark.parametrize(
    ("name", "norm", "count", "buffers"),
    [
        ("resnet50", FrozenBatchNorm, 23_454_912, 106_240),
        ("resnet50", BatchNorm, 23_508_032, 53_120),
        ("resnet101", FrozenBatchNorm, 42_394_816, 210_688),
    ],
)
def test_the_official_numbers_of_parameters(name, norm, count, buffers):
    """Batch norm's affine map is trained, frozen batch norm's is a constant like its statistics."""
    model = ResNet(**VARIANTS[name], norm=norm)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in variables.items()}
    assert sizes.pop("params") == count
    assert sizes == {"constants" if norm is FrozenBatchNorm else "batch_stats": buffers}


def test_r101c_differs_in_its_stem_and_in_nothing_that_has_parameters():
    """MaskFormer's zoo: 60,318,039 parameters with R101c, 60,194,647 with R101."""

    def count(name):
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        params = jax.eval_shape(ResNet(**VARIANTS[name]).init, jax.random.key(0), image)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count("resnet101c") - count("resnet101") == 60_318_039 - 60_194_647


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50_v1d", 23_527_264), ("resnet101_v1d", 42_519_392), ("resnet101_v1c", 42_519_392)],
)
def test_mmsegmentations_numbers_of_parameters(name, count):
    """A pooled shortcut has no parameters of its own, nor has a dilation."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    model = ResNet(**VARIANTS[name], **OUTPUT_STRIDE_8, norm=BatchNorm)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_output_stride_8_keeps_the_grid_of_the_second_stage():
    image = jax.ShapeDtypeStruct((1, 97, 129, 3), np.float32)
    model = tiny(**OUTPUT_STRIDE_8)
    levels, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert [level.shape[1:3] for level in levels.values()] == [(25, 33)] + [(13, 17)] * 3


def test_the_first_bottleneck_of_a_dilated_stage_has_half_the_dilation():
    """mmsegmentation's contracted dilation: 1, 2, 2, ... and 2, 4, 4."""
    found = {}

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, Bottleneck):
            found[context.module.name] = context.module.stride, context.module.dilation
        return next_call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    model = tiny(depths=(2, 2, 3, 3), **OUTPUT_STRIDE_8)
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), image)
    assert found == {
        "res2_0": (1, 1),
        "res2_1": (1, 1),
        "res3_0": (2, 1),
        "res3_1": (1, 1),
        "res4_0": (1, 1),
        "res4_1": (1, 2),
        "res4_2": (1, 2),
        "res5_0": (1, 2),
        "res5_1": (1, 4),
        "res5_2": (1, 4),
    }


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_means_of_blocks_count_only_what_exists(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    rows, cols = (-(-side // 2) for side in size)
    wanted = np.zeros((2, rows, cols, 3))
    for i, j in np.ndindex(rows, cols):
        wanted[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    np.testing.assert_allclose(block_means(x, 2), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(block_means(x, 1), x)


def test_a_pooled_shortcut_is_the_plain_one_on_means():
    """With silent convolutions the shortcut alone speaks."""
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 8)).astype(np.float32)
    fields = dict(inner=2, dilation=1, project=True, norm=FrozenBatchNorm)
    pooled = Bottleneck(**fields, stride=2, pool_shortcut=True)
    variables = random_variables_of(pooled, x)
    silent = dict(variables["params"])
    silent["conv3"] = jax.tree.map(np.zeros_like, silent["conv3"])
    variables = variables | {"params": silent}
    plain = Bottleneck(**fields, stride=1)
    renamed = {
        collection: {name.replace("pooled_", ""): leaf for name, leaf in tree.items()}
        for collection, tree in variables.items()
    }
    wanted = plain.apply(renamed, block_means(x, 2), False)
    chex.assert_trees_all_close(pooled.apply(variables, x, False), wanted, rtol=1e-5, atol=1e-6)
    assert jnp.any(wanted > 0)


def test_a_pooled_shortcut_passes_gradients_on(image):
    model = tiny(norm=BatchNorm, depths=(1, 1), deep_stem=True, stem_width=2, pool_shortcut=True)
    variables = random_variables(model)

    @jax.jit
    def slopes(params):
        def total(params):
            levels, _ = model.apply(
                variables | {"params": params}, image, True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(x)) for x in levels.values())

        return jax.grad(total)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes(variables["params"])):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)


def test_frozen_norms_pass_gradients_on_and_get_none(image):
    model = tiny()
    variables = random_variables(model)

    def total(variables):
        return sum(jnp.sum(jnp.sin(x)) for x in model.apply(variables, image, True).values())

    slopes = jax.jit(jax.grad(total))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes["params"]))
    chex.assert_trees_all_equal(
        slopes["constants"], jax.tree.map(np.zeros_like, variables["constants"])
    )


def test_training_changes_nothing_that_is_frozen(image):
    model = tiny(depths=(1,))
    variables = random_variables(model)
    levels, mutated = model.apply(variables, image, True, mutable=["constants", "batch_stats"])
    chex.assert_trees_all_equal(levels, model.apply(variables, image))
    chex.assert_trees_all_equal(mutated["constants"], variables["constants"])


def test_trained_batch_norms_move_their_statistics_towards_the_batch(image):
    model = tiny(norm=BatchNorm, depths=(1,))
    variables = random_variables(model)
    _, mutated = model.apply(variables, image, True, mutable=["batch_stats"])
    kernel = variables["params"]["stem_conv"]["kernel"]
    stem = Conv(4, 7, False, stride=2).apply({"params": {"kernel": kernel}}, image)
    wanted = 0.9 * variables["batch_stats"]["stem_norm"]["mean"] + 0.1 * stem.mean((0, 1, 2))
    moved = mutated["batch_stats"]["stem_norm"]["mean"]
    np.testing.assert_allclose(moved, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [FrozenBatchNorm, BatchNorm])
def test_remat_changes_no_value_and_no_gradient(image, norm):
    model = tiny(norm=norm, depths=(1, 1))
    variables = random_variables(model)

    @functools.partial(jax.jit, static_argnums=1)
    def total_and_slopes(params, model):
        return jax.value_and_grad(total, has_aux=True)(params, model)

    def total(params, model):
        levels, mutated = model.apply(
            variables | {"params": params}, image, True, mutable=["batch_stats"]
        )
        return sum(jnp.sum(jnp.sin(x)) for x in levels.values()), mutated

    plain, again = (
        total_and_slopes(variables["params"], model.clone(remat=remat)) for remat in (False, True)
    )
    chex.assert_trees_all_close(again, plain, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_close_to_float32(image):
    variables = random_variables(tiny())
    exact = run(tiny(), variables, image)
    rough = run(tiny(dtype=jnp.bfloat16), variables, image)
    for name, level in rough.items():
        assert level.dtype == jnp.bfloat16
        error = jnp.linalg.norm(level.astype(jnp.float32) - exact[name])
        assert error / jnp.linalg.norm(exact[name]) < 0.03


def test_convolutions_start_at_he_fan_out_without_bias():
    image = jnp.zeros((1, 32, 32, 3))
    params = ResNet(width=32, depths=(1,)).init(jax.random.key(0), image)["params"]
    kernel = params["res2_0"]["conv2"].pop("kernel")
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 32)), rtol=0.05)
    assert not params["res2_0"]["conv2"]


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2), (2, 2)])
def test_strided_and_dilated_convolutions_are_torchs(kernel_size, stride, dilation):
    torch = pytest.importorskip("torch", reason="torch is the oracle of convolutions")
    x = np.random.default_rng(0).normal(size=(1, 8, 9, 2)).astype(np.float32)
    conv = Conv(3, kernel_size, stride=stride, dilation=dilation)
    variables = conv.init(jax.random.key(0), x)
    kernel = np.array(variables["params"]["kernel"])
    wanted = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2),
        torch.tensor(kernel).permute(3, 2, 0, 1),
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
    )
    ours = conv.apply(variables, x)
    np.testing.assert_allclose(ours, wanted.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)
