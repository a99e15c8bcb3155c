"""What a training starts from, and what it refuses before it starts."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from tiny_training import tiny_config

from segjax import importers, systems
from segjax.errors import SegjaxError
from segjax.training import checkpoints, loop


def test_training_starts_from_a_pretrained_file(tmp_path):
    """A ViT of another image size under timm's names: resized positions, all else as in the
    file."""
    config = tiny_config(
        "--config.steps=1", "--config.optimizer.learning_rate=0.0", "--config.optimizer.ema=0.0"
    )
    larger = systems.build(config.model.to_dict() | dict(image_size=(64, 48)))
    image = np.zeros((1, 64, 48, 3), np.uint8)
    pretrained = jax.jit(larger.init)(jax.random.key(5), {"image": image})["params"]["backbone"]
    square = pretrained["pos_embed"][:, :17]  # a file holds a square grid: 4 x 4
    pretrained = pretrained | {"pos_embed": square}
    tensors = importers.to_published("timm", {"params": {"backbone": pretrained}})
    save_file(
        {name: np.ascontiguousarray(x) for name, x in tensors.items()}, tmp_path / "vit.safetensors"
    )

    config.init.layout, config.init.checkpoint = "timm", str(tmp_path / "vit.safetensors")
    config.augment.crop = config.eval.crop = config.eval.stride = (64, 64)
    config.model.image_size = (64, 64)
    loop.train(config, tmp_path / "run")
    begun, _, _ = checkpoints.load_variables(tmp_path / "run", "last")
    ours = begun["params"]["backbone"]
    np.testing.assert_array_equal(
        ours["patch_embed"]["kernel"], pretrained["patch_embed"]["kernel"]
    )
    np.testing.assert_array_equal(
        ours["block_1"]["attention"]["qkv"]["kernel"],
        pretrained["block_1"]["attention"]["qkv"]["kernel"],
    )
    assert ours["pos_embed"].shape == (1, 1 + 64, 32)
    np.testing.assert_array_equal(ours["pos_embed"][:, 0], square[:, 0])


def test_training_starts_from_all_but_the_heads_of_a_workdir_for_other_classes(tmp_path, capsys):
    config = tiny_config("--config.steps=1", "--config.optimizer.learning_rate=0.0")
    config.optimizer.ema = 0.0
    image = np.zeros((1, *config.augment.crop, 3), np.uint8)
    other = systems.build(config.model.to_dict() | dict(classes=7))
    stored = jax.jit(other.init)(jax.random.key(5), {"image": image})
    checkpoints.save_variables(tmp_path / "other", stored)

    config.init.layout, config.init.checkpoint = "segjax", str(tmp_path / "other")
    config.init.part = "model"
    loop.train(config, tmp_path / "run")
    begun, _, _ = checkpoints.load_variables(tmp_path / "run", "last")
    heads = systems.heads(config.model, tuple(config.augment.crop))
    theirs, ours = flatten_dict(stored, sep="/"), flatten_dict(begun, sep="/")
    for path in ours.keys() - heads:
        if path.startswith("params/"):
            np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    assert heads and all(ours[path].shape != theirs[path].shape for path in heads)
    told = " ".join(capsys.readouterr().out.split())
    assert "random heads: " in told and "other (segjax)" in told


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--config.init.part=neck"], "config.init.part: 'neck' is none of backbone, model"),
        (["--config.eval.mode=slide", "--config.eval.stride=(40, 40)"], "leaves gaps"),
        (["--config.model.classes=7"], "config.model.classes is 7, but shapescapes has 12"),
        (["--config.data.batch=6", "--config.mesh.axes=(('data', 4), ('tensor', 2))"], "batch"),
    ],
    ids=["part", "stride", "classes", "batch"],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(
    overrides, message, tmp_path
):
    with pytest.raises(SegjaxError, match=message):
        loop.train(tiny_config(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bucket_is_not_taken_for_a_folder():
    with pytest.raises(SegjaxError, match="mount the bucket"):
        loop.train(tiny_config(), "gs://bucket/run")
