"""CascadePSP's rows of the CRM cases.

Every function takes (args, tensors, inputs) of a case and gives its outputs. Maps are NCHW on both
sides; weights pass the library's importer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from segjax import importers
from segjax.losses import refinement
from segjax.systems import cascade_psp
from tests.parity.regproxy import Args, Arrays, Outputs, nchw, nhwc
from tests.parity.weights import Case


def system_of(args: Args, tensors: Arrays, **fields: Any) -> tuple[cascade_psp.System, Any]:
    """The system and its variables."""
    system = cascade_psp.build(backbone=args["backbone"], **fields)
    expected = jax.eval_shape(lambda: system.init(jax.random.key(0), {}))
    return system, importers.to_variables("cascade_psp", tensors, expected)


def one_channel(x: Any) -> Any:
    """[B, 1, H, W] <-> [B, H, W]."""
    return jnp.asarray(x)[:, 0] if np.ndim(x) == 4 else x[:, None]


def forward(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    system, variables = system_of(args, tensors)
    masks = [
        one_channel(inputs[name]) for name in ("seg", "inter_s8", "inter_s4") if name in inputs
    ]
    assert len(masks) == args["first_pass"]
    said = jax.jit(system.module.apply)(variables, nhwc(inputs["im"]), *masks)
    found8 = dict(zip(("out_28_3", "out_28_2", "out_28"), said.stride8[::-1]))
    found4 = dict(zip(("out_56_2", "out_56"), said.stride4[::-1]))
    logits = {name: one_channel(x) for name, x in {**found8, **found4}.items()}
    return logits | {
        "out_224": one_channel(said.logits),
        "pred_224": one_channel(jax.nn.sigmoid(said.logits)),
        "feats": nchw(said.levels["res5"]),
        "feats_s2": nchw(said.levels["stem_conv"]),
        "feats_s4": nchw(said.levels["res2"]),
        "psp": nchw(said.context),
        **{f"up_{i}": nchw(up) for i, up in enumerate(said.ups, start=1)},
    }


@contextmanager
def watched() -> Iterator[list[tuple[int, int]]]:
    """Sizes of the maps that the network is called with."""
    sizes = []

    def spied(call: Any) -> Any:
        def spy(module: Any, variables: Any, image: Any, *masks: Any) -> Any:
            sizes.append(image.shape[:2])
            return call(module, variables, image, *masks)

        return spy

    names = ("_globally", "_locally")
    calls = {name: spied(getattr(cascade_psp, name)) for name in names}
    with mock.patch.multiple(cascade_psp, **calls):
        yield sizes


def refined(system: cascade_psp.System, variables: Any, inputs: Arrays) -> Outputs:
    with watched() as sizes:
        *_, probability = system.turns(variables, inputs["image"], inputs["mask"])
    return {
        "pred": probability,
        "forward_calls": np.asarray(sizes),
        "result_u8": (probability * 255).astype(np.uint8),
    }


def highres(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    fields = dict(side=args["L"], stride=args["stride"])
    return refined(*system_of(args, tensors, **fields), inputs)


def single_pass(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    fields = dict(side=args["L"], min_side=args["min_size"], steps="global")
    return refined(*system_of(args, tensors, **fields), inputs)


def package(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    steps = "global" if args.get("fast", False) else "global_local"
    fields = dict(side=args["L"], steps=steps, variant="package")
    return refined(*system_of(args, tensors, **fields), inputs)


NAMES = ("out_224", "out_28", "out_56", "out_28_2", "out_28_3", "out_56_2")
"""The published names of `cascade_psp.LEVELS`."""


def loss(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    weights = cascade_psp.Weights(
        *(tuple(args[f"{name}_weight"]) for name in ("ce", "l1", "l2")), args["grad_weight"]
    )
    logits = tuple(one_channel(inputs[name]) for name in NAMES)
    truth = one_channel(inputs["gt"])

    def total(logits: tuple[jax.Array, ...]) -> Any:
        return cascade_psp.loss(logits, truth, weights)

    (value, scalars), slopes = jax.value_and_grad(total, has_aux=True)(logits)
    found = {"total_loss": value, "grad_loss": scalars["loss_gradient"]}
    for n, (level, x) in enumerate(zip(cascade_psp.LEVELS, logits)):
        terms = refinement.terms(x, truth)
        found |= {f"{name}_loss_s_{n}": term for name, term in terms._asdict().items()}
        found[f"loss_s_{n}"] = scalars[f"loss_{level}"]
    return found | {f"d_{name}": one_channel(slope) for name, slope in zip(NAMES, slopes)}


def within_one(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    """0 where no entry differs by more than 1: truncation next to an integer."""
    apart = np.abs(ours.astype(int) - theirs.astype(int)).max()
    return 0.0 if apart <= 1 else np.inf


def equal(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


RUNNERS = {
    "crm.cascadepsp.forward": forward,
    "crm.cascadepsp.highres": highres,
    "crm.cascadepsp.single_pass": single_pass,
    "crm.cascadepsp.package": package,
    "crm.cascadepsp.loss": loss,
}
JUDGES = {
    ("crm.cascadepsp.highres", "forward_calls"): equal,
    ("crm.cascadepsp.single_pass", "forward_calls"): equal,
    ("crm.cascadepsp.package", "result_u8"): within_one,
}
