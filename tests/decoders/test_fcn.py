"""The FCN head: its layers and its dropout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.backbones.layers import ConvNormRelu
from segjax.decoders.fcn import Classifier, FCNHead


def test_training_drops_whole_channels_of_single_images():
    """With the identity as its kernel the classifier shows what was dropped."""
    x = jnp.ones((8, 3, 5, 16))
    classifier = Classifier(16, dropout=0.25)
    params = {"conv": {"kernel": jnp.eye(16)[None, None], "bias": jnp.zeros(16)}}
    y = classifier.apply({"params": params}, x, True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1, :1], y.shape))
    values = np.asarray(y[:, 0, 0])
    np.testing.assert_allclose(values[values > 0], 1 / 0.75, rtol=1e-6)
    assert 0.1 < (values == 0).mean() < 0.4
    assert len(np.unique(values, axis=0)) > 1  # each image draws for itself
    chex.assert_trees_all_equal(classifier.apply({"params": params}, x, False), x)


def test_the_head_is_its_convolutions_and_its_classifier():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 5))
    head = FCNHead(3, features=7, convs=2, kernel_size=3)
    variables = head.init(jax.random.key(1), x, False)
    assert set(variables["params"]) == {"conv_0", "conv_1", "classifier"}
    y = x
    for name in ("conv_0", "conv_1"):
        layer = {collection: tree[name] for collection, tree in variables.items()}
        y = ConvNormRelu(7, 3).apply(layer, y, False)
    kernel = variables["params"]["classifier"]["conv"]["kernel"][0, 0]
    chex.assert_trees_all_close(head.apply(variables, x, False), y @ kernel, rtol=1e-5, atol=1e-6)


def test_a_head_without_convolutions_is_a_classifier_without_statistics():
    x = jnp.ones((1, 2, 2, 5))
    variables = FCNHead(3, convs=0).init(jax.random.key(0), x, False)
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"classifier"}


def test_scores_are_float32_in_half_precision():
    x = jnp.ones((1, 2, 2, 5), jnp.bfloat16)
    head = FCNHead(3, features=4, dtype=jnp.bfloat16)
    scores, _ = head.init_with_output(jax.random.key(0), x, False)
    assert scores.dtype == jnp.float32
