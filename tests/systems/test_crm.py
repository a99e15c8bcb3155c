"""CRM: its network, its loss, and its turns over images of any size."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import importers
from segjax.errors import SegjaxError
from segjax.ops import implicit, resize
from segjax.systems import crm, crm_windows

TINY = dict(
    backbone=dict(width=4, depths=(1, 1, 2)), projected=(4, 4, 8), features=8, hidden=8, pad=8
)
SCALES = (0.25, 1.0)


def draw(size, seed=0):
    """An image and a mask with an ellipse."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    y, x = (y + 0.5) / size[0] - 0.5, (x + 0.5) / size[1] - 0.45
    inside = (y / 0.35) ** 2 + (x / 0.3) ** 2 < 1
    return rng.integers(0, 256, (*size, 3), np.uint8), inside.astype(np.uint8) * 255


def scattered(variables):
    """With statistics and biases as of a trained network, and logits that spread around 0."""

    def one(path, leaf):
        rng = np.random.default_rng(len(jax.tree_util.keystr(path)))
        name = path[-1].key
        if name in ("mean", "bias"):
            return jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32)
        return leaf * 100.0 if leaf.shape[-1:] == (1,) else leaf

    return jax.tree_util.tree_map_with_path(one, variables)


@pytest.fixture(scope="module")
def tiny():
    system = crm.build(**TINY, scales=SCALES)
    return system, scattered(jax.jit(lambda: system.init(jax.random.key(0), {}))())


def plain_turns(system, variables, image, mask):
    """The schedule with whole maps and nothing saved."""
    ends = ((system.pad,) * 2,) * 2
    current = np.pad(mask, ends, mode="reflect").astype(np.float32)[..., None] / 127.5 - 1
    image = np.pad(image, (*ends, (0, 0)), mode="reflect").astype(np.float32)
    image = (image - np.float32(system.mean)) / np.float32(system.std)
    size = current.shape[:2]
    apply = jax.jit(lambda x: system.module.apply(variables, x, method="encoded")[1])
    network = system.module.apply(variables, method="folded")[0]
    for scale in system.scales:
        x = jnp.concatenate([image, current], axis=-1)
        small = tuple(max(round(n * scale), 1) for n in size)
        features = apply(resize.bilinear(x, small, align_corners=True)[None])
        axes = map(implicit.grid_axis, size, features.shape[1:3])
        logits = implicit.grid_logits(
            implicit.project(features, network), network, *axes, system.module.ensemble
        )
        probability = np.asarray(jax.nn.sigmoid(logits[0]))
        yield probability[system.pad :, system.pad :][: mask.shape[0], : mask.shape[1]]
        current = probability[..., None] * 2 - 1


# --------------------------------------------------------------------------------------------------
# Turns


@pytest.mark.parametrize("size", [(40, 61), (97, 12), (1, 30), (9, 9)], ids=str)
def test_turns_are_the_plain_schedule(tiny, size):
    """Odd sizes, 1:8, and images smaller than the border that is reflected."""
    system, variables = tiny
    image, mask = draw(size)
    found = list(system.turns(variables, image, mask))
    wanted = list(plain_turns(system, variables, image, mask))
    assert len(found) == len(SCALES) and all(x.dtype == np.float32 for x in found)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(found[-1]) > 1e-3  # or nothing was compared


def test_a_mask_may_be_one_pixel_wide(tiny):
    system, variables = tiny
    image, mask = draw((40, 61))
    line = np.zeros_like(mask)
    line[3:37, 20] = 255
    found = list(system.turns(variables, image, line))
    np.testing.assert_allclose(found, list(plain_turns(system, variables, image, line)), atol=1e-5)
    assert np.abs(found[0] - next(system.turns(variables, image, mask))).max() > 1e-3


@pytest.fixture(scope="module")
def large(tiny):
    system, variables = tiny
    image, mask = draw((430, 150))
    return image, mask, list(system.turns(variables, image, mask))


