"""SETR as the rest of segjax sees it, and its heads in the form the paper writes them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import systems
from segjax.errors import SegjaxError
from segjax.ops import resize
from segjax.structs import IGNORE
from segjax.systems import setr

DECODERS = ["naive", "pup", "mla"]
SMALL = dict(
    system="setr",
    backbone=dict(width=32, depth=4, heads=2, patch=16),
    classes=5,
    image_size=(64, 64),
    levels=(0, 1, 2, 3),
    features=8,
    drop_path=0.5,
)


@functools.cache
def scenes():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (4, 64, 64, 3)).astype(np.uint8),
        "semantic": rng.integers(IGNORE, 5, (4, 64, 64)).astype(np.int16),
    }


@pytest.fixture
def batch():
    return scenes()


@functools.cache
def trained(decoder):
    """A system and variables that are no longer symmetric."""
    system = systems.build(SMALL | dict(decoder=decoder))
    image = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    variables = jax.jit(system.init)(jax.random.key(0), {"image": image})
    rng = np.random.default_rng(0)
    return system, jax.tree.map(lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), variables)


def predict(decoder, batch, variables=None):
    system, usual = trained(decoder)
    return jax.jit(system.predict)(variables or usual, batch)


@functools.cache
def value_and_gradient(decoder, slices):
    system, variables = trained(decoder)

    def objective(params):
        return system.loss(variables | {"params": params}, scenes(), jax.random.key(7), slices)

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])


# --------------------------------------------------------------------------------------------------
# The heads as the paper writes them: features are enlarged, then classified


def layer_norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def conv_norm_relu(p, x):
    """At initialisation the running statistics are 0 and 1."""
    kernel = p["conv"]["kernel"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    return jax.nn.relu(x / jnp.sqrt(1 + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"])


def classify(p, x):
    return x @ p["classifier"]["conv"]["kernel"][0, 0] + p["classifier"]["conv"]["bias"]


@pytest.mark.parametrize("convs, kernel_size, factor", [(1, 1, 4), (4, 3, 2), (2, 3, 4)])
def test_scores_of_naive_and_pup_are_those_of_enlarged_features(convs, kernel_size, factor):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 6))
    head = setr.UpHead(7, 8, convs, kernel_size, factor)
    variables = jax.jit(head.init, static_argnums=2)(jax.random.key(1), x, False)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: np.float32(p + 0.3 * rng.normal(size=p.shape)), variables["params"]
    )
    wanted = layer_norm(params["norm"], x)
    for i in range(convs):
        wanted = setr.enlarged(conv_norm_relu(params[f"conv_{i}_0"], wanted), factor)
    wanted = classify(params, wanted)
    ours = setr.enlarged(head.apply(variables | {"params": params}, x, False), factor)
    chex.assert_shape(ours, (2, 3 * factor**convs, 5 * factor**convs, 7))
    chex.assert_trees_all_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_scores_of_mla_are_those_of_enlarged_features():
    maps = [jax.random.normal(jax.random.key(i), (2, 3, 5, 6)) for i in range(3)]
    head = setr.MLAHead(7, 4)
    variables = head.init(jax.random.key(1), maps, False)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: np.float32(p + 0.3 * rng.normal(size=p.shape)), variables["params"]
    )
    wanted = []
    for i, x in enumerate(maps):
        for j in range(2):
            x = conv_norm_relu(params[f"conv_{i}_{j}"], x)
        wanted.append(setr.enlarged(x, 4))
    wanted = classify(params, jnp.concatenate(wanted, axis=-1))
    ours = setr.enlarged(head.apply(variables | {"params": params}, maps, False), 4)
    chex.assert_trees_all_close(ours, wanted, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# The system


@pytest.mark.parametrize("decoder", DECODERS)
def test_slices_of_the_batch_give_the_whole_batch_exactly(decoder):
    whole, sliced = (value_and_gradient(decoder, slices) for slices in (1, 2))
    chex.assert_trees_all_close(sliced, whole, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_loss_is_that_of_all_heads(decoder):
    (value, (scalars, _)), gradient = value_and_gradient(decoder, 1)
    heads = {"naive": 3, "pup": 3, "mla": 4}[decoder]
    names = {"accuracy", "loss_main", *(f"loss_aux_{i}" for i in range(heads))}
    assert set(scalars) == names
    auxiliary = sum(scalars[f"loss_aux_{i}"] for i in range(heads))
    np.testing.assert_allclose(value, scalars["loss_main"] + 0.4 * auxiliary, rtol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        unused = decoder == "mla" and name == "backbone/cls_token"
        assert jnp.all(jnp.isfinite(leaf)), name
        assert jnp.any(leaf != 0) != unused, name


@pytest.mark.parametrize("decoder", DECODERS)
def test_labels_are_the_argmax_of_the_resized_scores(decoder, batch):
    semantic = predict(decoder, batch)
    full = resize.bilinear(semantic.scores, (64, 64))
    first, second = np.sort(full, axis=-1)[..., -1], np.sort(full, axis=-1)[..., -2]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(semantic.labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.98


@pytest.mark.parametrize("decoder, side", [("naive", 16), ("pup", 32), ("mla", 16)])
def test_no_scores_of_full_resolution_are_made(decoder, side, batch):
    """PUP's last doubling and the auxiliary heads' last enlargement give the image's own size."""
    system, variables = trained(decoder)
    assert jax.eval_shape(system.predict, variables, batch).scores.shape == (4, side, side, 5)
    image = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    apply = functools.partial(system.module.apply, train=True, mutable=["batch_stats"])
    outputs, _ = jax.eval_shape(apply, variables, image)
    sides = {x.shape[1] for x in outputs.auxiliary}
    assert sides == ({4} if decoder == "mla" else {16})


