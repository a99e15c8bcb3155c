"""What a model costs: parameters, multiply-adds and memory, from shapes alone. No array is made.

Three counts of multiply-adds exist in the literature. All of those in convolutions and matrix
products are what the hardware does. Those that mmcv's counter sees are in the tables of papers on
mmsegmentation: it leaves out all of attention, its projections included, and the convolutions of
hybrid stems; for a small ViT it is a third of the truth. Those that fvcore's counter sees are in
the tables of papers on detectron2, MaskFormer's and Mask2Former's: they add norms and resizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from segjax import systems
from segjax.backbones import hrnet, resnet, vit
from segjax.backbones.layers import BatchNorm, Conv, DepthwiseConv, FrozenBatchNorm, LayerNorm
from segjax.decoders.aspp import SeparableASPP
from segjax.decoders.fpn_pixel import FPNPixelDecoder
from segjax.decoders.msdeform_pixel import MSDeformPixelDecoder
from segjax.decoders.psp import PyramidPooling
from segjax.errors import SegjaxError
from segjax.inference.windows import starts
from segjax.structs import Masks, Refined, Size, System
from segjax.systems import mask2former, maskformer, setr
from segjax.systems.mask_backbone import covered


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one forward pass of one image of `size`.

    Attributes:
        size: (height, width) of what the network sees: a window, where evaluation slides.
        windows: passes for an image that fills the evaluation scale.
        parameters: trained numbers.
        parameter_bytes: their memory.
        macs: multiply-adds of all convolutions and matrix products up to the scores (before their
            resize to the image).
        macs_mmcv: multiply-adds, norms and activations as mmcv's counter sees them.
    """

    size: Size
    windows: int
    parameters: int
    parameter_bytes: int
    macs: int
    macs_mmcv: int


def of_config(config: Mapping[str, Any]) -> Cost:
    """The cost of the model of a complete config, at its evaluation size."""
    settings = config["eval"]
    full = tuple(settings["scale"])[::-1]
    size, windows = full, 1
    if settings["mode"] == "slide":
        size = tuple(settings["crop"])
        windows = math.prod(
            len(starts(side, crop, stride))
            for side, crop, stride in zip(full, size, settings["stride"])
        )
    return of_system(systems.of_config(config), size, windows)


def of_system(system: System, size: Size, windows: int = 1) -> Cost:
    """The cost of a system for one image of `size`."""
    variables, batch, _ = _inputs(system, size)
    jaxpr, calls = _trace(lambda *given: _said(system.predict(*given)), variables, batch)
    params = jax.tree.leaves(variables["params"])
    macs = _jaxpr_macs(jaxpr) + sum(_depthwise_macs(*call) for call in calls)
    answer = jax.eval_shape(system.predict, variables, batch)
    if isinstance(answer, Masks):  # the class map at full size is part of the published figures
        macs += answer.class_logits.shape[1] * system.classes * math.prod(size)
    return Cost(
        size=size,
        windows=windows,
        parameters=sum(x.size for x in params),
        parameter_bytes=_bytes(params),
        macs=macs,
        macs_mmcv=_mmcv_macs(calls),
    )


def parameters(system: System) -> int:
    """The trained numbers of a system whose parameters no image size changes."""
    variables, _, _ = _inputs(system, (64, 64))
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def _said(answer: Any) -> Any:
    """The part of a prediction that costs the network something."""
    if isinstance(answer, Masks):
        return answer.class_logits, answer.mask_logits
    return answer.logits if isinstance(answer, Refined) else answer.scores


def activation_bytes(system: System, size: Size) -> int:
    """What the training step keeps of one image of `size` for its backward pass.

    An estimate: what automatic differentiation asks for, before the compiler fuses, drops or
    recomputes any of it.
    """
    variables, batch, rng = _inputs(system, size)

    def backward(variables: Any, batch: Any, rng: Any) -> Any:
        def objective(params: Any) -> Any:
            return system.loss({**variables, "params": params}, batch, rng)

        return jax.vjp(objective, variables["params"], has_aux=True)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, variables, batch, rng))
    # The parameters themselves are among it.
    return max(_bytes(kept) - _bytes(jax.tree.leaves(variables["params"])), 0)


