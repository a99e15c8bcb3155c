"""Region mutual information against its definition in double precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError
from segjax.losses.region_mutual_information import region_mutual_information
from segjax.ops.hierarchy import Tree
from segjax.structs import IGNORE

torch = pytest.importorskip("torch", reason="torch's double precision is the oracle of the loss")

TREE = Tree(sizes=(3, 2), parents=((0, 1, 1),))


def reference(logits, labels, radius=3, pool=3, rounded=False):
    """Value and gradient, the definition word for word. `rounded`: probabilities pass through
    float32, as they do in the official code."""
    given = torch.tensor(np.asarray(logits), dtype=torch.float64, requires_grad=True)
    full = torch.nn.functional.interpolate(
        given.permute(0, 3, 1, 2), size=labels.shape[1:], mode="bilinear", align_corners=False
    )
    chance = torch.sigmoid(full)
    if rounded:
        chance = chance + (chance.detach().float().double() - chance.detach())
    leaves = np.where(labels == IGNORE, -1, labels)
    groups = np.where(labels == IGNORE, -1, np.asarray(TREE.parents[0])[labels])
    one_hot = [leaves == i for i in range(3)] + [groups == i for i in range(2)]
    truth = torch.tensor(np.stack(one_hot, axis=1), dtype=torch.float64)
    chance = chance * torch.tensor(labels != IGNORE)[:, None] + 1e-6

    def neighbourhoods(x):
        x = torch.nn.functional.max_pool2d(x, pool, pool, pool // 2)
        rows, cols = (length - radius + 1 for length in x.shape[2:])
        shifts = [x[:, :, i : i + rows, j : j + cols] for i in range(radius) for j in range(radius)]
        x = torch.stack(shifts, dim=2).flatten(3)  # [B, V, D, N]
        return x - x.mean(dim=-1, keepdim=True)

    x, y = neighbourhoods(chance), neighbourhoods(truth)
    ridge = 1e-3 * torch.eye(radius**2, dtype=torch.float64)
    cross = y @ x.mT
    left = y @ y.mT - cross @ torch.linalg.inv(x @ x.mT + ridge) @ cross.mT
    scales = torch.linalg.cholesky(left + ridge).diagonal(dim1=-2, dim2=-1)
    entropy = 0.5 * 2 * torch.log(scales + 1e-8).sum(dim=-1)
    loss = 0.5 * (entropy.mean(dim=0) / radius**2).sum()
    loss.backward()
    return loss.item(), given.grad.numpy()


compiled = jax.jit(
    jax.value_and_grad(region_mutual_information), static_argnames=("tree", "radius", "pool")
)


def ours(logits, labels, **sizes):
    value, gradient = compiled(jnp.asarray(logits), jnp.asarray(labels), tree=TREE, **sizes)
    return float(value), np.asarray(gradient)


def error(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def blobs(size, cells, seed, channels):
    """Smooth noise [*size, channels]: noise of `cells` x `cells` resized bicubically."""
    noise = np.random.default_rng(seed).normal(size=(1, channels, cells, cells))
    resized = torch.nn.functional.interpolate(torch.tensor(noise), size=size, mode="bicubic")
    return resized[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "old, new, sizes",
    [
        ((6, 8), (24, 30), {}),
        ((24, 30), (24, 30), {}),
        ((9, 7), (25, 32), {}),
        ((5, 6), (20, 23), {"radius": 2, "pool": 2}),
        ((9, 9), (9, 9), {"radius": 3, "pool": 1}),
    ],
    ids=str,
)
def test_value_and_gradient_are_those_of_the_definition(old, new, sizes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, *old, 5)).astype(np.float32)
    labels = rng.integers(IGNORE, 3, (2, *new))
    labels[:, : new[0] // 2] = 1  # or all cells would hold all classes
    value, gradient = ours(logits, labels, **sizes)
    exact, slope = reference(logits, labels, **sizes)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    assert error(gradient, slope) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rough", "smooth", "trained"])
def test_float32_suffices_at_the_size_of_a_crop(kind):
    """Where predictions are smooth, covariances are nearly singular. The official code makes them
    in float64, yet from probabilities in float32, and that alone costs more than all of ours."""
    size = (240, 240)
    labels = blobs(size, 12, 0, 3).argmax(axis=-1)[None]
    truth = np.concatenate([np.eye(3)[labels], np.eye(2)[np.asarray(TREE.parents[0])[labels]]], -1)
    noise = np.random.default_rng(1).normal(size=(1, *size, 5))
    logits = {
        "rough": 2 * noise,
        "smooth": 2 * blobs(size, 12, 2, 5)[None],
        "trained": 8 * truth - 4 + 0.1 * noise,
    }[kind].astype(np.float32)
    value, gradient = ours(logits, labels)
    exact, slope = reference(logits, labels)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    found = error(gradient, slope)
    assert found < 1e-4
    if kind == "smooth":
        assert found < error(reference(logits, labels, rounded=True)[1], slope)


@pytest.mark.parametrize("kind", ["alternating", "constant", "certain"])
def test_predictions_without_information_have_a_finite_loss(kind):
    """Neighbours that repeat each other, or nothing at all, make singular covariances."""
    size = (60, 60)
    labels = blobs(size, 6, 0, 3).argmax(axis=-1)[None]
    parity = np.add.outer(np.arange(60) // 3, np.arange(60) // 3) % 2
    logits = {
        "alternating": np.broadcast_to(4.0 * parity[None, ..., None] - 2, (1, *size, 5)),
        "constant": np.zeros((1, *size, 5)),
        "certain": np.full((1, *size, 5), 200.0),
    }[kind].astype(np.float32)
    value, gradient = ours(logits, labels)
    np.testing.assert_allclose(value, reference(logits, labels)[0], rtol=1e-5)
    chex.assert_tree_all_finite(gradient)


def test_a_class_that_is_absent_has_no_gradient():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 24, 24, 5)).astype(np.float32)
    gradient = ours(logits, rng.integers(0, 2, (1, 24, 24)))[1]
    np.testing.assert_array_equal(gradient[..., 2], 0)
    assert np.abs(gradient[..., 1]).max() > 0


def test_what_is_predicted_where_there_is_no_label_does_not_matter():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 24, 24, 5)).astype(np.float32)
    labels = rng.integers(0, 3, (1, 24, 24))
    labels[:, 5:14, 4:20] = IGNORE
    value, gradient = ours(logits, labels)
    np.testing.assert_array_equal(gradient[labels == IGNORE], 0)
    other = np.where((labels == IGNORE)[..., None], 10.0, logits).astype(np.float32)
    np.testing.assert_allclose(ours(other, labels)[0], value, rtol=1e-6)


def test_the_gradient_has_the_type_of_the_logits():
    labels = jnp.zeros((1, 24, 24), jnp.int32)
    slope = jax.eval_shape(
        jax.grad(lambda x: region_mutual_information(x, labels, TREE)),
        jax.ShapeDtypeStruct((1, 6, 6, 5), jnp.bfloat16),
    )
    assert slope.dtype == jnp.bfloat16


def test_no_full_resolution_tensor_of_nodes_is_held():
    """Value and gradient of 42 nodes need less than one such tensor."""
    size, nodes = (192, 192), 42
    tree = Tree(sizes=(40, 2), parents=(tuple(i % 2 for i in range(40)),))
    step = jax.jit(jax.value_and_grad(lambda x, y: region_mutual_information(x, y, tree)))
    program = step.lower(
        jax.ShapeDtypeStruct((1, 48, 48, nodes), jnp.float32),
        jax.ShapeDtypeStruct((1, *size), jnp.int16),
    ).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * nodes * size[0] * size[1]


def test_labels_without_a_neighbourhood_are_refused():
    with pytest.raises(SegjaxError, match=r"6x30 pixels hold no neighbourhood of 3x3 cells"):
        region_mutual_information(jnp.zeros((1, 2, 8, 5)), jnp.zeros((1, 6, 30), jnp.int32), TREE)


def test_a_sharded_batch_has_the_loss_and_gradient_of_one_device():
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.normal(size=(8, 6, 7, TREE.nodes)), jnp.float32)
    labels = jnp.asarray(rng.integers(IGNORE, 3, (8, 24, 28)))
    split = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    shared = jax.device_put((logits, labels), split)
    one, eight = (compiled(*given, tree=TREE) for given in ((logits, labels), shared))
    chex.assert_trees_all_close(eight, one, rtol=1e-5, atol=1e-7)
