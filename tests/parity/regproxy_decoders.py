"""The decoders that RegProxy is compared with: SETR's and UPerNet's, on maps of a backbone.

As in `regproxy.py`, every function takes (args, tensors, inputs) of a case and gives its outputs.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from segjax import importers
from segjax.decoders.upernet import MultiLevelNeck, UPerHead
from segjax.systems import setr
from tests.parity.regproxy import Args, Arrays, Outputs, nchw, nhwc


def setr_head(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    fields = ("num_classes", "channels", "num_convs", "kernel_size", "up_scale")
    head = setr.UpHead(*(args[field] for field in fields))
    x = nhwc(inputs["x0"])

    class Model(nn.Module):
        def setup(self) -> None:
            self.head = head.clone()

        def __call__(self, x: jax.Array) -> jax.Array:
            return setr.enlarged(self.head(x, False), head.factor)

    return {"logits": nchw(run("setr", Model(), tensors, x))}


def setr_mla_neck_head(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    assert args["channels"] == 4 * args["mla_channels"]
    neck = setr.MLANeck(args["neck_channels"])
    head = setr.MLAHead(args["num_classes"], args["mla_channels"])
    return neck_and_head("setr", neck, head, tensors, inputs, head.factor, False)


def upernet_vit_neck_head(args: Args, tensors: Arrays, inputs: Arrays) -> Outputs:
    neck = MultiLevelNeck(args["neck_channels"], tuple(args["neck_scales"]))
    head = UPerHead(args["num_classes"], args["channels"], tuple(args["pool_scales"]))
    return neck_and_head("upernet_vit", neck, head, tensors, inputs, 1)


def neck_and_head(
    layout: str,
    neck: nn.Module,
    head: nn.Module,
    tensors: Arrays,
    inputs: Arrays,
    factor: int,
    *neck_args: Any,
) -> Outputs:
    maps = [nhwc(inputs[f"x{i}"]) for i in range(4)]

    class Both(nn.Module):
        def setup(self) -> None:
            self.neck, self.head = neck.clone(), head.clone()

        def __call__(self, maps: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
            levels = self.neck(maps, *neck_args)
            return levels, setr.enlarged(self.head(levels, False), factor)

    levels, scores = run(layout, Both(), tensors, maps)
    return {f"neck{i}": nchw(x) for i, x in enumerate(levels)} | {"logits": nchw(scores)}


def run(layout: str, model: nn.Module, tensors: Arrays, x: Any) -> Any:
    expected = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.jit(model.apply)(importers.to_variables(layout, tensors, expected), x)


RUNNERS = {
    "regproxy.setr.head": setr_head,
    "regproxy.setr_mla.neck_head": setr_mla_neck_head,
    "regproxy.upernet_vit.neck_head": upernet_vit_neck_head,
}