def _inputs(system: System, size: Size) -> tuple[Any, Any, Any]:
    """Shapes of variables, of a batch of one, and of a random key."""
    batch = {
        "image": jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8),
        "semantic": jax.ShapeDtypeStruct((1, *size), jnp.int16),
    }
    table = (1, 100)
    batch |= {  # what systems that answer with masks train on
        "segments": jax.ShapeDtypeStruct((1, *size), jnp.int16),
        "segment_class": jax.ShapeDtypeStruct(table, jnp.int32),
        "segment_is_crowd": jax.ShapeDtypeStruct(table, jnp.bool_),
    }
    mask = jax.ShapeDtypeStruct((1, *size), jnp.uint8)
    batch |= {"coarse_mask": mask, "mask": mask}  # and those that sharpen masks
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(system.init, rng, batch), batch, rng


def _bytes(leaves: list[Any]) -> int:
    return sum(x.size * x.dtype.itemsize for x in leaves)


Call = tuple[nn.Module, Any, Any]
"""A module that ran, its first input and its output."""


def _trace(function: Callable[..., Any], *args: Any) -> tuple[core.Jaxpr, list[Call]]:
    """The jaxpr of a function and the modules that run in it, outer ones before inner ones."""
    calls: list[list[Any]] = []

    def record(next_call: Callable[..., Any], given: Any, options: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return next_call(*given, **options)
        entry = [context.module, given[0] if given else None, None]
        calls.append(entry)
        entry[2] = next_call(*given, **options)
        return entry[2]

    with nn.intercept_methods(record):
        jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return jaxpr, [tuple(entry) for entry in calls]


# --------------------------------------------------------------------------------------------------
# All convolutions and matrix products


def macs(function: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of the convolutions and matrix products that function(*args) depends on.

    Of the forms of an op for several backends the one for any backend counts, of alternatives
    (`lax.cond`) the dearest; a `while_loop` counts once, since nobody knows how often it runs.
    """
    return _jaxpr_macs(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_macs(jaxpr: core.Jaxpr) -> int:
    needed = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed.update(v for v in equation.invars if isinstance(v, core.Var))
            total += _equation_macs(equation)
    return total


def _equation_macs(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return equation.outvars[0].aval.size * depth
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return equation.outvars[0].aval.size * (kernel.size // features)
    inner = [_jaxpr_macs(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        platforms = params.get("branches_platforms")
        return max(inner) if platforms is None else inner[platforms.index(None)]
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inner(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _depthwise_macs(module: nn.Module, x: Any, out: Any) -> int:
    """Ours is made of shifted multiply-adds, which no jaxpr calls a convolution."""
    return module.kernel_size**2 * out.size if isinstance(module, DepthwiseConv) else 0


# --------------------------------------------------------------------------------------------------
# mmcv's counter


def _mmcv_macs(calls: list[Call]) -> int:
    """What mmcv 1.3's flops counter would print for the official modules.

    Convolutions count their multiply-adds and bias additions, linear layers their multiply-adds,
    norms two and ReLUs one per element. Attention, GELU, softmax, the painting and the
    weight-standardised convolutions and group norms of the stem are classes that it doesn't know.
    """
    total = 0
    unseen: tuple[str, ...] = ("",)
    for module, x, out in calls:
        if module.path[: len(unseen)] == unseen:
            continue
        if isinstance(module, vit.Attention):
            unseen = module.path
            # Segmenter's own blocks are made of linear layers, which it knows.
            total += 4 * x.size * x.shape[-1] * (module.path[0] == "decoder")
        elif isinstance(module, vit.PatchEmbed):
            total += out.size * (module.patch**2 * x.shape[-1] + 1)
        elif isinstance(module, DepthwiseConv):
            total += _depthwise_macs(module, x, out)
        elif isinstance(module, Conv):
            total += out.size * (module.kernel_size**2 * x.shape[-1] + module.use_bias)
        elif isinstance(module, PyramidPooling):  # its poolings read the map once each
            total += len(module.sizes) * x.size
        elif isinstance(module, setr.UpHead | setr.MLAHead):
            # Officially the classifier comes after the last enlargement.
            channels = module.features * (len(x) if isinstance(module, setr.MLAHead) else 1)
            total += out.size * (module.factor**2 - 1) * (channels + 1)
        elif isinstance(module, nn.LayerNorm | LayerNorm):
            total += 2 * out.size
        elif isinstance(module, BatchNorm):  # a ReLU follows each, but for what follows here
            total += 3 * out.size
        elif isinstance(module, resnet.ResNet):  # its pooling reads the stem's map once
            wide = 2 * (module.stem_width or module.width) if module.deep_stem else module.width
            total += wide * math.prod(-(-side // 2) for side in x.shape[1:3]) * x.shape[0]
        elif isinstance(module, resnet.Bottleneck):  # no ReLU on the shortcut, but perhaps pooling
            total += module.project * (x.size * module.pool_shortcut - out.size)
        elif isinstance(module, hrnet.ConvNorm):
            total -= out.size * (not module.relu)
        elif isinstance(module, hrnet.BasicBlock):
            total += out.size
        elif isinstance(module, hrnet.Exchange):
            total += sum(branch.size for branch in out)
        elif isinstance(module, SeparableASPP):  # its pooling reads the map once
            total += x.size
        elif isinstance(module, nn.GroupNorm):  # unseen, but not the ReLU that follows each branch
            total += out.size * (module.name != "shortcut_norm")
        elif isinstance(module, nn.Dense):
            # `logits` is officially a 1x1 convolution with bias.
            total += out.size * (x.shape[-1] + (module.name == "logits"))
    return total


# --------------------------------------------------------------------------------------------------
# fvcore's counter


@dataclasses.dataclass(frozen=True)
class FvcoreFlops:
    """What fvcore's counter sees of a system that answers with masks; a multiply-add is one.

    Attributes:
        products: convolutions and matrix products, the class map at full size among them. Not among
            them are the logits of masked attention, which torch computes by an operator that the
            counter doesn't know.
        auxiliary_masks: of these, the masks that MaskFormer makes after all layers but the last.
            Only training needs them, but the official model makes all masks in one product.
        norms: per number, 2 for a batch norm and 5 for a layer or group norm.
        sampling: 4 for every number that deformable attention reads.
        resizes: 4 per number of a bilinear result, 1 of a nearest one.
    """

    products: int
    auxiliary_masks: int
    norms: int
    sampling: int
    resizes: int

    @property
    def total(self) -> int:
        """What the counter prints."""
        return self.products + self.norms + self.sampling + self.resizes

    @property
    def published(self) -> int:
        """What the papers' tables print: without the auxiliary masks."""
        return self.total - self.auxiliary_masks


def fvcore_flops(system: System, size: Size) -> FvcoreFlops:
    """What fvcore counts of the official MaskFormer or Mask2Former for one image of `size`.

    The network and the semantic result at the image's size, whatever the config's task. Softmax,
    activations, sums and poolings count nothing.

    Raises:
        SegjaxError: another system.
    """
    if not isinstance(system, mask2former.System | maskformer.System):
        raise SegjaxError(
            "fvcore's count is known of MaskFormer and Mask2Former only, not of"
            f" {type(system).__module__.rpartition('.')[2]}; use `of_system`."
        )
    variables, batch, _ = _inputs(system, size)
    # Of Mask2Former's auxiliary answers the tracer drops what the last one doesn't need.
    needed = slice(-1 if isinstance(system, mask2former.System) else 0, None)

    def answers(variables: Any, batch: Any) -> Any:
        outputs, _ = system.outputs(variables, batch)
        return outputs.class_logits[needed], outputs.mask_logits[needed]

    jaxpr, calls = _trace(answers, variables, batch)
    queries, classes = system.module.predictor.queries, system.classes
    padded = math.prod(covered(system, batch))
    products = _jaxpr_macs(jaxpr) + queries * classes * padded
    # The masks are resized to the padded image, and the class map to the image.
    resizes = 4 * queries * padded + 4 * classes * math.prod(size)
    norms = sampling = auxiliary = 0
    for module, x, out in calls:
        if isinstance(module, BatchNorm | FrozenBatchNorm):
            norms += 2 * out.size
        elif isinstance(module, nn.LayerNorm | LayerNorm | nn.GroupNorm):
            norms += 5 * out.size
        elif isinstance(module, FPNPixelDecoder):
            finer = sum(math.prod(x[name].shape[1:3]) for name in ("res2", "res3", "res4"))
            resizes += finer * module.features
        elif isinstance(module, MSDeformPixelDecoder):
            fine, maps = out
            resizes += 4 * math.prod(fine.shape[1:3]) * module.features
            reads = module.layers * module.points * len(maps)
            sampling += 4 * reads * sum(level.size for level in maps)
        elif isinstance(module, maskformer.Predictor):
            auxiliary += sum(masks.size for masks in out[1][:-1]) * module.mask_features
        elif isinstance(module, mask2former.MaskedDecoder) and module.masked:
            for i in range(module.layers):
                looks = queries * math.prod(x[i % len(x)].shape[1:3])
                resizes += 4 * looks  # the mask of the attention
                # Its logits; and our form sums the weights of each head by a product.
                products -= looks * (module.width + module.heads)
    return FvcoreFlops(products, auxiliary, norms, sampling, resizes)
