"""Pyramid pooling: what stands beside the map."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.backbones.layers import ConvNormRelu
from segjax.decoders.psp import PyramidPooling
from segjax.ops import pooling, resize


def test_the_map_comes_first_and_then_each_grid():
    x = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))
    module = PyramidPooling(4, sizes=(1, 2, 6))
    variables = module.init(jax.random.key(1), x, False)
    y = module.apply(variables, x, False)
    chex.assert_shape(y, (2, 7, 5, 3 + 3 * 4))
    chex.assert_trees_all_equal(y[..., :3], x)
    for i, size in enumerate((1, 2, 6)):
        grid = pooling.adaptive_average(x, (size, size))
        layer = {collection: tree[f"grid_{i}"] for collection, tree in variables.items()}
        grid = ConvNormRelu(4).apply(layer, grid, False)
        wanted = resize.bilinear(grid, (7, 5))
        chex.assert_trees_all_close(y[..., 3 + 4 * i : 7 + 4 * i], wanted, rtol=1e-5, atol=1e-6)


def test_the_grid_of_one_cell_knows_the_mean_alone():
    """Shuffling the positions of a map changes nothing there."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    module = PyramidPooling(5, sizes=(1,))
    variables = module.init(jax.random.key(1), x, False)
    shuffled = jax.random.permutation(jax.random.key(2), x.reshape(16, 3)).reshape(x.shape)
    one, other = (module.apply(variables, image, False)[..., 3:] for image in (x, shuffled))
    chex.assert_trees_all_close(one, other, atol=1e-6)
    np.testing.assert_array_equal(one, jnp.broadcast_to(one[:, :1, :1], one.shape))
