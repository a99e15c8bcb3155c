"""CascadePSP: what its network is made of, its loss, and how it goes over large images."""

from __future__ import annotations

import dataclasses
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import systems
from segjax.backbones.layers import BatchNorm
from segjax.errors import SegjaxError
from segjax.losses import refinement
from segjax.ops import pooling, resize
from segjax.structs import Refined
from segjax.systems import cascade_psp, refiner
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image

RNG = np.random.default_rng(0)
TINY = dict(
    system="cascade_psp",
    backbone=dict(width=4, depths=(1, 1, 1, 1)),
    features=16,
    up_features=(12, 8, 4),
    head_features=6,
)


def system_of(**fields):
    return systems.build(TINY | fields)


def random(*shape):
    return jnp.asarray(RNG.standard_normal(shape, np.float32))


def moved(variables, seed=0):
    """All numbers changed a little, so that nothing is 0 or 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), variables)


@pytest.fixture(scope="module")
def fresh():
    system = system_of()
    return jax.jit(lambda: system.init(jax.random.key(1), {}))()


@pytest.fixture(scope="module")
def variables(fresh):
    """Whose probabilities are neither all alike nor all 0 or 1."""
    changed = moved(fresh)
    for head, factor, shift in (("head_4", 2.0, 4.3), ("head_1", 8.0, 0.47)):
        last = changed["params"][head]["conv2"]
        last["kernel"], last["bias"] = factor * last["kernel"], factor * (last["bias"] + shift)
    return changed


def scene(height, width):
    """uint8 image, and the mask of a disc that is not quite where the image has it."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < min(height, width) ** 2 / 9
    image = np.where(inside[..., None], (200, 80, 40), (30, 90, 160)) + RNG.integers(
        0, 30, (height, width, 3)
    )
    return image.astype(np.uint8), np.roll(inside, 3, axis=1).astype(np.uint8) * 255


# --------------------------------------------------------------------------------------------------
# The network


def test_the_official_numbers_of_parameters():
    system = systems.build(dict(system="cascade_psp"))
    shapes = jax.eval_shape(lambda: system.init(jax.random.key(0), {}))["params"]
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert count == {
        "backbone": 23_517_440,
        "psp": 27_264_000,
        "up_1": 13_508_608,
        "up_2": 3_231_616,
        "up_3": 111_302,
        "head_8": 32_833,
        "head_4": 16_449,
        "head_1": 1_152 + 33,
    }
    assert sum(count.values()) == 67_683_433
    norms = jax.tree_util.tree_leaves_with_path(shapes)
    affine = sum(x.size for path, x in norms if "norm" in path[-2].key)
    assert sum(count.values()) - affine == 67_621_283