@pytest.mark.parametrize("pixels", [170 * 290, 130 * 300])
def test_windows_give_the_answers_of_the_whole(tiny, large, pixels, monkeypatch):
    system, variables = tiny
    image, mask, whole = large
    monkeypatch.setattr(crm_windows, "affordable", lambda *_: pixels)
    plans = []
    plan = crm_windows.plan
    monkeypatch.setattr(crm_windows, "plan", lambda *a: plans.append(plan(*a)) or plans[-1])
    found = list(system.turns(variables, image, mask, max_memory=1))
    assert len(plans[-1].windows) > 1
    for ours, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_number_of_points_asked_together_changes_nothing(tiny, large, monkeypatch):
    system, variables = tiny
    image, mask, whole = large
    monkeypatch.setattr(implicit, "QUERIES", 700)
    np.testing.assert_allclose(list(system.turns(variables, image, mask))[-1], whole[-1], atol=1e-5)


def test_a_second_call_gives_the_same(tiny, large):
    system, variables = tiny
    image, mask, whole = large
    np.testing.assert_array_equal(list(system.turns(variables, image, mask)), whole)


def test_images_of_near_sizes_share_their_programs(tiny):
    system, variables = tiny
    crm_windows.projected.clear_cache()
    for size in ((60, 61), (57, 64), (58, 59)):
        list(system.turns(variables, *draw(size)))
    assert crm_windows.projected._cache_size() == len(SCALES)


def test_an_empty_mask_stays_empty(tiny):
    system, variables = tiny
    image, mask = draw((30, 40))
    assert not np.any(list(system.turns(variables, image, np.zeros_like(mask))))
    nearly = np.zeros_like(mask)
    nearly[15, 20] = 254  # less than one pixel of the object
    assert not np.any(list(system.turns(variables, image, nearly)))
    nearly[15, 20] = 255
    assert np.any(list(system.turns(variables, image, nearly)))
    full = list(system.turns(variables, image, np.full_like(mask, 255)))
    wanted = list(plain_turns(system, variables, image, np.full_like(mask, 255)))
    np.testing.assert_allclose(full, wanted, atol=1e-5)


def test_progress_is_steady_and_complete(tiny):
    system, variables = tiny
    for mask in (draw((30, 40))[1], np.zeros((30, 40), np.uint8)):
        done, totals = [], []

        def told(now, total, done=done, totals=totals):
            done.append(now)
            totals.append(total)

        list(system.turns(variables, draw((30, 40))[0], mask, progress=told))
        assert list(done) == sorted(done) and done[-1] == totals[0] and len(set(totals)) == 1


def test_too_little_memory_is_an_error(tiny):
    system, variables = tiny
    with pytest.raises(SegjaxError, match="max-memory"):
        list(system.turns(variables, *draw((300, 300)), max_memory=2**20))


@pytest.mark.parametrize("system", [crm.build(**TINY), crm.build()], ids=["tiny", "resnet50"])
@pytest.mark.parametrize("size", [(400, 600), (1024, 512)], ids=str)
def test_a_window_needs_no_more_memory_than_it_may(system, size):
    """The compiled program's own account, for the largest window that a bound allows."""
    if system.module.backbone.width == 64 and size[0] != 400:
        pytest.skip("one of the large one is enough")
    bound = 2**30
    axes = [crm_windows.Axis(n, n) for n in size]
    reach = crm_windows.reaches(system.module.backbone)
    pixels = crm_windows.affordable(system.module, size, bound)
    plan = crm_windows.plan(axes, [(0, n) for n in size], pixels, reach)
    (down, across), *_ = plan.windows
    variables = jax.eval_shape(lambda: system.init(jax.random.key(0), {}))
    memory = (
        crm_windows.projected.lower(
            system.module,
            variables,
            jax.ShapeDtypeStruct((1, *plan.sides, 4), jnp.float32),
            crm_windows.rows_of(axes[0], down, plan.sides[0], plan.fine),
            crm_windows.columns_of(axes[1], across, plan.sides[1]),
        )
        .compile()
        .memory_analysis()
    )
    share = plan.sides[0] * plan.sides[1] / pixels
    needs = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert needs <= min(share, 1.0) * bound + crm_windows.PROGRAMS


