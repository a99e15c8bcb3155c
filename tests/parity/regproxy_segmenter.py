"""Segmenter's rows; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import importers
from segjax.inference import runner
from segjax.ops import resize
from segjax.systems import segmenter
from tests.parity.regproxy import nchw, nhwc


def make_system(
    args: dict[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[segmenter.System, Any]:
    """The system of the args, as deep as the checkpoint, and the checkpoint's variables."""
    system = segmenter.build(
        classes=args["num_classes"],
        backbone=args["backbone"].replace("vit_t16", "vit_ti16"),
        decoder=args["decoder"],
        image_size=tuple(args["img_size"]),
        distilled=args.get("distilled", False),
    )
    blocks = {m[1] for name in tensors if (m := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    assert len(blocks) == args.get("num_layers", len(blocks))
    backbone = system.module.backbone.clone(depth=len(blocks), parent=None)
    system = segmenter.System(system.module.clone(backbone=backbone, parent=None))
    image = jax.ShapeDtypeStruct((1, *args["img_size"], 3), jnp.float32)
    expected = jax.eval_shape(system.init, jax.random.key(0), {"image": image})
    return system, importers.to_variables("segmenter", tensors, expected)


def forward(
    args: dict[str, Any], tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    system, variables = make_system(args, tensors)
    image = nhwc(inputs["img"])
    height, width = image.shape[1:3]

    @jax.jit
    def run(variables: Any, image: jax.Array) -> tuple[jax.Array, segmenter.Semantic]:
        backbone = {"params": variables["params"]["backbone"]}
        tokens = system.module.backbone.clone(parent=None).apply(backbone, image)["tokens"]
        return tokens, system.predict(variables, {"image": image})

    tokens, said = run(variables, image)
    return {
        "encoder": tokens,
        "masks_low": nchw(said.scores),
        "logits": nchw(resize.bilinear(said.scores, said.covers)[:, :height, :width]),
    }


def inference(
    args: dict[str, Any], tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    system, variables = make_system(args, tensors)
    images = [np.asarray(nhwc(inputs[f"img{i}"]))[0] for i in range(len(args["flips"]))]
    window, stride = args["window"], args["stride"]
    settings = dict(crop=(window, window), stride=(stride, stride), enlarge=True)
    size = tuple(args["ori_size"])
    prob = runner.infer_ready(
        system, variables, images, args["flips"], size, settings, "probabilities"
    )
    return {"prob": prob.transpose(2, 0, 1)}


RUNNERS = {"regproxy.segmenter.forward": forward, "regproxy.segmenter.inference": inference}
