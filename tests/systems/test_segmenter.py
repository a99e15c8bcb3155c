"""Segmenter: its two decoders, dropout and the official sizes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import systems
from segjax.errors import SegjaxError
from segjax.ops import resize
from segjax.systems import segmenter

SMALL = dict(
    system="segmenter",
    backbone=dict(width=32, depth=2, heads=2, patch=8),
    classes=5,
    image_size=(32, 32),
    drop_path=0.3,
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3)), jnp.uint8),
        "semantic": jnp.asarray(rng.integers(-1, 5, (4, 32, 32)), jnp.int16),
    }


@pytest.fixture(scope="module", params=["mask_transformer", "linear"])
def system(request):
    return systems.build(SMALL | dict(decoder=request.param))


def test_slices_of_the_batch_give_the_loss_of_the_whole(system, batch):
    variables = system.init(jax.random.key(0), batch)
    whole, sliced = (
        jax.jit(system.loss, static_argnums=3)(variables, batch, jax.random.key(3), n)[0]
        for n in (1, 2)
    )
    np.testing.assert_allclose(sliced, whole, rtol=1e-5)


def test_an_image_of_no_whole_patches_is_labelled_as_its_zero_padded_one(system, batch):
    variables = system.init(jax.random.key(0), batch)
    image = jax.random.normal(jax.random.key(1), (2, 27, 30, 3))
    padded = jnp.pad(image, ((0, 0), (0, 5), (0, 2), (0, 0)))
    odd, even = (system.predict(variables, {"image": x}) for x in (image, padded))
    assert odd.covers == (32, 32)
    chex.assert_trees_all_close(odd.scores, even.scores, atol=1e-5)
    expected = resize.bilinear(even.scores, (32, 32)).argmax(-1)[:, :27, :30]
    assert (odd.labels == expected).mean() > 0.999


def test_dropout_is_drawn_in_training_only(batch):
    system = systems.build(SMALL | dict(drop_path=0.0, dropout=0.5))
    variables = system.init(jax.random.key(0), batch)
    losses = [system.loss(variables, batch, jax.random.key(i))[0] for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    still = systems.build(SMALL | dict(drop_path=0.0, dropout=0.0))
    chex.assert_trees_all_equal(
        system.predict(variables, batch).scores, still.predict(variables, batch).scores
    )


def test_masks_do_not_depend_on_the_length_of_the_class_embeddings_projection(batch):
    """Both sides of the product have length one, so a positive factor on either is lost."""
    system = systems.build(SMALL)
    variables = jax.tree.map(jnp.asarray, system.init(jax.random.key(0), batch))
    scaled = jax.tree.map(jnp.copy, variables)
    scaled["params"]["decoder"]["proj_classes"] *= 7.0
    chex.assert_trees_all_close(
        system.predict(scaled, batch).scores, system.predict(variables, batch).scores, atol=1e-4
    )


def test_permuting_the_class_embeddings_permutes_the_masks(batch):
    """Up to the layer norm over classes, whose gain and bias are equal at the start."""
    system = systems.build(SMALL)
    variables = system.init(jax.random.key(0), batch)
    order = jnp.array([3, 0, 4, 1, 2])
    other = jax.tree.map(jnp.copy, variables)
    other["params"]["decoder"]["cls_emb"] = other["params"]["decoder"]["cls_emb"][:, order]
    chex.assert_trees_all_close(
        system.predict(other, batch).scores,
        system.predict(variables, batch).scores[..., order],
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("width", "heads", "parameters"),
    [(192, 3, 1_029_996), (384, 6, 4_050_348), (768, 12, 16_063_020), (1024, 16, 28_495_148)],
)
def test_the_official_mask_transformers_have_their_parameters(width, heads, parameters):
    decoder = segmenter.MaskTransformer(150, heads)
    tokens = jax.ShapeDtypeStruct((1, 4, 4, width), jnp.float32)
    variables = jax.eval_shape(decoder.init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


@pytest.mark.parametrize(
    ("backbone", "linear", "mask"),
    [
        ("vit_ti16", 5.905, 6.906),
        ("vit_s16", 22.426, 26.419),
        ("vit_b16", 87.319, 103.267),
        ("vit_l16", 305.918, 334.259),
    ],
)
def test_with_the_unused_imagenet_head_the_official_models_have_their_parameters(
    backbone, linear, mask
):
    size = (640, 640) if backbone == "vit_l16" else (512, 512)
    for decoder, millions in (("linear", linear), ("mask_transformer", mask)):
        system = segmenter.build(classes=150, backbone=backbone, decoder=decoder, image_size=size)
        image = {"image": jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)}
        shapes = jax.eval_shape(system.init, jax.random.key(0), image)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        head = 1000 * (system.module.backbone.width + 1)
        assert f"{(count + head) / 1e6:.3f}" == f"{millions:.3f}"


def test_an_unknown_decoder_is_named():
    with pytest.raises(SegjaxError, match=r"config\.model\.decoder: there is no 'conv'"):
        systems.build(SMALL | dict(decoder="conv"))
