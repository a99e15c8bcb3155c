"""What the systems on a ResNet or a Swin share: from config values to the backbone, from a batch to
what the network says, and running it in slices of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones import resnet, swin
from segjax.backbones.layers import BatchNorm, FrozenBatchNorm
from segjax.backbones.vit import drop_path_scale
from segjax.errors import SegjaxError
from segjax.ops import resize
from segjax.structs import Array, Batch, Size, Variables
from segjax.systems.preprocess import normalised_image

Dtype = Any

NORMS = {"frozen_bn": FrozenBatchNorm, "batch_norm": BatchNorm}


def make_backbone(
    backbone: str | Mapping[str, Any],
    norm: str = "frozen_bn",
    drop_path: float = 0.0,
    dtype: Dtype = jnp.float32,
    remat: bool = False,
) -> nn.Module:
    """A backbone with levels "res2".."res5" by its name, or by its numbers.

    Args:
        backbone: a name of `resnet.VARIANTS` or `swin.VARIANTS`; or {"width", "depths", "heads",
            "window"}, a Swin of your own; or {"width", "depths"}, a ResNet of your own.
        norm: of a ResNet: "frozen_bn", whose statistics and affine map stay as loaded, or
            "batch_norm".
        drop_path: rate of stochastic depth in a Swin's last block.
        dtype, remat: see the modules.

    Raises:
        SegjaxError: the name is unknown, or the numbers don't fit.
    """
    known = resnet.VARIANTS | swin.VARIANTS
    if isinstance(backbone, str):
        if backbone not in known:
            raise SegjaxError(
                f"config.model.backbone: '{backbone}' is not a known backbone; take one of"
                f" {', '.join(known)}, or numbers of your own."
            )
        shape = dict(known[backbone])
    else:
        shape = dict(backbone)
    if norm not in NORMS:
        raise SegjaxError(
            f"config.model.backbone_norm: there is no '{norm}'; take one of {', '.join(NORMS)}."
        )
    try:
        if "window" in shape:
            if any(shape["width"] * 2**i % n for i, n in enumerate(shape["heads"])):
                raise SegjaxError(
                    f"config.model.backbone: heads {shape['heads']} do not divide the channels of"
                    f" their stages, {shape['width']} doubled from stage to stage."
                )
            return swin.Swin(**shape, drop_path=drop_path, dtype=dtype, remat=remat)
        return resnet.ResNet(**shape, norm=NORMS[norm], dtype=dtype, remat=remat)
    except (TypeError, KeyError) as error:
        raise SegjaxError(
            f"config.model.backbone: {shape} describes no backbone ({error}); a Swin has width,"
            " depths, heads and window, a ResNet width and depths."
        ) from None


def branch_scale(backbone: nn.Module, rng: Array, batch: int) -> Array | None:
    """The draws of stochastic depth, [depth, 2, B]; None for a backbone without."""
    rate = getattr(backbone, "drop_path", 0.0)
    return drop_path_scale(rng, rate, sum(backbone.depths), batch) if rate else None


def per_image_keys(rng: Array, batch: int, rate: float) -> Array | None:
    """A key for each image of the batch, None where nothing is dropped."""
    return jax.random.split(rng, batch) if rate else None


class Network(Protocol):
    """What the functions below need of a system.

    Attributes:
        module: has a `backbone`; called as `Mask2Former` is.
        divisible: sides are filled up to a multiple of this; 0 or 1 leaves them as they are.
        mean, std: per channel (RGB, on 0..255).
    """

    module: nn.Module
    divisible: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def filled_image(system: Network, batch: Batch) -> Array:
    """The normalised image [B, H, W, 3], filled up with zeros at its bottom and right."""
    image = normalised_image(batch, system.mean, system.std)
    return resize.pad_to_multiple(image, max(system.divisible, 1))


def covered(system: Network, batch: Batch) -> Size:
    """(height, width) of `filled_image`."""
    multiple = max(system.divisible, 1)
    height, width = (-(-side // multiple) * multiple for side in batch["image"].shape[1:3])
    return height, width


def applied(
    system: Network,
    dropout: float,
    variables: Variables,
    batch: Batch,
    rng: Array | None,
    microbatches: int,
) -> tuple[Any, Variables]:
    """What the network says, in training mode if there is an rng, and the new non-parameter
    variables."""
    image = filled_image(system, batch)
    if rng is None:
        return system.module.apply(variables, image), {}
    depth_rng, dropout_rng = jax.random.split(rng)
    return system.module.apply(
        variables,
        image,
        True,
        branch_scale(system.module.backbone, depth_rng, image.shape[0]),
        per_image_keys(dropout_rng, image.shape[0], dropout),
        microbatches,
        mutable=[name for name in variables if name != "params"],
    )


def backbone_levels(
    module: nn.Module, image: Array, train: bool, scale: Array | None
) -> Mapping[str, Array]:
    """ "res2".."res5" of a ResNet or a Swin."""
    if isinstance(module, resnet.ResNet):
        return module(image, train)
    return module(image, scale)


def in_slices(
    model: nn.Module,
    head: Callable[[nn.Module, Mapping[str, Array], Array | None], Any],
    image: Array,
    train: bool,
    scale: Array | None,
    rng: Array | None,
    slices: int,
) -> Any:
    """Runs `model.backbone` and then `head`, on slices of the batch one after another.

    Only inputs and results are kept; the backward pass computes each slice again. A backbone with
    batch norm sees the whole batch at once, as its statistics are those of the whole batch; then
    only the head runs in slices.

    Args:
        model: has a `backbone`.
        head: (model, levels, keys) -> tree of arrays with a leading batch axis.
        image: [B, H, W, 3].
        train: training mode of the backbone's batch norm.
        scale: [depth, 2, B] factors of the residual branches, or None.
        rng: a key for each image, or None.
        slices: how many; divides B.

    Returns:
        What `head` gives for the whole batch.
    """
    if slices == 1:
        return head(model, backbone_levels(model.backbone, image, train, scale), rng)
    batch = image.shape[0]
    if batch % slices:
        raise SegjaxError(
            f"config.accumulate: {slices} slices do not divide the batch of {batch}; change either."
        )
    couples = getattr(model.backbone, "norm", None) is BatchNorm
    scale = None if scale is None else scale.transpose(2, 0, 1)
    inputs = (image, scale, rng)
    if couples:
        inputs = (backbone_levels(model.backbone, image, train, None), None, rng)

    # Slice k takes images k, k + slices, ...: every device keeps its own images.
    def split(x: Array) -> Array:
        return x.reshape(batch // slices, slices, *x.shape[1:]).swapaxes(0, 1)

    def merge(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(batch, *x.shape[2:])

    def body(model: nn.Module, _: None, inputs: tuple[Any, ...]) -> tuple[None, Any]:
        x, scale, rng = inputs
        if not couples:
            scale = None if scale is None else scale.transpose(1, 2, 0)
            x = backbone_levels(model.backbone, x, train, scale)
        return None, head(model, x, rng)

    run = nn.scan(
        nn.remat(body, prevent_cse=False),
        variable_broadcast=["params", "constants", "batch_stats"],
        split_rngs={"params": False},
    )
    _, outputs = run(model, None, jax.tree.map(split, inputs))
    return jax.tree.map(merge, outputs)
