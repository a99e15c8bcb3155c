"""The convolution of maps of several resolutions against enlarging them first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import aligned, resize


def plain(maps, kernel):
    size = maps[0].shape[:2]
    x = jnp.concatenate([resize.bilinear(x, size, align_corners=True) for x in maps], axis=-1)
    return jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def taps(size, cells, beyond=0):
    """With one before and, of weight 0, more after."""
    indices, weights = resize.taps(size, cells, align_corners=True)
    return np.pad(indices, ((1, 1 + beyond), (0, 0))), np.pad(weights, ((1, 1 + beyond), (0, 0)))


@pytest.mark.parametrize("size", [(40, 25), (33, 16), (16, 1), (1, 7), (2, 2)], ids=str)
def test_it_is_the_convolution_of_the_enlarged_maps(size):
    rng = np.random.default_rng(0)
    halves = [tuple(-(-n // factor) for n in size) for factor in (1, 2, 4)]
    maps = [
        jnp.asarray(rng.normal(size=(*half, c)), jnp.float32) for half, c in zip(halves, (3, 4, 5))
    ]
    kernel = jnp.asarray(rng.normal(size=(3, 3, 12, 6)), jnp.float32)
    count = -(-size[0] // aligned.ROWS) * aligned.ROWS
    rows = [
        aligned.rows_of(*taps(size[0], half[0], count - size[0]), factor, half[0])
        for half, factor in zip(halves[1:], (2, 4))
    ]
    columns = [taps(size[1], half[1]) for half in halves[1:]]
    fine, *coarse = maps
    found = jax.jit(aligned.convolution, static_argnums=(6,))(
        fine, coarse, kernel, 0, rows, columns, lambda y: 2 * y
    )
    np.testing.assert_allclose(found[: size[0]], 2 * plain(maps, kernel), atol=1e-4)
