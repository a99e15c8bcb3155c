"""The projection to an embedding: length one, and finite gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.decoders.projection import Projection


def test_every_position_has_length_one():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    module = Projection(features=6, out=7)
    embedding, _ = module.init_with_output(jax.random.key(1), x, False)
    chex.assert_shape(embedding, (2, 3, 5, 7))
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1.0, rtol=1e-5)


def test_the_official_number_of_parameters():
    x = jax.ShapeDtypeStruct((1, 2, 2, 2048), np.float32)
    init = lambda x: Projection().init(jax.random.key(0), x, False)  # noqa: E731
    params = jax.eval_shape(init, x)["params"]
    assert set(params) == {"conv_0", "norm", "conv_1"}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_724_992


def test_an_embedding_of_nothing_is_zero_and_has_finite_gradients():
    """torch's `normalize` divides by at least 1e-12."""
    module = Projection(features=6, out=7)
    x = jnp.zeros((1, 1, 2, 4))
    variables = module.init(jax.random.key(0), x, False)
    value, slopes = jax.value_and_grad(lambda x: module.apply(variables, x, False).sum())(x)
    assert value == 0
    assert jnp.all(jnp.isfinite(slopes))


def test_embeddings_are_float32_in_half_precision():
    x = jnp.ones((1, 2, 2, 4), jnp.bfloat16)
    module = Projection(features=6, out=7, dtype=jnp.bfloat16)
    embedding, _ = module.init_with_output(jax.random.key(0), x, False)
    assert embedding.dtype == jnp.float32
