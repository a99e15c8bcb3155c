"""Mask2Former and MaskFormer: sizes, invariances, targets and training steps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.ndimage import map_coordinates
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError
from segjax.losses import set_prediction as sets
from segjax.ops import matching, sampling
from segjax.systems import mask2former, maskformer

SWIN = dict(width=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4)
RESNET = dict(width=8, depths=(1, 1, 1, 1))
SMALL = dict(classes=5, queries=6, layers=2, features=32, hidden=32)


@functools.cache
def system(family="mask2former", **fields):
    if family == "mask2former":
        more = dict(encoder_layers=1, encoder_hidden=32, points=32)
        build = mask2former.build
    else:
        more, build = dict(dropout=0.0), maskformer.build
    backbone = dict(fields.pop("backbone", tuple(SWIN.items())))
    return build(backbone=backbone, drop_path=0.0, **(SMALL | more | fields))


def batch(count=(2, 0), room=3, size=(64, 64), seed=0):
    """Images with `count` targets each, in a table with `room` for more."""
    rng = np.random.default_rng(seed)
    images = len(count)
    segments = np.full((images, *size), -1, np.int16)
    classes = np.full((images, room), -1, np.int32)
    for i, targets in enumerate(count):
        if targets:
            blocks = rng.integers(-1, targets, (4, 4))
            segments[i] = np.kron(blocks, np.ones((size[0] // 4, size[1] // 4))).astype(np.int16)
            classes[i, :targets] = rng.integers(0, 5, targets)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (images, *size, 3)).astype(np.uint8)),
        "segments": jnp.asarray(segments),
        "segment_class": jnp.asarray(classes),
        "segment_is_crowd": jnp.zeros(classes.shape, bool),
    }


@functools.cache
def variables(one):
    return jax.jit(one.init)(jax.random.key(0), batch())


@functools.cache
def loss_and_slopes(one):
    def loss(params, rest, batch, rng):
        return one.loss({"params": params, **rest}, batch, rng)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def losses(one, data, seed=1):
    found = dict(variables(one))
    (value, (scalars, _)), slopes = loss_and_slopes(one)(
        found.pop("params"), found, data, jax.random.key(seed)
    )
    return value, scalars, slopes


@pytest.mark.parametrize(
    ("build", "fields", "count"),
    [
        (mask2former.build, dict(classes=133), 43_983_878),
        (
            mask2former.build,
            dict(classes=150, backbone="resnet101", backbone_norm="batch_norm"),
            63_033_495,
        ),
        (mask2former.build, dict(classes=133, backbone="swin_t"), 47_435_264),
        (mask2former.build, dict(classes=133, backbone="swin_l", queries=200), 215_535_610),
        (maskformer.build, dict(classes=133, encoder_layers=6), 45_012_038),
        (maskformer.build, dict(classes=150, backbone="resnet101c"), 60_318_039),
        (maskformer.build, dict(classes=133, backbone="swin_b"), 101_825_022),
    ],
)
def test_trainable_parameters_are_those_of_the_official_models(build, fields, count):
    image = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)}
    shapes = jax.eval_shape(build(**fields).init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_permuting_queries_permutes_the_answer(family):
    one = system(family)
    order = np.array([3, 1, 5, 0, 4, 2])
    found = variables(one)
    params = dict(found["params"])
    names = [name for name in params["predictor"] if name in ("query_feat", "query_embed")]
    moved = {name: params["predictor"][name][order] for name in names}
    params["predictor"] = {**params["predictor"], **moved}
    predict = jax.jit(one.predict)
    plain = predict(found, batch())
    permuted = predict({**found, "params": params}, batch())
    chex.assert_trees_all_close(permuted.class_logits, plain.class_logits[:, order], atol=2e-5)
    chex.assert_trees_all_close(permuted.mask_logits, plain.mask_logits[..., order], atol=2e-4)


def test_permuting_targets_leaves_maskformers_loss():
    one, data = system("maskformer"), batch(count=(3, 2))
    order = np.array([2, 0, 1])
    back = np.argsort(order)
    segments = jnp.where(data["segments"][:1] >= 0, back[data["segments"][:1]], -1)
    moved = data | {
        "segments": data["segments"].at[:1].set(segments.astype(jnp.int16)),
        "segment_class": data["segment_class"].at[0].set(data["segment_class"][0, order]),
    }
    chex.assert_trees_all_close(losses(one, data)[0], losses(one, moved)[0], rtol=1e-5)


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_more_room_for_targets_changes_nothing(family):
    """Also where the room is another number of Mask2Former's blocks."""
    one = system(family)
    tight, roomy = batch(count=(2, 1), room=2), batch(count=(2, 1), room=2 * mask2former.BLOCK + 1)
    chex.assert_trees_all_close(losses(one, tight)[0], losses(one, roomy)[0], rtol=1e-5)


