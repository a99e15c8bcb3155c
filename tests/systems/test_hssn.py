"""A class tree over a network: variables, losses, predictions."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.ops import hierarchy, resize
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE
from segjax.systems import hssn

TREE = Tree((5, 3, 2), ((0, 0, 1, 2, 2), (0, 1, 1)))
RESNET = dict(width=8, depths=(1, 1, 1, 1), deep_stem=True, stem_width=4, pool_shortcut=True)
DEEPLAB = dict(
    system="deeplab_v3plus",
    classes=5,
    backbone=RESNET,
    features=16,
    early_features=8,
    dilations=(1, 2, 3),
    auxiliary_features=8,
)
REGPROXY = dict(
    system="regproxy",
    classes=5,
    backbone=dict(width=32, depth=2, heads=2, patch=8),
    image_size=(32, 32),
    early_block=0,
)
MASKFORMER = dict(
    system="maskformer",
    classes=5,
    backbone=dict(width=16, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
    queries=6,
    layers=1,
    features=16,
    hidden=32,
)
NETWORKS = {"deeplab_v3plus": DEEPLAB, "regproxy": REGPROXY, "maskformer": MASKFORMER}


def small_batch(size=(32, 40), count=2):
    rng = np.random.default_rng(0)
    labels = rng.integers(IGNORE, 5, (count, *size))
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, *size, 3)), jnp.uint8),
        "semantic": jnp.asarray(np.repeat(np.repeat(labels[:, ::8, ::8], 8, 1), 8, 2), jnp.int16),
    }


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request):
    """(system, variables, batch, loss, scalars, mutated, gradient) of each network."""
    system = hssn.build(NETWORKS[request.param], TREE, ce_weight=0.5, triplet_ramp=10)
    batch = small_batch()
    variables = jax.jit(system.init)(jax.random.key(0), batch)

    @jax.jit
    def step(variables):
        def total(params):
            return system.loss({**variables, "params": params}, batch, jax.random.key(1))

        return jax.value_and_grad(total, has_aux=True)(variables["params"])

    (value, (scalars, mutated)), gradient = step(variables)
    return system, variables, batch, value, scalars, mutated, gradient


def test_every_network_trains_under_a_tree(trained):
    _, variables, _, value, scalars, _, gradient = trained
    chex.assert_tree_all_finite((value, scalars, gradient))
    assert float(value) > 0
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["projection"])
        if not np.asarray(leaf).any()
    ]
    # A bias before a batch norm has no effect.
    assert set(silent) <= {"['conv_0']['bias']"}
    chex.assert_trees_all_equal_shapes(gradient, variables["params"])


def test_the_total_is_the_weighted_sum_of_its_terms(trained):
    _, _, _, value, scalars, _, _ = trained
    wanted = scalars["loss_tree"] + scalars["triplet_weight"] * scalars["loss_triplet"]
    wanted += 0.5 * sum(scalars[f"loss_ce_{level}"] for level in (1, 2, 3))
    wanted += 0.4 * scalars.get("loss_aux_0", 0.0)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_training_counts_its_steps_and_prediction_does_not(trained):
    _, variables, _, _, scalars, mutated, _ = trained
    assert mutated["hierarchy"]["step"] == variables["hierarchy"]["step"] + 1 == 1
    np.testing.assert_allclose(
        scalars["triplet_weight"], 0.25 * (1 + np.cos(np.pi * (1 - 10) / 10)), rtol=1e-5
    )
    known = jax.tree.structure({k: v for k, v in variables.items() if k != "params"})
    new = {**{k: v for k, v in variables.items() if k != "params"}, **mutated}
    assert jax.tree.structure(new) == known


def test_labels_are_the_leaves_of_the_best_paths(trained):
    system, variables, batch, *_ = trained
    said = jax.jit(system.predict)(variables, batch)
    covers = said.covers or batch["image"].shape[1:3]
    chance = jax.nn.softmax(resize.bilinear(said.scores, covers), axis=-1)
    sums = sum(chance[..., TREE.paths[:, level]] for level in range(3))
    height, width = batch["image"].shape[1:3]
    wanted = np.asarray(sums.argmax(-1))[:, :height, :width]
    assert (np.asarray(said.labels) == wanted).mean() > 0.999
    assert said.labels.shape == (2, height, width) and said.scores.shape[-1] == TREE.nodes


def test_variables_are_the_networks_with_the_projection_beside():
    from segjax import systems

    system = hssn.build(DEEPLAB, TREE)
    made = jax.eval_shape(system.init, jax.random.key(0), small_batch())
    plain = systems.build({**DEEPLAB, "classes": 10, "auxiliary_classes": 5})
    network = jax.eval_shape(plain.init, jax.random.key(0), small_batch())
    assert made["params"].keys() == {*network["params"], "projection"}
    rest = {k: v for k, v in made["params"].items() if k != "projection"}
    chex.assert_trees_all_equal_shapes(rest, dict(network["params"]))


def test_without_triplets_there_is_no_projection():
    system = hssn.build(DEEPLAB, TREE, triplet_weight=0.0)
    made = jax.eval_shape(system.init, jax.random.key(0), small_batch())
    assert "projection" not in made["params"]


@pytest.mark.parametrize("name", ["ftm", "tm", "focal", "bce", "cce", "none"])
def test_every_tree_loss_is_its_definition(name):
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.standard_normal((2, 4, 5, 10)), jnp.float32)
    labels = jnp.asarray(rng.integers(IGNORE, 5, (2, 4, 5)))
    settings = hssn.Settings(tree_loss=name, triplet_weight=0.0, tree_weight=3.0)
    value, _, _ = hssn.loss(scores, None, labels, jnp.ones(()), TREE, settings)
    count = (labels != IGNORE).sum()
    leaf = -jax.nn.log_softmax(scores[..., :5])
    own = jnp.take_along_axis(leaf, labels.clip(0)[..., None].astype(int), -1)[..., 0]
    wanted = {
        "ftm": hierarchy.tree_min_loss(scores, labels, TREE, 2.0).value / count,
        "tm": hierarchy.tree_min_loss(scores, labels, TREE, 0.0).value / count,
        "focal": hierarchy.node_loss(scores, labels, TREE, 2.0).value / count,
        "bce": hierarchy.node_loss(scores, labels, TREE, 0.0).value / count,
        "cce": jnp.where(labels != IGNORE, own, 0.0).mean(),
        "none": 0.0,
    }[name]
    np.testing.assert_allclose(value, 3.0 * wanted, rtol=1e-5, atol=1e-6)


def test_ignored_pixels_contribute_nothing_unless_as_published():
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.standard_normal((1, 6, 8, 10)), jnp.float32)
    embedding = jnp.asarray(rng.standard_normal((1, 6, 8, 4)), jnp.float32)
    embedding /= jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    labels = jnp.asarray(rng.integers(0, 5, (1, 6, 8))).at[:, :3].set(IGNORE)

    def gradients(void):
        settings = hssn.Settings(ce_weight=1.0, rmi_weight=0.0, void=void)

        def total(scores, embedding):
            return hssn.loss(scores, embedding, labels, jnp.asarray(1e6), TREE, settings)[0]

        return jax.grad(total, argnums=(0, 1))(scores, embedding)

    for gradient in gradients("ignore"):
        assert not np.asarray(gradient)[:, :3].any() and np.asarray(gradient)[:, 3:].any()
    assert all(np.asarray(gradient)[:, :3].any() for gradient in gradients("as_published"))


def test_masks_score_no_child_less_when_levels_agree():
    """A query that is sure of a leaf and of its ancestors scores all of them where its mask is."""
    logits = np.full((1, 1, 11), -20.0, np.float32)
    logits[0, 0, TREE.paths[3]] = 20.0
    masks = np.where(np.arange(4) < 2, 20.0, -20.0).reshape(1, 1, 4, 1)
    chance = jax.nn.sigmoid(hssn.mask_scores(logits, masks.astype(np.float32), TREE))
    on = np.zeros(10, bool)
    on[TREE.paths[3]] = True
    np.testing.assert_allclose(chance[0, 0, 0], np.where(on, 1.0, 0.0), atol=1e-5)
    np.testing.assert_allclose(chance[0, 0, 3], np.zeros(10), atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(tree_loss="dice"), r"config\.hierarchy\.tree_loss: 'dice' is none of ftm"),
        (dict(scores="max"), r"config\.hierarchy\.scores"),
        (dict(void="skip"), r"config\.hierarchy\.void"),
        (dict(triplet_sampling="all"), r"config\.hierarchy\.triplet_sampling"),
        (dict(gamma=0.5), r"config\.hierarchy\.gamma"),
    ],
)
def test_values_that_do_not_fit_are_named(fields, message):
    with pytest.raises(SegjaxError, match=message):
        hssn.build(DEEPLAB, TREE, **fields)


def test_a_tree_of_other_classes_is_refused():
    with pytest.raises(SegjaxError, match=r"it has 5 leaves, but .* is 7"):
        hssn.build({**DEEPLAB, "classes": 7}, TREE)


def test_a_network_without_dense_scores_is_refused():
    mask2former = dict(system="mask2former", classes=5)
    with pytest.raises(SegjaxError, match="mask2former has no dense scores"):
        hssn.build(mask2former, TREE)


def test_triplets_need_two_levels():
    with pytest.raises(SegjaxError, match="triplets need two levels"):
        hssn.build(DEEPLAB, Tree((5,), ()))
