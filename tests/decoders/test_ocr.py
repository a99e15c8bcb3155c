"""Object-contextual representations against plain loops, and their properties."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.decoders.ocr import ObjectAttention, OCRHead, object_representations


@pytest.fixture(scope="module")
def pixels():
    """A map [B, H, W, C] and coarse scores [B, H, W, K]."""
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(2, 3, 5, 4)).astype(np.float32),
        rng.normal(size=(2, 3, 5, 3)).astype(np.float32),
    )


def random_variables(module, *inputs):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.9, x.shape).astype(np.float32), shapes)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_an_object_is_the_mean_of_its_pixels_weighted_by_its_scores(pixels):
    x, coarse = pixels
    wanted = np.zeros((2, 3, 4))
    for b in range(2):
        for k in range(3):
            share = softmax(coarse[b, :, :, k].astype(np.float64))
            for i, j in np.ndindex(3, 5):
                wanted[b, k] += share[i, j] * x[b, i, j]
    np.testing.assert_allclose(object_representations(x, coarse), wanted, rtol=1e-5, atol=1e-6)


def test_a_class_that_is_sure_everywhere_or_nowhere_is_the_plain_mean(pixels):
    """The softmax is over pixels: what a class adds to all its scores cancels."""
    x, coarse = pixels
    chex.assert_trees_all_close(
        object_representations(x, coarse + np.float32([5, -3, 0])),
        object_representations(x, coarse),
        rtol=1e-5,
        atol=1e-6,
    )
    flat = object_representations(x, np.full_like(coarse, 7.0))
    mean = np.broadcast_to(x.mean((1, 2))[:, None], (2, 3, 4))
    chex.assert_trees_all_close(flat, mean, rtol=1e-5, atol=1e-6)


def plain_attention(variables, x, objects, inner):
    """Loops over pixels and objects in float64."""

    def conv(name, vector):
        params, stats = (variables[c][name] for c in ("params", "batch_stats"))
        vector = vector @ np.float64(params["conv"]["kernel"][0, 0])
        norm = params["norm"], stats["norm"]
        vector = (vector - norm[1]["mean"]) / np.sqrt(norm[1]["var"] + 1e-5)
        return np.maximum(vector * norm[0]["scale"] + norm[0]["bias"], 0)

    result = np.zeros((*x.shape[:3], variables["params"]["out"]["conv"]["kernel"].shape[-1]))
    for b in range(len(x)):
        keys = [conv("key_1", conv("key_0", one)) for one in np.float64(objects[b])]
        values = [conv("value", one) for one in np.float64(objects[b])]
        for i, j in np.ndindex(*x.shape[1:3]):
            pixel = np.float64(x[b, i, j])
            query = conv("query_1", conv("query_0", pixel))
            share = softmax(np.array([query @ key for key in keys]) / np.sqrt(inner))
            context = conv("out", sum(s * value for s, value in zip(share, values)))
            result[b, i, j] = conv("bottleneck", np.concatenate([context, pixel]))
    return result


def test_attention_of_pixels_to_objects_is_the_plain_one(pixels):
    x, coarse = pixels
    objects = np.array(object_representations(x, coarse))
    module = ObjectAttention(features=6, key_features=5)
    variables = random_variables(module, x, objects, False)
    ours = module.apply(variables, x, objects, False)
    wanted = plain_attention(variables, x, objects, 5)
    assert np.ptp(wanted, axis=(1, 2)).max() > 0.01
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


def test_the_order_of_objects_does_not_matter(pixels):
    x, coarse = pixels
    objects = object_representations(x, coarse)
    module = ObjectAttention(features=6, key_features=5)
    variables = random_variables(module, x, objects, False)
    one, other = (module.apply(variables, x, o, False) for o in (objects, objects[:, ::-1]))
    chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)


def test_scores_and_objects_have_their_shapes(pixels):
    """Also where the coarse head has other classes."""
    x, coarse = pixels
    head = OCRHead(classes=7, features=6, key_features=5)
    variables = random_variables(head, x, coarse, False)
    assert set(variables) == {"params", "batch_stats"}
    scores, kept = head.apply(variables, x, coarse, False, mutable=["intermediates"])
    chex.assert_shape(scores, (2, 3, 5, 7))
    chex.assert_shape(kept["intermediates"]["objects"][0], (2, 3, 6))


def test_scores_are_float32_in_half_precision(pixels):
    x, coarse = pixels
    head = OCRHead(classes=3, features=6, key_features=5, dtype=jnp.bfloat16)
    scores, _ = head.init_with_output(jax.random.key(0), x.astype(jnp.bfloat16), coarse, False)
    assert scores.dtype == jnp.float32


def test_gradients_reach_the_map_the_coarse_scores_and_every_parameter(pixels):
    head = OCRHead(classes=3, features=6, key_features=5)
    variables = random_variables(head, *pixels, False)

    @jax.jit
    def slopes(params, x, coarse):
        def total(params, x, coarse):
            stats = {"batch_stats": variables["batch_stats"]}
            scores, _ = head.apply(
                {"params": params, **stats}, x, coarse, True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(scores))

        return jax.grad(total, argnums=(0, 1, 2))(params, x, coarse)

    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes(variables["params"], *pixels)):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), jax.tree_util.keystr(path)
