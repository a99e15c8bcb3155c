"""What the systems on a convolutional backbone that give every pixel one of K classes share: from
config values to the backbone, from a batch to what the network says, and its training loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones import hrnet, resnet
from segjax.backbones.layers import BatchNorm
from segjax.errors import SegjaxError
from segjax.losses.segmentation import deep_supervision
from segjax.ops import dense
from segjax.structs import Array, Batch, Scalars, Semantic, Variables
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image

# --------------------------------------------------------------------------------------------------
# The backbone


def make_resnet(backbone: str | Mapping[str, Any], dtype: str, remat: bool) -> resnet.ResNet:
    """A ResNet of output stride 8 whose batch norms train, by its name or by its numbers.

    Args:
        backbone: a name of `resnet.VARIANTS`, or fields of `resnet.ResNet`, among them "width" and
            "depths".
        dtype, remat: see `resnet.ResNet`.

    Raises:
        SegjaxError: the name or a field is unknown, or a needed one is missing.
    """
    shape = resnet.OUTPUT_STRIDE_8 | _fields(backbone, resnet.VARIANTS)
    return _made(resnet.ResNet, shape | dict(norm=BatchNorm), dtype, remat)


def make_hrnet(backbone: str | Mapping[str, Any], dtype: str, remat: bool) -> hrnet.HRNet:
    """An HRNet by its name or by its numbers.

    Args:
        backbone: a name of `hrnet.VARIANTS`, or fields of `hrnet.HRNet`, among them "width".
        dtype, remat: see `hrnet.HRNet`.

    Raises:
        SegjaxError: the name or a field is unknown, or a needed one is missing.
    """
    return _made(hrnet.HRNet, _fields(backbone, hrnet.VARIANTS), dtype, remat)


def _fields(
    backbone: str | Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    if not isinstance(backbone, str):
        return dict(backbone)
    if backbone not in known:
        raise SegjaxError(
            f"config.model.backbone: '{backbone}' is not a known backbone of this system; take one"
            f" of {', '.join(known)}, or numbers of your own."
        )
    return dict(known[backbone])


def _made(kind: type[nn.Module], shape: Mapping[str, Any], dtype: str, remat: bool) -> Any:
    try:
        return kind(**shape, dtype=jnp.dtype(dtype), remat=remat)
    except TypeError as error:
        raise SegjaxError(
            f"config.model.backbone: its fields do not describe a {kind.__name__} ({error})."
        ) from None


# --------------------------------------------------------------------------------------------------
# The system


@flax.struct.dataclass
class Output:
    """Attributes:
    scores: [B, H/4, W/4, K] float32 logits.
    auxiliary: the same of each further head, [B, h, w, K'] of any grids.
    features: [B, h, w, C], the backbone's last word, which embeddings are projected from.
    """

    scores: Array
    auxiliary: tuple[Array, ...]
    features: Array


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`.

    Attributes:
        module: called as (normalised image [B, H, W, 3], train) -> Output; batch norms in training
            mode change "batch_stats", and dropout draws from the rng "dropout".
        auxiliary_weight: of the loss of each auxiliary head.
        loss_over: see `losses.segmentation.pixel_cross_entropy`.
    """

    module: nn.Module
    auxiliary_weight: float
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    loss_over: str = "all"

    @property
    def classes(self) -> int:
        return self.module.classes

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, normalised_image(batch, self.mean, self.std))

    def outputs(
        self, variables: Variables, batch: Batch, rng: Array | None, microbatches: int = 1
    ) -> tuple[Output, Variables]:
        """What the network says, in training mode if there is an rng, and the new non-parameter
        variables.

        Raises:
            SegjaxError: `microbatches` is above 1: batch norm in every layer couples all images.
        """
        image = normalised_image(batch, self.mean, self.std)
        if rng is None:
            return self.module.apply(variables, image), {}
        if microbatches > 1:
            raise SegjaxError(
                f"config.accumulate is {microbatches}, but batch norm in every layer of this"
                " network needs the whole batch at once; set it to 1, and to save memory"
                " config.model.remat=True, or take more devices."
            )
        return self.module.apply(
            variables, image, True, mutable=["batch_stats"], rngs={"dropout": rng}
        )

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        said, mutated = self.outputs(variables, batch, rng, microbatches)
        value, scalars = deep_supervision(
            said.scores, said.auxiliary, batch["semantic"], self.auxiliary_weight, self.loss_over
        )
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        said, _ = self.outputs(variables, batch, None)
        size = batch["image"].shape[1:3]
        return Semantic(dense.resize_argmax(said.scores, size), said.scores)
