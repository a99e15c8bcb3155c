"""UPerNet's neck and head against torch, on maps that no golden case has."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import importers
from segjax.decoders.upernet import MultiLevelNeck, UPerHead


def as_torch(x):
    torch = pytest.importorskip("torch", reason="torch is the oracle of decoders")
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def perturbed(variables):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(x + rng.uniform(0, 0.5, x.shape)), variables)


def reference_head(tensors, maps, pool_sizes):
    """UPerNet's head from published tensors, in torch, layer by layer."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of decoders")
    functional = torch.nn.functional
    tensors = {name.removeprefix("decode_head."): torch.tensor(x) for name, x in tensors.items()}

    def conv_norm_relu(name, x):
        weight = tensors[f"{name}.conv.weight"]
        x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        parts = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(tensors[f"{name}.bn.{part}"] for part in parts))
        return functional.relu(x)

    def resized(x, like):
        return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    pools = [maps[-1]]
    for i, size in enumerate(pool_sizes):
        pooled = functional.adaptive_avg_pool2d(maps[-1], size)
        pools.append(resized(conv_norm_relu(f"psp_modules.{i}.1", pooled), maps[-1]))
    levels = [conv_norm_relu(f"lateral_convs.{i}", x) for i, x in enumerate(maps[:-1])]
    levels.append(conv_norm_relu("bottleneck", torch.cat(pools, dim=1)))
    for i in range(len(levels) - 1, 0, -1):
        levels[i - 1] = levels[i - 1] + resized(levels[i], levels[i - 1])
    outs = [conv_norm_relu(f"fpn_convs.{i}", x) for i, x in enumerate(levels[:-1])] + levels[-1:]
    fused = conv_norm_relu("fpn_bottleneck", torch.cat([resized(x, outs[0]) for x in outs], dim=1))
    return functional.conv2d(fused, tensors["conv_seg.weight"], tensors["conv_seg.bias"])


def test_the_head_takes_maps_of_any_sizes_and_channels():
    """As a hierarchical backbone gives them, and odd."""
    rng = np.random.default_rng(0)
    shapes = [(13, 17, 4), (7, 9, 6), (4, 5, 8)]
    maps = [jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for shape in shapes]
    head = UPerHead(3, features=5, pool_sizes=(1, 3))
    variables = jax.jit(lambda key: head.init(key, maps, False))(jax.random.key(0))
    variables = perturbed(variables)
    scores = jax.jit(lambda variables: head.apply(variables, maps, False))(variables)
    chex.assert_shape(scores, (2, 13, 17, 3))
    placed = {collection: {"head": tree} for collection, tree in variables.items()}
    tensors = importers.to_published("upernet_vit", placed)
    theirs = reference_head(tensors, [as_torch(x) for x in maps], (1, 3))
    np.testing.assert_allclose(scores, theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_the_neck_resizes_by_factor_as_torch_does():
    """Identity kernels leave the resize; torch halves odd sizes with steps of exactly 2."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of resizes")
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 3)).astype(np.float32)
    neck = MultiLevelNeck(3)
    shapes = jax.eval_shape(neck.init, jax.random.key(0), [x] * 4)["params"]
    params = {}
    for name, layer in shapes.items():
        kernel = np.zeros(layer["kernel"].shape, np.float32)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = np.eye(3)
        params[name] = {"kernel": kernel, "bias": np.zeros(3, np.float32)}
    for out, factor in zip(neck.apply({"params": params}, [x] * 4), (4, 2, 1, 0.5), strict=True):
        theirs = torch.nn.functional.interpolate(as_torch(x), scale_factor=factor, mode="bilinear")
        np.testing.assert_allclose(out, theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-6)


def test_the_neck_needs_a_map_per_factor():
    with pytest.raises(ValueError, match="longer than"):
        MultiLevelNeck(3).init(jax.random.key(0), [jnp.ones((1, 4, 4, 3))] * 3)


def test_training_uses_the_statistics_of_the_batch_and_drops_channels():
    maps = [jax.random.normal(jax.random.key(n), (2, n, n, 4)) for n in (8, 4)]
    head = UPerHead(3, features=8, pool_sizes=(1, 2), dropout=0.5)
    variables = jax.jit(lambda key: head.init(key, maps, False))(jax.random.key(0))

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return head.apply(variables, maps, True, mutable=["batch_stats"], rngs=rngs)

    (first, stats), (second, same_stats) = train(0), train(1)
    assert jnp.abs(first - second).max() > 1e-4
    chex.assert_trees_all_equal(stats, same_stats)  # dropout comes after the last norm
    moved = jax.tree.map(
        lambda a, b: jnp.any(a != b), stats["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