# --------------------------------------------------------------------------------------------------
# Asking near the boundary alone


def test_a_band_over_everything_is_the_whole(large):
    image, mask, whole = large
    system = crm.build(**TINY, scales=SCALES, query="band", band=10_000)
    variables = scattered(jax.jit(lambda: system.init(jax.random.key(0), {}))())
    for ours, theirs in zip(system.turns(variables, image, mask), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_beyond_the_band_the_mask_stays(tiny, large):
    image, mask, _ = large
    _, variables = tiny
    system = crm.build(**TINY, scales=(1.0,), query="band", band=5)
    (found,) = system.turns(variables, image, mask)
    (every,) = crm.build(**TINY, scales=(1.0,)).turns(variables, image, mask)
    padded = np.pad(mask, 8, mode="reflect").astype(np.float32) / 127.5 - 1
    near = crm.near_boundary(padded, 5)[8:-8, 8:-8]
    assert 0.02 < near.mean() < 0.5
    np.testing.assert_allclose(found[near], every[near], atol=1e-5)
    np.testing.assert_array_equal(found[~near], (mask / 255)[~near])


def test_near_the_boundary_are_the_unsure_too():
    mask = np.full((20, 30), -1, np.float32)
    mask[:, 20:] = 1
    mask[3, 4] = -0.5
    found = crm.near_boundary(mask, 2)
    wanted = np.zeros_like(found)
    wanted[:, 18:22] = True
    wanted[3, 4] = True
    np.testing.assert_array_equal(found, wanted)


# --------------------------------------------------------------------------------------------------
# The network and its training


def small_batch(size=(24, 32)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size, 3), np.uint8)
    masks = np.stack([draw(size)[1]] * 2)
    return {"image": images, "coarse_mask": masks, "mask": np.roll(masks, 2, axis=2)}


@pytest.mark.parametrize("cam", [True, False])
@pytest.mark.parametrize("position", [True, False])
def test_every_form_trains(cam, position):
    system = crm.build(**TINY, cam=cam, implicit=position)
    batch = jax.tree.map(jnp.asarray, small_batch())
    variables = jax.jit(system.init)(jax.random.key(0), batch)

    @jax.jit
    def step(params):
        def total(params):
            return system.loss({**variables, "params": params}, batch, jax.random.key(1))

        return jax.value_and_grad(total, has_aux=True)(params)

    (value, (scalars, mutated)), slope = step(variables["params"])
    chex.assert_tree_all_finite((value, scalars, slope))
    weights = (("ce", 1.0), ("l1", 0.5), ("l2", 0.5), ("gradient", 2.0))
    np.testing.assert_allclose(value, sum(w * scalars[f"loss_{n}"] for n, w in weights), rtol=1e-5)
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slope)
        if not np.any(leaf)
    ]
    assert not [name for name in silent if "implicit" in name or "alignment" in name]
    chex.assert_trees_all_equal_shapes(mutated["batch_stats"], variables["batch_stats"])
    (turn,) = crm.build(**TINY, cam=cam, implicit=position, scales=(0.5,)).turns(
        variables, *draw((30, 40))
    )
    assert turn.shape == (30, 40)


