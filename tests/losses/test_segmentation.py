"""Dense losses against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.losses.segmentation import deep_supervision, pixel_cross_entropy
from segjax.structs import IGNORE


@pytest.mark.parametrize("over", ["all", "valid"])
def test_both_denominators_are_those_of_torch_code(over):
    """mmsegmentation averages the unreduced loss over all pixels, Segmenter takes torch's own
    mean."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of losses")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 4, 6, 5)).astype(np.float32)
    labels = rng.integers(IGNORE, 5, (2, 16, 24))
    value, gradient = jax.value_and_grad(
        lambda s: pixel_cross_entropy(s, jnp.asarray(labels, jnp.int16), over)[0]
    )(jnp.asarray(scores))

    theirs = torch.tensor(scores, requires_grad=True)
    logits = torch.nn.functional.interpolate(
        theirs.permute(0, 3, 1, 2), size=(16, 24), mode="bilinear", align_corners=False
    )
    reduction = {"all": "none", "valid": "mean"}[over]
    loss = torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels), ignore_index=IGNORE, reduction=reduction
    ).mean()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-4, atol=1e-8)


def test_accuracy_counts_ignored_pixels_as_wrong():
    scores = jnp.zeros((1, 2, 2, 3)).at[..., 1].set(1.0)
    labels = jnp.array([[[1, 1], [IGNORE, 0]]], jnp.int16)
    assert pixel_cross_entropy(scores, labels)[1]["accuracy"] == 50.0


def test_no_labelled_pixel_is_no_loss():
    labels = jnp.full((1, 2, 2), IGNORE, jnp.int16)
    assert pixel_cross_entropy(jnp.ones((1, 2, 2, 3)), labels, "valid")[0] == 0.0


def test_auxiliary_heads_count_with_their_weight_and_are_logged_without_it():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(IGNORE, 5, (2, 8, 8)), jnp.int16)
    scores = [jnp.asarray(rng.normal(size=(2, n, n, 5)), jnp.float32) for n in (8, 2, 4)]
    parts = [pixel_cross_entropy(s, labels)[0] for s in scores]
    total, scalars = deep_supervision(scores[0], scores[1:], labels, 0.3)
    np.testing.assert_allclose(total, parts[0] + 0.3 * (parts[1] + parts[2]), rtol=1e-6)
    assert set(scalars) == {"accuracy", "loss_main", "loss_aux_0", "loss_aux_1"}
    np.testing.assert_allclose(
        [scalars["loss_main"], scalars["loss_aux_0"], scalars["loss_aux_1"]], parts, rtol=1e-6
    )
    assert scalars["accuracy"] == pixel_cross_entropy(scores[0], labels)[1]["accuracy"]


def test_every_supervised_head_gets_its_share_of_the_gradient():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(IGNORE, 5, (2, 8, 8)), jnp.int16)
    scores = jnp.asarray(rng.normal(size=(2, 4, 4, 5)), jnp.float32)
    alone = jax.grad(lambda s: pixel_cross_entropy(s, labels)[0])(scores)
    main, (aux,) = jax.grad(lambda both: deep_supervision(both[0], both[1], labels, 0.4)[0])(
        (scores, (scores,))
    )
    np.testing.assert_allclose(main, alone, rtol=1e-6)
    np.testing.assert_allclose(aux, 0.4 * alone, rtol=1e-5, atol=1e-9)
