"""Where arrays lie, and that it doesn't matter."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from tiny_training import stored, tiny_config

from segjax.errors import SegjaxError
from segjax.training import loop, sharding, signals

PLACEMENTS = {
    "replicate": ((("data", -1),), ((".*", "replicate"),)),
    "fsdp": ((("data", 2), ("fsdp", -1)), ((".*", "fsdp"),)),
    "tensor": (
        (("data", -1), ("tensor", 2)),
        ((r"qkv/kernel", "tensor:2"), (r"mlp/fc1", "tensor:-1"), (r".*", "fsdp")),
    ),
}


def placed(name, *overrides):
    config = tiny_config(*overrides)
    config.mesh.axes, config.mesh.rules = PLACEMENTS[name]
    return config


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """4 steps on one device."""
    workdir = tmp_path_factory.mktemp("one")
    metrics = loop.train(tiny_config("--config.steps=4"), workdir, jax.devices()[:1])
    return metrics, stored(workdir, 4)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_8_then_4_devices_give_what_1_gives(name, one_device, tmp_path):
    """Steps 1 and 2 on eight devices, 3 and 4 on four; all that a checkpoint holds."""
    metrics, expected = one_device
    config = placed(name, "--config.steps=4")
    stop_after(2, config, tmp_path)
    resumed = loop.train(config, tmp_path, jax.devices()[:4])
    result = stored(tmp_path, 4)
    assert result.keys() == expected.keys()
    far = {k: float(abs(result[k] - 1.0 * expected[k]).max()) for k in result}
    assert max(far.values()) <= 1e-6, {k: v for k, v in far.items() if v > 1e-6}
    assert resumed["mIoU"] == pytest.approx(metrics["mIoU"], abs=0.5)


def stop_after(step, config, workdir):
    """Trains on all devices and stops as SIGTERM would make it."""
    asked = signals.Signals.asked
    signals.Signals.asked = lambda self, at: 15 * (at == step)
    try:
        with pytest.raises(signals.Interrupted):
            loop.train(config, workdir)
    finally:
        signals.Signals.asked = asked


def test_each_parameter_lies_as_its_rule_says():
    axes, rules = PLACEMENTS["tensor"]
    mesh = sharding.make_mesh(axes)
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
    params = {
        "attention": {"qkv": {"kernel": shape(32, 3, 2, 16), "bias": shape(3, 2, 16)}},
        "mlp": {"fc1": {"kernel": shape(32, 128), "bias": shape(128)}},
        "scale": shape(3),
    }
    placed = sharding.parameter_shardings(params, mesh, rules)
    specs = jax.tree.map(lambda where: where.spec, placed)
    assert specs == {
        "attention": {
            "qkv": {
                "kernel": PartitionSpec(None, None, "tensor"),
                "bias": PartitionSpec(None, None, "data"),
            }
        },
        "mlp": {"fc1": {"kernel": PartitionSpec(None, "tensor"), "bias": PartitionSpec("tensor")}},
        "scale": PartitionSpec(),
    }


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((("data", 3),), "needs 3 devices, and there are 8"),
        ((("data", -1), ("tensor", 3)), "needs a multiple of 3 devices"),
        ((("model", -1),), "must name each of data, fsdp and tensor"),
        ((("data", -1), ("fsdp", -1)), "at most one size of -1"),
        (("data", -1), "is not of the form"),
    ],
)
def test_meshes_that_are_refused(axes, message):
    with pytest.raises(SegjaxError, match=message):
        sharding.make_mesh(axes)


@pytest.mark.parametrize(
    ("tactic", "message"),
    [
        ("tensor:1", "can't split w of shape"),
        ("shard", "is not a tactic"),
        ("tensor:x", "is not a tactic"),
    ],
)
def test_tactics_that_are_refused(tactic, message):
    mesh = sharding.make_mesh((("data", 4), ("tensor", 2)))
    params = {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    with pytest.raises(SegjaxError, match=message):
        sharding.parameter_shardings(params, mesh, ((".*", tactic),))


def test_slices_that_the_mesh_does_not_divide():
    mesh = sharding.make_mesh((("data", -1),))
    with pytest.raises(SegjaxError, match="multiple of 16"):
        sharding.check_batch(mesh, 8, accumulate=2)