def test_a_pyramid_is_one_convolution_of_all_grids_and_the_map():
    """Its definition: every grid enlarged first."""
    module = cascade_psp.Pyramid(5, (1, 2, 3, 6))
    x = random(2, 9, 7, 4)
    variables = moved(module.init(jax.random.key(0), x))
    params = variables["params"]
    grids = [
        resize.bilinear(
            pooling.adaptive_average(x, (n, n)) @ params[f"grid_{i}"]["kernel"][0, 0], (9, 7)
        )
        for i, n in enumerate((1, 2, 3, 6))
    ]
    mixed = jnp.concatenate([*grids, x], axis=-1) @ params["bottleneck"]["kernel"][0, 0]
    expected = nn.relu(mixed + params["bottleneck"]["bias"])
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_an_up_block_is_two_units_with_the_norms_first():
    """Its definition: the shortcut's convolution after the enlargement, and Flax's own."""
    module = cascade_psp.UpBlock(6)
    x, finer = random(1, 4, 5, 3), random(1, 8, 10, 2)
    variables = moved(module.init(jax.random.key(0), x, finer, False))
    params = variables["params"]

    def conv(y, name, size):
        return nn.Conv(6, (size, size), padding=size // 2).apply({"params": params[name]}, y)

    def unit(y, number):
        norm = {name: tree[f"norm{number}"] for name, tree in variables.items()}
        return conv(nn.relu(BatchNorm().apply(norm, y, False)), f"conv{number}", 3)

    wide = resize.bilinear(x, (8, 10))
    y = unit(unit(jnp.concatenate([wide, finer], axis=-1), 1), 2) + conv(wide, "shortcut", 1)
    expected = y + unit(unit(y, 3), 4)
    ours = module.apply(variables, x, finer, False)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def apply():
    """The network, compiled once for each number of passes."""
    return jax.jit(system_of().module.apply)


def test_a_pass_may_be_replaced_by_what_it_would_have_said(variables, apply):
    image, coarse = random(1, 48, 64, 3), random(1, 48, 64)
    whole = apply(variables, image, coarse)
    assert len(whole.stride8) == 3 and len(whole.stride4) == 2
    second = jnp.tanh(whole.stride8[1]), jnp.tanh(whole.stride4[0])
    for given, passes in (((jnp.tanh(whole.stride8[0]),), 2), (second, 1)):
        fewer = apply(variables, image, coarse, *given)
        assert (len(fewer.stride8), len(fewer.stride4)) == (passes, min(passes, 2))
        chex.assert_trees_all_close(fewer.logits, whole.logits, rtol=1e-4, atol=1e-4)
        chex.assert_trees_all_close(fewer.ups, whole.ups, rtol=1e-4, atol=1e-4)


def test_the_backbones_first_bottlenecks_are_not_dilated():
    backbone = system_of().module.backbone
    assert backbone.strides == (1, 2, 1, 1) and backbone.dilations == (1, 1, 2, 4)
    assert backbone.first_dilation == 1 and backbone.stem_levels


@pytest.mark.parametrize(
    ("sides", "filled"),
    [((64, 96), (64, 96)), ((64, 97), (72, 104)), ((63, 97), (64, 104)), ((1, 1), (8, 8))],
)
def test_a_side_that_is_a_multiple_of_8_grows_where_the_other_is_none(sides, filled):
    assert cascade_psp.filled_up(sides) == filled


def test_predictions_of_any_size_are_those_of_the_filled_up_image(variables, apply):
    system = system_of()
    image, mask = scene(43, 56)
    batch = {"image": image[None], "coarse_mask": mask[None]}
    found = jax.jit(system.predict)(variables, batch)
    assert isinstance(found, Refined) and found.logits.shape == (1, 43, 56)
    pixels = np.pad(
        normalised_image(batch, IMAGENET_MEAN, IMAGENET_STD)[0], ((0, 5), (0, 8), (0, 0))
    )
    coarse = np.pad(mask / np.float32(127.5) - 1, ((0, 5), (0, 8)), constant_values=-1)
    whole = apply(variables, pixels[None], coarse[None]).logits[:, :43, :56]
    np.testing.assert_allclose(found.logits, whole, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.probability, jax.nn.sigmoid(found.logits), rtol=1e-5)


def test_what_lies_beyond_the_size_of_an_image_is_no_object():
    mask = np.full((2, 4, 5), 255, np.uint8)
    batch = {"coarse_mask": mask, "image_size": np.array([[4, 5], [2, 3]], np.int32)}
    found = refiner.normalised_mask(batch)
    assert (found[0] == 1).all() and (found[1, :2, :3] == 1).all() and found[1].sum() == 6 - 14


def test_the_precision_of_the_computation_leaves_logits_in_float32(variables):
    system = system_of(dtype="bfloat16")
    batch = {"image": np.zeros((1, 16, 16, 3), np.uint8), "coarse_mask": np.zeros((1, 16, 16))}
    found = jax.eval_shape(system.predict, variables, batch)
    assert found.logits.dtype == found.probability.dtype == jnp.float32


# --------------------------------------------------------------------------------------------------
# The loss


def test_each_level_counts_with_its_weights():
    """One level and one term at a time."""
    logits = [random(1, 8, 9) for _ in cascade_psp.LEVELS]
    truth = jax.nn.sigmoid(random(1, 8, 9))
    none = cascade_psp.Weights(*((0.0,) * 6,) * 3, 0.0)
    assert cascade_psp.loss(logits, truth, none)[0] == 0.0
    for i, level in enumerate(cascade_psp.LEVELS):
        terms = refinement.terms(logits[i], truth)
        for name, term in terms._asdict().items():
            factors = tuple(2.0 * (i == other) for other in range(6))
            value, scalars = cascade_psp.loss(logits, truth, none._replace(**{name: factors}))
            np.testing.assert_allclose([value, scalars[f"loss_{level}"]], 2 * term, rtol=1e-6)
    value, scalars = cascade_psp.loss(logits, truth, none._replace(gradient=3.0))
    steep = refinement.gradient_term(logits[0], truth)
    np.testing.assert_allclose([value, 3 * scalars["loss_gradient"]], 3 * steep, rtol=1e-6)


@pytest.fixture(scope="module")
def training():
    """A system, its jitted loss with gradient, and a batch of sizes that are no multiples of 8."""
    system = system_of()
    pairs = [scene(42, 48) for _ in range(2)]
    batch = {
        "image": np.stack([image for image, _ in pairs]),
        "coarse_mask": np.stack([mask for _, mask in pairs]),
        "mask": np.stack([np.roll(mask, -3, axis=1) for _, mask in pairs]),
    }

    @jax.jit
    def step(params, rest):
        def total(params):
            return system.loss({"params": params, **rest}, batch, jax.random.key(0))

        return jax.value_and_grad(total, has_aux=True)(params)

    return system, step, batch


def test_training_overfits_a_toy(training, fresh):
    """Three times as good in a few steps; all gradients are finite, and none is nothing."""
    _, step, _ = training
    params, rest = fresh["params"], {"batch_stats": fresh["batch_stats"]}
    adam = optax.adam(1e-2)
    state = adam.init(params)

    @jax.jit
    def updated(params, gradients, state):
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state

    values = []
    for _ in range(30):
        (value, (scalars, mutated)), gradients = step(params, rest)
        chex.assert_tree_all_finite(gradients)
        if not values:
            assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
        (params, state), rest = updated(params, gradients, state), mutated
        values.append(float(value))
    assert values[-1] < values[0] / 3
    assert scalars["intersection"] / scalars["union"] > 0.9
    assert scalars["coarse_intersection"] / scalars["coarse_union"] < 0.85


def test_the_last_block_meets_the_image_once_in_a_step(training, fresh):
    """Its first norm keeps a tenth of the mean of the filled-up image."""
    _, step, batch = training
    stats = fresh["batch_stats"]
    _, (_, mutated) = step(fresh["params"], {"batch_stats": stats})[0]
    image = normalised_image(batch, IMAGENET_MEAN, IMAGENET_STD)
    seen = jnp.pad(image, ((0, 0), (0, 6), (0, 8), (0, 0))).mean((0, 1, 2))
    found = mutated["batch_stats"]["up_3"]["norm1"]["mean"][-3:]
    np.testing.assert_allclose(found, 0.1 * seen, rtol=1e-4, atol=1e-5)


def test_slices_of_a_batch_are_refused(training, variables):
    system, _, batch = training
    with pytest.raises(SegjaxError, match=r"config\.accumulate is 2"):
        system.loss(variables, batch, jax.random.key(0), 2)


# --------------------------------------------------------------------------------------------------
# Large images


def last_of(every):
    *_, last = every
    return last


def test_the_longest_side_may_become_one_pixel_less():
    """The official scale is a float: 418 sides from 901 to 6000 become 899."""
    assert cascade_psp.reduced_size((2328, 3492), 900 / 3492) == (599, 899)
    found = [cascade_psp.reduced_size((n, n), 900 / n)[0] for n in range(901, 6001)]
    assert found.count(899) == 418 and found.count(900) == 5100 - 418


def test_crops_have_one_shape_and_leave_nothing_out():
    corners = cascade_psp.crops_of((1000, 2000), 900, 418)
    assert corners[:3] == [(0, 0), (100, 0), (0, 418)]  # rows first
    assert {left for _, left in corners} == {0, 418, 836, 1100}
    assert cascade_psp.crops_of((500, 800), 900, 418) == [(0, 0)]
    assert cascade_psp.crops_of((500, 1000), 900, 418) == [(0, 0), (0, 100)]


@pytest.mark.parametrize(
    ("share", "dull"), [(0, True), (9, True), (10, False), (90, False), (91, True)]
)
def test_a_crop_is_dull_with_less_than_a_tenth_of_either(share, dull):
    inside = np.arange(100) < share
    assert cascade_psp.is_dull(inside) == dull


class Told(nn.Module):
    """A network that says what a function of (image, coarse mask, stride-8 mask) says."""

    says: object

    def __call__(self, image, coarse, stride8=None, stride4=None, train=False):
        logits = self.says(image, coarse, stride8)
        return cascade_psp.Output(logits, (logits,), (logits,), {}, logits, ())


def told(says, **fields):
    fields = dict(side=64, stride=48) | fields
    return dataclasses.replace(system_of(**fields), module=Told(says))


def large_scene():
    """Object in the left part: of the crops of 64 pixels those at its edge are not dull."""
    image = RNG.integers(0, 256, (72, 200, 3)).astype(np.uint8)
    mask = np.zeros((72, 200), np.uint8)
    mask[:, :130] = 255
    return image, mask


def test_where_no_crop_is_refined_the_result_is_hard():
    """The toy repeats its mask, as a logit of 1 or -1."""
    image, mask = large_scene()
    whole, result = told(lambda image, coarse, _: coarse).turns({}, image, mask)
    assert whole.min() < 0.3 and 0.7 < whole.max() < 0.75
    inside = mask > 0
    refined = (result != 0) & (result != 1)
    assert refined[:, 100:160].all() and not refined[:, :70].any() and not refined[:, 190:].any()
    np.testing.assert_array_equal(result[~refined], inside[~refined])
    np.testing.assert_allclose(
        result[refined], jax.nn.sigmoid(np.where(inside, 1.0, -1.0))[refined], rtol=1e-5
    )


def test_margins_of_crops_do_not_count_but_at_the_sides_of_the_image():
    """The toy is not a number near the border of whatever it sees in a local step."""

    def says(image, coarse, stride8):
        height, width = coarse.shape[1:]
        y, x = np.mgrid[:height, :width]
        near = np.minimum(np.minimum(y, x), np.minimum(height - 1 - y, width - 1 - x)) < 16
        return jnp.where(near, np.nan, coarse) if stride8 is not None else coarse

    image, mask = large_scene()
    result = last_of(told(says).turns({}, image, mask))
    assert not np.isnan(result[16:-16]).any()
    assert np.isnan(result[:16, 100:160]).all() and np.isnan(result[-16:, 100:160]).all()


def test_the_local_step_begins_with_what_the_global_one_found():
    """Its mask is the global result, -1 or 1; its first pass that at stride 4, soft."""
    seen = []

    def says(image, coarse, stride8):
        if stride8 is not None:
            jax.debug.callback(lambda *x: seen.append(x), coarse, stride8)
        return 0.5 * coarse

    image, mask = large_scene()
    mask = np.roll(mask, 30, axis=1)  # the image is 200 wide: what the network sees is smaller
    whole = next(iter(told(says).turns({}, image, mask)))
    last_of(told(says).turns({}, image, mask))
    jax.effects_barrier()
    assert seen
    hard = np.where(whole > 0.5, 1.0, -1.0)
    for coarse, stride8 in seen:
        assert coarse.shape == (1, 64, 64)
        places = [
            (top, left)
            for top, left in cascade_psp.crops_of((72, 200), 64, 16)
            if np.array_equal(hard[top : top + 64, left : left + 64], coarse[0])
        ]
        assert any(
            np.allclose(2 * whole[t : t + 64, l : l + 64] - 1, stride8[0], atol=1e-5)
            for t, l in places
        )


@pytest.mark.parametrize("steps", ["global_local", "global"])
def test_an_empty_mask_stays_empty(steps):
    """By the official rule less than one pixel's worth of grey is nothing; the package has none."""
    image, mask = np.full((70, 90, 3), 9, np.uint8), np.zeros((70, 90), np.uint8)
    mask[0, :2] = 127
    heard = []
    toy = told(lambda image, coarse, _: 0 * coarse, steps=steps)
    found = list(toy.turns({}, image, mask, progress=lambda *x: heard.append(x)))
    assert len(found) == (2 if steps == "global_local" else 1)
    assert all(turn.dtype == np.float32 and turn.shape == mask.shape for turn in found)
    assert not any(turn.any() for turn in found)
    total = heard[0][1]
    assert heard == [(done, total) for done in range(1, total + 1)]
    mask[0, 2] = 1
    assert next(iter(toy.turns({}, image, mask))).all()
    package = told(lambda image, coarse, _: 0 * coarse, variant="package", stride=None, side=66)
    assert next(iter(package.turns({}, image, np.zeros_like(mask)))).all()


def test_a_full_mask_that_the_network_leaves_full_stays_full():
    image, mask = large_scene()
    toy = told(lambda image, coarse, _: 9 * coarse)
    _, result = toy.turns({}, image, np.full_like(mask, 255))
    assert (result == 1).all()


@pytest.mark.parametrize(
    ("variant", "seen", "grey"),
    [("package", (40, 80), -1.0), ("research", (24, 48), 100 / 127.5 - 1)],
)
def test_the_package_cuts_grey_masks_and_enlarges_small_images(variant, seen, grey):
    heard = []

    def says(image, coarse, stride8):
        jax.debug.callback(lambda x: heard.append(x), coarse)
        return coarse

    mask = np.full((20, 40), 100, np.uint8)
    mask[:, 20:] = 200
    toy = told(says, side=80, stride=None, variant=variant)
    next(iter(toy.turns({}, np.zeros((20, 40, 3), np.uint8), mask)))
    jax.effects_barrier()
    (coarse,) = heard
    assert coarse.shape == (1, *seen)
    np.testing.assert_allclose(coarse[0, 0, 0], grey, rtol=1e-5)


LARGE = (70, 101)
"""Of one global step, at 44 x 63, and 8 crops."""


@pytest.fixture(scope="module")
def large():
    return scene(*LARGE)


@pytest.fixture(scope="module")
def heard_and_found(variables, large):
    heard = []
    system = system_of(side=64, stride=48)
    every = system.turns(variables, *large, progress=lambda *x: heard.append(x))
    return heard, list(every)


def test_progress_ends_at_its_total_and_counts_crops(heard_and_found):
    assert heard_and_found[0] == [(done, 9) for done in range(1, 10)]
    assert len(cascade_psp.crops_of(LARGE, 64, 16)) == 8


def test_all_steps_are_those_of_the_twin_in_torch(heard_and_found, variables, large):
    pytest.importorskip("torch", reason="the twin is in torch; pip install .[torch]")
    from segjax.bench import torch_cascade_psp

    twin = torch_cascade_psp.load(system_of(), variables)
    theirs = torch_cascade_psp.refine(twin, *large, 64, 48)
    np.testing.assert_allclose(heard_and_found[1][-1], theirs, rtol=1e-3, atol=1e-4)
    assert theirs.std() > 0.05


def test_memory_has_a_bound_that_is_checked(large):
    toy = told(lambda image, coarse, _: coarse)
    with pytest.raises(SegjaxError, match=r"max_memory is 0 MiB.*config\.model\.side"):
        last_of(toy.turns({}, *large, max_memory=1000))
    bounded = last_of(toy.turns({}, *large, max_memory=2**30))
    np.testing.assert_array_equal(bounded, last_of(toy.turns({}, *large)))


@pytest.mark.parametrize("size", [(130, 17), (64, 64), (31, 45), (300, 2), (1, 1)])
@pytest.mark.parametrize("fields", [{}, dict(steps="global"), dict(variant="package")])
def test_sizes_that_are_multiples_of_nothing(size, fields):
    """Reduced, a side of the thinnest one is officially 0, which can't run; here it is 1."""
    image, mask = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
    mask[: size[0] // 3] = 0
    toy = told(lambda image, coarse, _: coarse, **dict(side=66, stride=None) | fields)
    for turn in toy.turns({}, image, mask):
        assert turn.shape == size and turn.dtype == np.float32
        assert (turn[size[0] // 2 :] > 0.5).all() and turn.min() >= 0 and turn.max() <= 1


def test_resizes_do_not_know_left_from_right():
    """All that is done to a whole image commutes with flips; the network itself does not: steps of
    two pixels begin at the left."""
    x = RNG.integers(0, 256, (37, 90, 3)).astype(np.uint8)
    for resized in (
        functools.partial(cascade_psp._area, size=(12, 30)),
        functools.partial(cascade_psp._area, size=(13, 31)),
        functools.partial(cascade_psp._bilinear, size=(50, 131)),
    ):
        for flip in (np.s_[::-1], np.s_[:, ::-1]):
            np.testing.assert_allclose(resized(x[flip]), resized(x)[flip], rtol=1e-4, atol=1e-3)


def test_resizes_on_the_host_are_those_on_the_device():
    x = RNG.standard_normal((37, 90, 3)).astype(np.float32)
    for size in ((12, 30), (13, 31), (37, 90)):
        ours = cascade_psp._area(x, size)
        np.testing.assert_allclose(
            ours, pooling.adaptive_average(x[None], size)[0], rtol=1e-4, atol=1e-5
        )
    for corners in (False, True):
        np.testing.assert_allclose(
            cascade_psp._bilinear(x, (50, 61), corners),
            resize.bilinear(x, (50, 61), align_corners=corners),
            rtol=1e-4,
            atol=1e-5,
        )
    ratio = 96 / 90
    np.testing.assert_allclose(
        cascade_psp._by_factor(x, ratio, "bilinear"),
        resize.bilinear_by_factor(x, ratio),
        rtol=1e-4,
        atol=1e-5,
    )
    torch = pytest.importorskip("torch", reason="torch is the oracle of resizes")
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x).permute(2, 0, 1)[None], scale_factor=ratio, mode="bicubic"
    )
    np.testing.assert_allclose(
        cascade_psp._by_factor(x, ratio, "bicubic"),
        theirs[0].permute(1, 2, 0).numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


# --------------------------------------------------------------------------------------------------
# Config values


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(variant="pip"), r"config\.model\.variant: 'pip' is none of research, package"),
        (dict(steps="local"), r"config\.model\.steps: 'local'"),
        (dict(stride=32), r"config\.model\.stride: 32 must be above 32"),
        (dict(stride=901), r"config\.model\.stride: 901"),
        (dict(variant="package", stride=400), r"always takes half of config\.model\.side, 450"),
        (dict(min_side=224), r"config\.model\.min_side: 224 needs"),
        (dict(min_side=1000, steps="global"), r"config\.model\.min_side: 1000"),
        (dict(ce_weights=(1, 0)), r"config\.model\.ce_weights: 2 values, but there are 6 levels"),
        (dict(up_features=(8, 4)), r"config\.model\.up_features: 2 values"),
        (dict(backbone="resnet51"), r"config\.model\.backbone: 'resnet51'"),
    ],
)
def test_values_that_do_not_fit(fields, message):
    with pytest.raises(SegjaxError, match=message):
        system_of(**fields)


def test_defaults_are_the_published_ones():
    system = systems.build(dict(system="cascade_psp"))
    assert (system.side, system.stride, system.least) == (900, 450, 0)
    assert system_of(steps="global").least == 900
    assert system_of(steps="global", min_side=224).least == 224
    assert system_of(variant="package", side=300).stride == 150
    assert hash(system) == hash(systems.build(dict(system="cascade_psp")))
    assert math.isclose(sum(map(sum, system.weights[:3])) + system.weights.gradient, 12.0)