@pytest.mark.parametrize("points", [0, 32])
def test_the_slope_made_beside_the_loss_is_its_gradient(points):
    """Of a form that compares all targets at once and leaves the rest to `jax.grad`."""
    count, block = 11, mask2former.BLOCK
    data = batch(count=(count, 3), room=2 * block + 1)
    targets = sets.targets_of(data)
    settings = mask2former.LossSettings(points=points)
    keys = jax.random.split(jax.random.key(0), 3)
    logits = jax.random.normal(keys[0], (2, 12, 6))
    masks = jax.random.normal(keys[1], (2, 16, 16, 12))
    drawn = mask2former.draw_points(keys[2], 2, settings) if points else None

    def ours(logits, masks):
        return mask2former.prediction_loss(logits, masks, targets, drawn, settings)[0]

    def plain(logits, masks):
        where = drawn or mask2former.everywhere(masks)
        costs = mask2former.matching_costs(logits, masks, targets, where.match)
        found = matching.match(sum(w * c for w, c in zip(settings.weights, costs)), targets.count)
        pairs = sets.Pairs(found.query_of_target, found.target_of_query)
        own = (jnp.concatenate(part, axis=1)[:, :count] for part in zip(where.own(0), where.own(1)))
        chosen = sets.paired_masks(masks, pairs)[:, :count]
        places = mask2former.loss_points(chosen, *own, where.match.shape[1])
        x, y = places[..., 0] * 16 - 0.5, places[..., 1] * 16 - 0.5
        read = jax.vmap(jax.vmap(lambda m, y, x: map_coordinates(m, (y, x), 1)))
        said = read(chosen, y, x)
        truth = sampling.sample_own_membership(targets.segments, targets.index[:, :count], places)
        real = jnp.arange(count) < targets.count[:, None]
        mask = jnp.where(real, sets.cross_entropy(said, truth), 0).sum() / (count + 3)
        dice = jnp.where(real, sets.dice(said, truth), 0).sum() / (count + 3)
        ce = sets.class_loss(logits, sets.target_classes(targets, pairs))
        return 2 * ce + 5 * mask + 5 * dice

    one, other = (jax.jit(jax.value_and_grad(f, (0, 1)))(logits, masks) for f in (ours, plain))
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_images_without_targets_train(family):
    value, scalars, slopes = losses(system(family), batch(count=(0, 0)))
    assert np.isfinite(value)
    assert scalars["targets"] == 0 and scalars["loss_mask"] == 0
    chex.assert_tree_all_finite(slopes)


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_more_targets_than_queries_train(family):
    value, scalars, slopes = losses(system(family), batch(count=(8, 7), room=9))
    assert np.isfinite(value) and scalars["targets"] == 7.5
    chex.assert_tree_all_finite(slopes)


def test_crowds_are_no_targets():
    data = batch(count=(3, 2))
    data["segment_is_crowd"] = data["segment_is_crowd"].at[0, 0].set(True)
    targets = sets.targets_of(data)
    assert targets.count.tolist() == [2, 2]
    assert targets.index[0].tolist() == [1, 2, 0]
    assert targets.classes[0, 2] == -1


@pytest.mark.parametrize("norm", ["frozen_bn", "batch_norm"])
def test_slices_of_the_batch_give_the_same_loss_and_gradient(norm):
    one = system("maskformer", backbone=tuple(RESNET.items()), backbone_norm=norm)
    data = batch(count=(2, 1, 3, 0))
    found = variables(one)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, slices):
        def loss(params):
            all_ = {**found, "params": params}
            return one.loss(all_, data, jax.random.key(3), slices)[0]

        return jax.value_and_grad(loss)(params)

    whole, sliced = run(found["params"], 1), run(found["params"], 2)
    chex.assert_trees_all_close(whole[0], sliced[0], rtol=1e-5)
    chex.assert_trees_all_close(whole[1], sliced[1], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_a_sharded_batch_has_the_loss_of_one_device(family):
    """Images with 0 to 3 targets on eight devices: the normalisers are global."""
    one, data = system(family), batch(count=(2, 0, 1, 3, 1, 0, 2, 1))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        for name, x in data.items()
    }
    alone, shared = losses(one, data), losses(one, split)
    assert len(split["image"].sharding.device_set) == 8
    np.testing.assert_allclose(shared[0], alone[0], rtol=1e-5)
    norms = [float(optax.global_norm(found[2])) for found in (shared, alone)]
    np.testing.assert_allclose(*norms, rtol=1e-3)


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_logits_that_are_no_numbers_are_counted_and_do_not_hang_the_matching(family):
    one = system(family)
    found = jax.tree.map(lambda x: x, dict(variables(one)))
    embed = found["params"]["predictor"]["class_embed"]
    embed["bias"] = jnp.full_like(embed["bias"], jnp.nan)
    rest = {name: tree for name, tree in found.items() if name != "params"}
    (value, (scalars, _)), _ = loss_and_slopes(one)(
        found["params"], rest, batch(), jax.random.key(1)
    )
    assert scalars["bad_costs"] > 0 and not np.isfinite(value)


def test_frozen_batch_norm_is_no_parameter():
    found = variables(system("maskformer", backbone=tuple(RESNET.items())))
    assert set(found) == {"params", "constants"}
    paths = jax.tree_util.tree_leaves_with_path(found["params"]["backbone"])
    assert not any("norm" in jax.tree_util.keystr(path) for path, _ in paths)


def test_a_query_that_may_look_nowhere_looks_everywhere():
    masks = jnp.full((1, 8, 8, 2), -1.0).at[..., 1].set(1.0)
    forbidden = mask2former.attention_mask(masks, (2, 2))
    assert forbidden[0, 0].all() and not forbidden[0, 1].any()


@pytest.mark.parametrize("predictor", ["per_pixel", "per_pixel_plus"])
def test_per_pixel_baselines_label_every_pixel(predictor):
    one = system("maskformer", predictor=predictor)
    data = batch() | {"semantic": jnp.zeros((2, 64, 64), jnp.int16)}
    said = jax.jit(one.predict)(variables(one), data)
    chex.assert_shape(said.labels, (2, 64, 64))
    assert np.isfinite(losses(one, data)[0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(backbone="resnet18"), "not a known backbone"),
        (dict(backbone_norm="sync"), "backbone_norm"),
        (dict(backbone=dict(width=8, depths=(1,) * 4, heads=(3, 1, 1, 1), window=4)), "heads"),
    ],
)
def test_values_that_do_not_fit_are_named(fields, said):
    with pytest.raises(SegjaxError, match=said):
        mask2former.build(classes=5, **fields)
