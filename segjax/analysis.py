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
from segjax.backbones.layers import BatchNorm, DepthwiseConv
from segjax.structs import Size, System


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
        activation_bytes: estimate of what one training image keeps for the backward pass, before
            the compiler saves any of it.
    """

    size: Size
    windows: int
    parameters: int
    parameter_bytes: int
    macs: int
    macs_mmcv: int
    activation_bytes: int


def of_config(config: Mapping[str, Any]) -> Cost:
    """The cost of the model of a complete config, at its evaluation size."""
    settings = config["eval"]
    full = tuple(settings["scale"])[::-1]
    size, windows = full, 1
    if settings["mode"] == "slide":
        size = tuple(settings["crop"])
        windows = math.prod(
            max(side - crop + stride - 1, 0) // stride + 1
            for side, crop, stride in zip(full, size, settings["stride"])
        )
    return of_system(systems.build(config["model"]), size, windows)


def of_system(system: System, size: Size, windows: int = 1) -> Cost:
    """The cost of a system for one image of `size`."""
    batch = {
        "image": jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8),
        "semantic": jax.ShapeDtypeStruct((1, *size), jnp.int16),
    }
    rng = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(system.init, rng, batch)
    params = jax.tree.leaves(variables["params"])
    return Cost(
        size=size,
        windows=windows,
        parameters=sum(x.size for x in params),
        parameter_bytes=sum(x.size * x.dtype.itemsize for x in params),
        macs=macs(lambda *given: system.predict(*given).scores, variables, batch)
        + _depthwise_macs(system.predict, variables, batch),
        macs_mmcv=mmcv_macs(system.predict, variables, batch),
        activation_bytes=_residual_bytes(system, variables, batch, rng),
    )


# --------------------------------------------------------------------------------------------------
# All convolutions and matrix products


def macs(function: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of the convolutions and matrix products that function(*args) depends on.

    Of alternatives (`lax.cond`, one form per backend) the dearest counts; a `while_loop` counts
    once, since nobody knows how often it runs.
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
        return max(inner)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner)


def _inner(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _depthwise_macs(function: Callable[..., Any], *args: Any) -> int:
    """Of the depthwise convolutions, which are multiplications and additions of shifted maps."""
    return sum(
        module.kernel_size**2 * out.size
        for module, _, out in _calls(function, *args)
        if isinstance(module, DepthwiseConv)
    )


# --------------------------------------------------------------------------------------------------
# mmcv's counter


def mmcv_macs(function: Callable[..., Any], *args: Any) -> int:
    """What mmcv 1.3's flops counter would print for the official modules.

    Convolutions count their multiply-adds and bias additions, linear layers their multiply-adds,
    norms two and ReLUs one per element. Attention, GELU, softmax, the painting and the
    weight-standardised convolutions and group norms of the stem are classes that it doesn't know.
    """
    total = 0
    hidden: tuple[str, ...] = ()
    for module, x, out in _calls(function, *args):
        if hidden and module.path[: len(hidden)] == hidden:
            continue
        if isinstance(module, vit.Attention):
            hidden = module.path
        elif isinstance(module, vit.PatchEmbed):
            depth = module.patch**2 * x.shape[-1]
            total += out.size * depth + out.size
        elif isinstance(module, DepthwiseConv):
            total += module.kernel_size**2 * out.size
        elif isinstance(module, nn.LayerNorm):
            total += 2 * out.size
        elif isinstance(module, BatchNorm):  # a ReLU follows each
            total += 3 * out.size
        elif isinstance(module, nn.GroupNorm):  # unseen, but not the ReLU that follows each branch
            total += out.size * (module.name != "shortcut_norm")
        elif isinstance(module, nn.Dense):
            total += out.size * x.shape[-1]
            if module.name == "logits":  # officially a 1x1 convolution with bias
                total += out.size
    return total


def _calls(function: Callable[..., Any], *args: Any) -> list[tuple[nn.Module, Any, Any]]:
    """(module, first input, output) of every module that runs, outer ones before inner ones."""
    calls = []

    def record(next_call: Callable[..., Any], given: Any, options: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return next_call(*given, **options)
        entry = [context.module, given[0] if given else None, None]
        calls.append(entry)
        entry[2] = next_call(*given, **options)
        return entry[2]

    with nn.intercept_methods(record):
        jax.eval_shape(function, *args)
    return [tuple(entry) for entry in calls]


# --------------------------------------------------------------------------------------------------
# Memory


def _residual_bytes(system: System, variables: Any, batch: Any, rng: Any) -> int:
    def backward(variables: Any, batch: Any, rng: Any) -> Any:
        def objective(params: Any) -> Any:
            return system.loss({**variables, "params": params}, batch, rng)

        return jax.vjp(objective, variables["params"], has_aux=True)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, variables, batch, rng))
    total = sum(x.size * x.dtype.itemsize for x in kept)
    params = jax.tree.leaves(variables["params"])
    return max(total - sum(x.size * x.dtype.itemsize for x in params), 0)
