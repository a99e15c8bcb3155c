"""What a model costs: parameters, multiply-adds and memory, from shapes alone. No array is made.

Two counts of multiply-adds exist in the literature, and both are given: all of those in
convolutions and matrix products (what the hardware does), and those that mmcv's counter sees, which
the tables of the 2021-22 papers print. The latter leaves out all of attention, its projections
included, and the convolutions of hybrid stems; for a small ViT it is a third of the truth.
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
from segjax.backbones import vit
from segjax.backbones.layers import BatchNorm, Conv, DepthwiseConv, LayerNorm
from segjax.decoders.psp import PyramidPooling
from segjax.inference.windows import starts
from segjax.structs import Size, System
from segjax.systems import setr


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
    return of_system(systems.build(config["model"]), size, windows)


def of_system(system: System, size: Size, windows: int = 1) -> Cost:
    """The cost of a system for one image of `size`."""
    variables, batch, _ = _inputs(system, size)
    jaxpr, calls = _trace(lambda *given: system.predict(*given).scores, variables, batch)
    params = jax.tree.leaves(variables["params"])
    return Cost(
        size=size,
        windows=windows,
        parameters=sum(x.size for x in params),
        parameter_bytes=_bytes(params),
        macs=_jaxpr_macs(jaxpr) + sum(_depthwise_macs(*call) for call in calls),
        macs_mmcv=_mmcv_macs(calls),
    )


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
        elif isinstance(module, BatchNorm):  # a ReLU follows each
            total += 3 * out.size
        elif isinstance(module, nn.GroupNorm):  # unseen, but not the ReLU that follows each branch
            total += out.size * (module.name != "shortcut_norm")
        elif isinstance(module, nn.Dense):
            # `logits` is officially a 1x1 convolution with bias.
            total += out.size * (x.shape[-1] + (module.name == "logits"))
    return total
