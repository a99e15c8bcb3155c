"""HRNet: its shapes and counts, and how branches are fused, against plain torch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.backbones.hrnet import VARIANTS, Exchange, HRNet

FOUR_BRANCHES = dict(width=3, stem=4, modules=(1, 1, 1), blocks=1)
THREE_BRANCHES = FOUR_BRANCHES | dict(modules=(1, 1))
TWO_BRANCHES = FOUR_BRANCHES | dict(modules=(1,))


@functools.cache
def random_variables(model):
    """Every leaf random, variances positive."""
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    return randomised(variables)


def randomised(shapes):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(size=(2, 45, 67, 3)).astype(np.float32)


def trained(model, variables, image):
    """Value, new statistics and gradient of a scalar of all branches in training mode."""

    @jax.jit
    def run(params):
        def total(params):
            branches, mutated = model.apply(
                variables | {"params": params}, image, True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(x)) for x in branches.values()), mutated

        return jax.value_and_grad(total, has_aux=True)(params)

    return run(variables["params"])


def test_four_branches_halve_the_resolution_and_double_the_channels(image):
    model = HRNet(**FOUR_BRANCHES)
    branches = jax.eval_shape(model.apply, random_variables(model), image)
    assert {name: x.shape for name, x in branches.items()} == {
        "branch_0": (2, 12, 17, 3),
        "branch_1": (2, 6, 9, 6),
        "branch_2": (2, 3, 5, 12),
        "branch_3": (2, 2, 3, 24),
    }


def test_the_official_number_of_parameters():
    model = HRNet(**VARIANTS["hrnet_w48"])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 65_325_120


@pytest.mark.parametrize(
    ("width", "adapted"), [(3, ["transition1_0"]), (16, [])], ids=["other", "the same"]
)
def test_a_branch_is_adapted_only_where_its_channels_differ(width, adapted):
    """The first stage gives 4 * stem = 16 channels."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    model = HRNet(**FOUR_BRANCHES | dict(width=width))
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert [name for name in params if name.startswith("transition")] == adapted
    new = {name: params[name]["conv"]["kernel"].shape for name in params if "new_branch" in name}
    assert new == {
        "new_branch1_1": (3, 3, 16, 2 * width),
        "new_branch2_2": (3, 3, 2 * width, 4 * width),
        "new_branch3_3": (3, 3, 4 * width, 8 * width),
    }


def plain_fusion(torch, params, stats, maps, align_corners):
    """Sums of all branches at the size of each, in torch. Maps are [B, C, h, w]."""
    functional = torch.nn.functional

    def conv_norm(x, name, stride):
        kernel = torch.tensor(np.array(params[name]["conv"]["kernel"])).permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var = (torch.tensor(stats[name]["norm"][part]) for part in ("mean", "var"))
        scale, bias = (torch.tensor(params[name]["norm"][part]) for part in ("scale", "bias"))
        return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=1e-5)

    fused = []
    for i, target in enumerate(maps):
        total = 0
        for j, x in enumerate(maps):
            if j > i:
                x = conv_norm(x, f"fuse_{i}_{j}", 1)
                if not align_corners:
                    size = [side * 2 ** (j - i) for side in x.shape[2:]]
                    x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
                x = functional.interpolate(
                    x, target.shape[2:], mode="bilinear", align_corners=align_corners
                )
            for k in range(i - j):
                x = conv_norm(x, f"fuse_{i}_{j}_{k}", 2)
                x = x.relu() if k < i - j - 1 else x
            total = total + x
        fused.append(total.relu())
    return fused


@pytest.mark.parametrize("align_corners", [False, True], ids=["mmsegmentation", "openseg"])
def test_each_branch_becomes_the_sum_of_all_also_at_odd_sizes(align_corners):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install .[test]")
    rng = np.random.default_rng(0)
    sizes = ((13, 18, 3), (7, 9, 6), (4, 5, 12))
    maps = [rng.normal(size=(2, *size)).astype(np.float32) for size in sizes]
    module = Exchange(blocks=0, fuse_align_corners=align_corners)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), maps, False))
    variables = randomised(shapes)
    ours = jax.jit(module.apply, static_argnums=2)(variables, maps, False)
    wanted = plain_fusion(
        torch,
        variables["params"],
        variables["batch_stats"],
        [torch.tensor(x).permute(0, 3, 1, 2) for x in maps],
        align_corners,
    )
    for x, y in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(x, y.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_training_reaches_every_parameter_and_moves_every_statistic(image):
    model = HRNet(**THREE_BRANCHES)
    (_, mutated), slopes = trained(model, random_variables(model), image)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)
    before = random_variables(model)["batch_stats"]
    moved = jax.tree.map(lambda a, b: np.any(a != b), mutated["batch_stats"], before)
    assert all(jax.tree.leaves(moved))


def test_remat_changes_no_value_and_no_gradient(image):
    variables = random_variables(HRNet(**TWO_BRANCHES))
    plain, again = (
        trained(HRNet(**TWO_BRANCHES, remat=remat), variables, image) for remat in (False, True)
    )
    chex.assert_trees_all_close(again, plain, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_close_to_float32(image):
    variables = random_variables(HRNet(**TWO_BRANCHES))
    exact, rough = (
        jax.jit(HRNet(**TWO_BRANCHES, dtype=dtype).apply)(variables, image)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    for name, branch in rough.items():
        assert branch.dtype == jnp.bfloat16
        error = jnp.linalg.norm(branch.astype(jnp.float32) - exact[name])
        assert error / jnp.linalg.norm(exact[name]) < 0.03