def test_prediction_is_one_pass_at_the_images_resolution(tiny):
    system, variables = tiny
    batch = small_batch()
    said = jax.jit(system.predict)(variables, jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(said.probability, jax.nn.sigmoid(said.logits), rtol=1e-6)
    alone = crm.build(**{**TINY, "pad": 0}, scales=(1.0,))
    (turn,) = alone.turns(variables, batch["image"][1], batch["coarse_mask"][1])
    np.testing.assert_allclose(said.probability[1], turn, atol=1e-5)


def test_flipping_flips_the_result_of_a_symmetric_network(tiny):
    """Kernels made symmetric, and no positions; sizes whose strides fit both ways."""
    system = crm.build(**TINY, implicit=False, scales=(1.0,))
    variables = jax.jit(lambda: system.init(jax.random.key(0), {}))()
    symmetric = jax.tree.map(
        lambda x: (x + x[:, ::-1]) / 2 if x.ndim == 4 else x, variables["params"]
    )
    variables = {**variables, "params": symmetric}
    image, mask = draw((17, 25))  # 33 x 41 with its border: one more than a multiple of 8
    (there,) = system.turns(variables, image, mask)
    (back,) = system.turns(variables, image[:, ::-1], mask[:, ::-1])
    np.testing.assert_allclose(back[:, ::-1], there, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# Files and values


def test_the_file_of_the_authors_has_the_counted_parameters():
    system = crm.build()
    variables = jax.eval_shape(lambda: system.init(jax.random.key(0), {}))

    def count(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    params = variables["params"]
    assert count(params) == 9_300_961
    parts = {name: count(tree) for name, tree in params.items()}
    assert parts == {"backbone": 8_546_432, "alignment": 742_912, "implicit": 11_617}


def test_a_file_with_the_unused_stage_loads_and_comes_back(tiny):
    _, variables = tiny
    tensors = importers.to_published("crm", variables)
    file = {f"module.{name}": x for name, x in tensors.items()}
    file["module.feats.layer4.0.conv1.weight"] = np.zeros((3, 3, 1, 1), np.float32)
    file["module.feats.bn1.num_batches_tracked"] = np.zeros((), np.int64)
    chex.assert_trees_all_equal(importers.to_variables("crm", file, variables), variables)
    assert tensors["feats.conv1.weight"].shape == (4, 4, 7, 7)
    assert tensors["imnet.layers.0.weight"].shape == (8, 14)


def test_an_imagenet_file_starts_the_backbone_and_the_mask_at_zero(tiny, tmp_path):
    system, variables = tiny
    import safetensors.numpy

    tensors = importers.to_published("crm", variables)
    file = {
        name.removeprefix("feats."): np.ascontiguousarray(x)
        for name, x in tensors.items()
        if name.startswith("feats.")
    }
    file["conv1.weight"] = np.ascontiguousarray(file["conv1.weight"][:, :3])
    file["layer4.0.conv1.weight"] = np.zeros((3, 3, 1, 1), np.float32)
    file["fc.weight"] = np.zeros((2, 2), np.float32)
    safetensors.numpy.save_file(file, tmp_path / "resnet.safetensors")
    fresh = jax.jit(lambda: system.init(jax.random.key(1), {}))()
    started = importers.initialise("resnet", tmp_path / "resnet.safetensors", fresh)
    kernel = started["params"]["backbone"]["stem_conv"]["kernel"]
    assert not np.any(kernel[:, :, 3]) and np.any(kernel[:, :, :3])
    chex.assert_trees_all_equal(started["params"]["implicit"], fresh["params"]["implicit"])
    chex.assert_trees_all_equal(
        started["batch_stats"]["backbone"], variables["batch_stats"]["backbone"]
    )


@pytest.mark.parametrize(
    "fields, part",
    [
        (dict(query="some"), "query"),
        (dict(scales=()), "scales"),
        (dict(scales=(0.5, 1.5)), "scales"),
        (dict(band=0), "band"),
        (dict(layers=1), "layers"),
        (dict(backbone="vgg"), "vgg"),
    ],
)
def test_a_wrong_value_is_named(fields, part):
    with pytest.raises(SegjaxError, match=part):
        crm.build(**{**TINY, **fields})
