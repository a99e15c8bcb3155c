"""The linear baseline."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax import systems
from segjax.ops import resize

SMALL = dict(
    system="linear_vit",
    backbone=dict(width=32, depth=2, heads=2, patch=8),
    classes=4,
    image_size=(32, 32),
    drop_path=0.3,
)


def test_it_labels_at_image_resolution_and_slices_exactly():
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3)), jnp.uint8),
        "semantic": jnp.asarray(rng.integers(-1, 4, (4, 32, 32)), jnp.int16),
    }
    system = systems.build(SMALL)
    variables = system.init(jax.random.key(0), batch)
    semantic = jax.jit(system.predict)(variables, batch)
    chex.assert_shape(semantic.scores, (4, 4, 4, 4))
    assert semantic.regions is None
    agreement = semantic.labels == resize.bilinear(semantic.scores, (32, 32)).argmax(-1)
    assert agreement.mean() > 0.999
    whole, sliced = (system.loss(variables, batch, jax.random.key(3), n)[0] for n in (1, 2))
    np.testing.assert_allclose(sliced, whole, rtol=1e-5)
