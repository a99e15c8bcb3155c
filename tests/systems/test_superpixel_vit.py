"""The pilot's superpixels: a plain loss, whole regions, and what the rest of segjax sees."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import systems
from segjax.errors import SegjaxError
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.ops import resize, superpixels
from segjax.structs import IGNORE
from segjax.systems import superpixel_vit
from segjax.systems.preprocess import normalised_image

METHODS = ["slic", "square"]
SMALL = dict(
    system="superpixel_vit",
    backbone=dict(width=32, depth=2, heads=2, patch=8),
    classes=4,
    image_size=(32, 32),
    drop_path=0.3,
    iterations=3,
)


@functools.cache
def scenes():
    """Two halves of different classes and colours in every image, some pixels unlabelled."""
    rng = np.random.default_rng(0)
    semantic = np.zeros((8, 32, 32), np.int16)
    for i, edge in enumerate(rng.integers(9, 24, 8)):
        semantic[i, :, :edge], semantic[i, :, edge:] = rng.choice(4, 2, replace=False)
    colours = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)])
    image = colours[semantic] + rng.integers(-30, 30, (8, 32, 32, 3))
    semantic[rng.random(semantic.shape) < 0.1] = IGNORE
    return {"image": jnp.asarray(image, jnp.uint8), "semantic": jnp.asarray(semantic)}


@pytest.fixture
def batch():
    return scenes()


@functools.cache
def trained(method):
    """A system, and variables with larger scores than at the start."""
    system = systems.build(SMALL | dict(regions=method))
    variables = jax.jit(system.init)(jax.random.key(0), {"image": scenes()["image"][:1]})
    rng = np.random.default_rng(0)
    return system, jax.tree.map(lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), variables)


@functools.cache
def value_and_gradient(slices):
    system, variables = trained("slic")

    def objective(params):
        return system.loss({"params": params}, scenes(), jax.random.key(7), slices)

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])


@functools.cache
def outputs(method):
    system, variables = trained(method)

    @jax.jit
    def run(variables, batch):
        return system.module.apply(variables, normalised_image(batch, system.mean, system.std))

    return run(variables, scenes())


@functools.cache
def prediction(method):
    system, variables = trained(method)
    return jax.jit(system.predict)(variables, scenes())


# --------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("over", ["all", "valid"])
def test_the_loss_is_the_soft_cross_entropy_of_regions_by_their_labelled_pixels(over, batch):
    found = outputs("slic")
    scores, regions = (np.asarray(x) for x in (found.region_scores, found.regions))
    labels = np.asarray(batch["semantic"])
    total, right = 0.0, 0
    for image, region in np.ndindex(scores.shape[:2]):
        mine = labels[image][regions[image] == region]
        mine = mine[mine != IGNORE]
        if len(mine):
            target = np.bincount(mine, minlength=4) / len(mine)
            score = np.float64(scores[image, region])
            log_probability = score - np.log(np.exp(score).sum())
            total += len(mine) * -(target * log_probability).sum()
            right += (mine == score.argmax()).sum()
    value, scalars = superpixel_vit.loss(found, batch["semantic"], over)
    count = labels.size if over == "all" else (labels != IGNORE).sum()
    np.testing.assert_allclose(value, total / count, rtol=1e-5)
    np.testing.assert_allclose(scalars["accuracy"], 100 * right / labels.size, rtol=1e-5)


@pytest.mark.parametrize("over", ["all", "valid"])
def test_the_loss_is_the_pixel_cross_entropy_of_the_painted_scores(over, batch):
    found = outputs("slic")
    painted = superpixels.paint_regions(found.region_scores, found.regions)
    wanted = pixel_cross_entropy(painted, batch["semantic"], over)
    ours = superpixel_vit.loss(found, batch["semantic"], over)
    chex.assert_trees_all_close(ours, wanted, rtol=1e-5)


def test_slices_of_the_batch_give_the_whole_batch_exactly():
    whole, sliced = (value_and_gradient(slices) for slices in (1, 2))
    chex.assert_trees_all_close(sliced, whole, rtol=1e-4, atol=1e-6)


def test_every_parameter_learns():
    _, gradient = value_and_gradient(1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("over", ["all", "valid"])
def test_a_batch_without_labels_has_no_loss_and_no_gradient(over, batch):
    found = outputs("slic")
    nothing = jnp.full_like(batch["semantic"], IGNORE)

    def objective(scores):
        return superpixel_vit.loss(found.replace(region_scores=scores), nothing, over)[0]

    value, gradient = jax.value_and_grad(objective)(found.region_scores)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_batch_over_eight_devices_has_the_same_loss(batch):
    system, variables = trained("slic")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    value, _ = jax.jit(system.loss)(everywhere, spread, jax.random.key(7))
    np.testing.assert_allclose(value, value_and_gradient(1)[0][0], rtol=1e-5)


def test_a_short_training_decreases_the_loss(batch):
    system = systems.build(SMALL | dict(regions="slic", drop_path=0.0, loss_over="valid"))
    params = jax.jit(system.init)(jax.random.key(0), batch)["params"]
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def objective(params):
            return system.loss({"params": params}, batch, jax.random.key(0))

        (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(25):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]


# --------------------------------------------------------------------------------------------------
# Regions and predictions


def test_square_regions_classify_the_mean_token_of_every_patch(batch):
    system, variables = trained("square")
    found = outputs("square")
    patches = np.arange(16).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(found.regions, np.broadcast_to(patches, (8, 32, 32)))

    @jax.jit
    def plain(params, batch):
        image = normalised_image(batch, system.mean, system.std)
        tokens = system.module.backbone.apply({"params": params["backbone"]}, image)["norm"]
        means = resize.bilinear(tokens, (32, 32)).reshape(8, 4, 8, 4, 8, -1).mean((2, 4))
        classifier = params["head"]["classifier"]
        return means @ classifier["kernel"] + classifier["bias"]

    scores = plain(variables["params"], batch).reshape(8, 16, 4)
    np.testing.assert_allclose(found.region_scores, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_constant_inside_regions_and_labels_their_argmax(method):
    semantic = prediction(method)
    chex.assert_shape(semantic.scores, (8, 32, 32, 4))
    np.testing.assert_array_equal(semantic.labels, semantic.scores.argmax(-1))
    scores, regions = np.asarray(semantic.scores), np.asarray(semantic.regions)
    np.testing.assert_array_equal(regions, outputs(method).regions)
    for image, region in np.ndindex(8, 16):
        mine = scores[image][regions[image] == region]
        assert (mine == mine[:1]).all()


def test_regions_are_those_of_the_grey_levels_whatever_form_the_image_has(batch):
    """SLIC sees uint8 values again after normalisation; beyond the image is mean colour."""
    system, _ = trained("slic")
    cut = jax.jit(system.module.cut.regions)
    slic = jax.jit(lambda image: superpixels.slic(image, (4, 4), iterations=3))
    whole = normalised_image(batch, system.mean, system.std)
    np.testing.assert_array_equal(cut(whole), slic(batch["image"]))
    half = batch | {"image_size": jnp.full((8, 2), 16)}
    filled = np.array(batch["image"])
    filled[:, 16:] = filled[:, :, 16:] = np.round(system.mean)
    seen = normalised_image(half, system.mean, system.std)
    np.testing.assert_array_equal(cut(seen), slic(filled))


@pytest.mark.parametrize("stride", [2, 4])
def test_coarse_scores_are_means_of_the_painted_ones(stride):
    """Also where the image is no multiple of the stride: its last pixels are repeated."""
    found = outputs("slic")
    found = found.replace(regions=found.regions[:, :31, :27])
    coarse = superpixel_vit.predict(found, stride)
    height, width = coarse.covers
    assert (height, width) == (32, 28)
    painted = superpixels.paint_regions(found.region_scores, found.regions)
    painted = jnp.pad(painted, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    blocks = painted.reshape(8, height // stride, stride, width // stride, stride, 4)
    np.testing.assert_allclose(coarse.scores, blocks.mean((2, 4)), rtol=1e-5, atol=1e-6)
    chex.assert_equal_shape_prefix((coarse.scores, coarse.regions), 3)
    full = np.asarray(resize.bilinear(coarse.scores, coarse.covers))[:, :31, :27]
    best = np.sort(full, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-4
    np.testing.assert_array_equal(coarse.labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.98


def test_coarse_labels_differ_at_edges_only():
    fine = prediction("slic")
    coarse = superpixel_vit.predict(outputs("slic"), 2)
    assert 0.9 < (coarse.labels == fine.labels).mean() <= 1.0


def test_an_image_of_broken_patches_has_a_region_for_every_token():
    system, variables = trained("slic")
    image = jax.random.normal(jax.random.key(0), (1, 27, 38, 3))
    semantic = jax.jit(system.predict)(variables, {"image": image})
    chex.assert_shape(semantic.labels, (1, 27, 38))
    assert semantic.regions.max() < 4 * 5


def test_the_side_of_a_region_is_free(batch):
    system = systems.build(SMALL | dict(regions="square", region_side=4))
    _, variables = trained("square")
    said = jax.eval_shape(system.module.apply, variables, jnp.zeros((1, 32, 32, 3)))
    chex.assert_shape(said.region_scores, (1, 64, 4))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(regions="slick"), r"config\.model\.regions: there are no 'slick'; take slic or"),
        (dict(region_side=0), r"config\.model\.region_side: it is 0; take 1 or more"),
        (dict(iterations=-1), r"config\.model\.iterations: it is -1; take 0 or more"),
        (dict(score_stride=9), r"config\.model\.score_stride: 9 is more than a region's 8 pixels"),
    ],
    ids=str,
)
def test_a_wrong_model_field_is_named(change, message):
    with pytest.raises(SegjaxError, match=message):
        systems.build(SMALL | change)
