"""The model that segjax is measured beside is the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from segjax import importers
from segjax.inference.predictor import Predictor
from segjax.structs import IGNORE

torch = pytest.importorskip("torch", reason="needs torch: pip install 'segjax[torch]'")

from segjax.bench import regproxy  # noqa: E402
from segjax.bench import torch_regproxy as twin  # noqa: E402
from segjax.bench.measure import error_of  # noqa: E402
from segjax.bench.torch_side import nchw, tensor  # noqa: E402
from segjax.data import transforms  # noqa: E402
from segjax.data.labels import LabelSpace  # noqa: E402
from segjax.inference.windows import Settings  # noqa: E402

OPTIONS = regproxy.Options(("tiny",), side=64, batch=2, classes=7)


@pytest.fixture(scope="module")
def pair():
    return regproxy.pair(OPTIONS, "tiny", "float32")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": regproxy.images(OPTIONS),
        "semantic": jnp.asarray(rng.integers(IGNORE, 7, (2, 64, 64)), jnp.int16),
    }


def test_the_painted_scores_are_equal(pair, batch):
    ours = jax.jit(lambda v, b: pair.system.predict(v, b).scores)(pair.variables, batch)
    with torch.inference_mode():
        theirs = pair.model(nchw(batch["image"], "cpu"))
    assert error_of(ours, theirs.permute(0, 2, 3, 1)) < 1e-5


def test_the_loss_its_gradient_and_the_statistics_are_equal(pair, batch):
    def loss(params):
        variables = pair.variables | {"params": params}
        return pair.system.loss(variables, batch, jax.random.key(0))

    (ours, (_, stats)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        pair.variables["params"]
    )
    published = importers.to_published("regproxy", pair.variables)
    model = twin.load(regproxy.copy.deepcopy(pair.model), published).train()
    labels = tensor(batch["semantic"], "cpu").long()
    theirs = twin.loss(model(nchw(batch["image"], "cpu")), labels)
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)

    named = importers.to_published("regproxy", {"params": gradient})
    assert named.keys() == dict(model.named_parameters()).keys()
    largest = float(np.abs(ravel_pytree(gradient)[0]).max())
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            named[name], parameter.grad, rtol=1e-3, atol=1e-5 * largest, err_msg=name
        )
    for name, value in importers.to_published("regproxy", stats).items():
        np.testing.assert_allclose(value, model.state_dict()[name], rtol=1e-5, err_msg=name)


def test_three_steps_have_equal_losses(pair, batch):
    ours = regproxy.Training(pair.system, pair.variables, batch, regproxy.Numerics())
    theirs = regproxy.TorchTraining(
        regproxy.copy.deepcopy(pair.model).train(),
        nchw(batch["image"], "cpu"),
        tensor(batch["semantic"], "cpu").long(),
        regproxy.Numerics(),
    )
    total = sum(float(theirs()) for _ in range(3))
    for _ in range(3):
        ours()
    np.testing.assert_allclose(ours.logged["loss"], total, rtol=1e-5)


def test_the_first_gradient_norm_leaves_the_model_as_it_was(pair, batch):
    model = regproxy.copy.deepcopy(pair.model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image, labels = nchw(batch["image"], "cpu"), tensor(batch["semantic"], "cpu").long()
    training = regproxy.TorchTraining(model, image, labels, regproxy.Numerics())
    assert training.first_norm > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("size, stride", [((90, 150), 48), ((40, 70), 64), ((64, 64), 64)], ids=str)
def test_whole_predictions_are_equal(pair, size, stride):
    """Windows overlap, fill the image up, or are the image."""
    photo = transforms.resize_image(regproxy.photograph(64), size)
    settings = Settings(scale=(256, 64), crop=(64, 64), stride=(stride, stride))
    space = LabelSpace("x", tuple("abcdefg"), ((0, 0, 0),) * 7, (False,) * 7)
    ours = Predictor(pair.system, pair.variables, space, settings)(photo).labels
    inner = transforms.rescaled_size(size, settings.scale)
    theirs = twin.predict(
        *(pair.model, photo, inner, settings.crop, settings.stride),
        *(pair.system.mean, pair.system.std),
    )
    assert ours.shape == size
    assert (ours != theirs).mean() < 1e-3
    assert len(np.unique(theirs)) > 1