def test_an_image_of_broken_patches_is_scored_on_whole_ones():
    """As officially: scores of the filled-up image, squeezed to the image."""
    batch = {"image": jax.random.normal(jax.random.key(0), (1, 60, 41, 3))}
    semantic = predict("pup", batch)
    chex.assert_shape(semantic.scores, (1, 64, 48, 5))
    chex.assert_shape(semantic.labels, (1, 60, 41))


@pytest.mark.parametrize("decoder", DECODERS)
def test_evaluation_runs_no_auxiliary_head(decoder, batch):
    system, variables = trained(decoder)
    image = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(system.module.apply, variables, image).auxiliary == ()
    without = {
        collection: {k: v for k, v in tree.items() if not k.startswith("auxiliary")}
        for collection, tree in variables.items()
    }
    chex.assert_trees_all_equal(predict(decoder, batch, without), predict(decoder, batch))


@pytest.mark.parametrize("decoder", DECODERS)
def test_only_mla_drops_the_class_token(decoder, batch):
    _, variables = trained(decoder)
    other = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 3.0 if "cls_token" in jax.tree_util.keystr(path) else x, variables
    )
    scores, moved = (predict(decoder, batch, v).scores for v in (variables, other))
    assert bool(jnp.all(scores == moved)) == (decoder == "mla")


def test_the_neck_gives_the_deepest_level_first_and_sums_down_to_the_shallowest():
    levels = [jax.random.normal(jax.random.key(i), (1, 3, 4, 6)) for i in range(3)]
    neck = setr.MLANeck(5)
    variables = neck.init(jax.random.key(9), levels, False)
    outs = neck.apply(variables, levels, False)
    changed = neck.apply(variables, [levels[0] + 1.0, levels[1] * 2.0, levels[2]], False)
    same = [bool(jnp.all(a == b)) for a, b in zip(outs, changed)]
    assert same == [True, False, False]


def test_half_precision_loss_is_close(batch):
    system, variables = trained("pup")
    rough = systems.build(SMALL | dict(decoder="pup", dtype="bfloat16"))
    exact, value = (
        jax.jit(one.loss)(variables, batch, jax.random.key(0))[0] for one in (system, rough)
    )
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-2)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(decoder="pub"), r"config\.model\.decoder: there is no 'pub'; take naive, pup or mla"),
        (dict(levels=(0, 1, 2, 4)), r"config\.model\.levels: .* of the 4 blocks"),
        (dict(levels=(1, 0, 2, 3)), "not rising numbers"),
        (dict(levels=None), r"levels: \(9, 14, 19, 23\)"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_model_field_is_named(change, message):
    with pytest.raises(SegjaxError, match=message):
        systems.build(SMALL | dict(decoder="naive") | change)
