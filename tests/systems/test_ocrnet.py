"""OCRNet: its counts, and what its heads read. See test_labelling.py for what it does as DeepLabV3+
does."""

import chex
import jax
import jax.numpy as jnp
import pytest

from segjax import systems
from segjax.ops import resize
from tests.systems.test_deeplab_v3plus import sizes
from tests.systems.test_labelling import SMALL


@pytest.mark.parametrize(
    ("backbone", "classes", "count"),
    [
        ("hrnet_w48", 19, 70_371_446),
        ("hrnet_w48", 26, 70_380_084),
        ("hrnet_w18", 150, 12_182_740),
    ],
)
def test_the_official_numbers_of_parameters(backbone, classes, count):
    found = sizes(dict(system="ocrnet", backbone=backbone, classes=classes))
    assert sum(found.values()) == count


def test_the_heads_read_all_branches_at_the_size_of_the_finest():
    system = systems.build(SMALL["ocrnet"])
    image = jax.random.normal(jax.random.key(0), (1, 41, 56, 3))
    variables = jax.jit(system.init)(jax.random.key(1), {"image": image})

    def by_hand(module, image):
        branches = module.backbone(image).values()
        x = jnp.concatenate([resize.bilinear(x, (11, 14)) for x in branches], axis=-1)
        coarse = module.coarse(x, False)
        return module.head(x, coarse, False), (coarse,), x

    @jax.jit
    def both(variables):
        said = system.module.apply(variables, image)
        wanted = system.module.apply(variables, image, method=by_hand)
        return (said.scores, said.auxiliary, said.features), wanted

    ours, wanted = both(variables)
    chex.assert_trees_all_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert ours[2].shape == (1, 11, 14, 3 + 6 + 12)
