"""DeepLabV3+: its counts, and the heads it may have. See test_labelling.py for what it does as
OCRNet does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import systems
from segjax.decoders.projection import Projection
from tests.systems.test_labelling import SMALL


def sizes(model):
    """Parameters of each part."""
    system = systems.build(model)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    params = jax.eval_shape(system.init, jax.random.key(0), {"image": image})["params"]
    return {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}


@pytest.mark.parametrize(
    ("backbone", "nodes", "leaves", "count"),
    [
        ("resnet101_v1d", 26, 19, 67_310_589),
        ("resnet101_v1d", 12, 7, 67_300_323),
        ("resnet101_v1d", 25, 20, 67_310_333),
        ("resnet50_v1d", 26, 19, 48_318_461),
    ],
)
def test_the_official_numbers_of_parameters(backbone, nodes, leaves, count):
    """HSSN's networks: a channel per node, an auxiliary head of leaves, and a projection."""
    x = jax.ShapeDtypeStruct((1, 2, 2, 2048), np.float32)
    beside = jax.eval_shape(lambda x: Projection().init(jax.random.key(0), x, False), x)["params"]
    projection = sum(leaf.size for leaf in jax.tree.leaves(beside))
    model = dict(system="deeplab_v3plus", backbone=backbone)
    found = sizes(model | dict(classes=nodes, auxiliary_classes=leaves))
    assert sum(found.values()) + projection == count
    assert found["auxiliary"] == 2_359_808 + 257 * leaves


@pytest.fixture(scope="module")
def small():
    system = systems.build(SMALL["deeplab_v3plus"] | dict(auxiliary_classes=3))
    image = jax.random.normal(jax.random.key(0), (1, 41, 56, 3))
    return system, jax.jit(system.init)(jax.random.key(1), {"image": image}), image


def test_the_auxiliary_head_may_have_classes_of_its_own(small):
    system, variables, image = small
    assert system.classes == 5
    said = jax.eval_shape(lambda v: system.module.apply(v, image, False, True), variables)
    assert said.scores.shape == (1, 11, 14, 5)
    assert [x.shape for x in said.auxiliary] == [(1, 6, 7, 3)]
    assert said.features.shape == (1, 6, 7, 4 * 32)


def test_evaluation_runs_no_auxiliary_head(small):
    system, variables, image = small
    without = {
        collection: {k: v for k, v in tree.items() if k != "auxiliary"}
        for collection, tree in variables.items()
    }
    predict = jax.jit(system.predict)
    chex.assert_trees_all_equal(*(predict(v, {"image": image}) for v in (without, variables)))


def test_the_features_are_the_last_stage_of_the_backbone(small):
    system, variables, image = small

    @jax.jit
    def both(variables):
        by_hand = lambda module, image: module.backbone(image)["res5"]  # noqa: E731
        said = system.module.apply(variables, image)
        return said.features, system.module.apply(variables, image, method=by_hand)

    chex.assert_trees_all_close(*both(variables), rtol=1e-6)
