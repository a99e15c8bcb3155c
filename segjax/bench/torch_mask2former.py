"""Mask2Former in PyTorch: the model and the loss of transformers, and results made of its masks the
official way. What `segjax bench mask2former` measures against.

Importing this module needs torch; transformers is imported when a model is made.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segjax import importers
from segjax.errors import SegjaxError
from segjax.structs import Size

# --------------------------------------------------------------------------------------------------
# The model


class Shape(NamedTuple):
    """Numbers of a Mask2Former on a Swin; the names are those of `systems.mask2former.build`."""

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    queries: int = 100
    layers: int = 9
    encoder_layers: int = 6
    features: int = 256
    hidden: int = 2048
    encoder_hidden: int = 1024
    points: int = 12_544


def transformers() -> ModuleType:
    """The package.

    Raises:
        SegjaxError: it, or SciPy, which its loss needs, is not installed.
    """
    try:
        import scipy  # noqa: F401
        import transformers
    except ImportError as error:
        raise SegjaxError(
            f"segjax bench mask2former measures beside transformers, whose loss needs scipy, and"
            f" {error.name} is not installed; run pip install 'segjax[test]'."
        ) from None
    return transformers


def model(shape: Shape, classes: int) -> nn.Module:
    """`Mask2FormerForUniversalSegmentation` of fresh weights, all moved a little, so that nothing
    is 0 or 1. Nothing is dropped in training."""
    package = transformers()
    backbone = package.SwinConfig(
        embed_dim=shape.width,
        depths=list(shape.depths),
        num_heads=list(shape.heads),
        window_size=shape.window,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        drop_path_rate=0.0,
    )
    config = package.Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=shape.queries,
        num_labels=classes,
        decoder_layers=shape.layers + 1,
        encoder_layers=shape.encoder_layers,
        feature_size=shape.features,
        mask_feature_size=shape.features,
        hidden_dim=shape.features,
        encoder_feedforward_dim=shape.encoder_hidden,
        dim_feedforward=shape.hidden,
        train_num_points=shape.points,
    )
    torch.manual_seed(0)
    found = package.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return found.eval()


def tensors(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights as a file on the hub has them: its names are not those in memory."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        model.save_pretrained(folder)
        return importers.read(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging = transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# --------------------------------------------------------------------------------------------------
# The training step


class Targets(NamedTuple):
    """As transformers wants them, one entry per image: masks float32 [S, H, W] and classes int64
    [S]."""

    masks: list[Tensor]
    classes: list[Tensor]


class Draws(NamedTuple):
    """Where masks are compared, as (x, y) in [0, 1]^2: one for all masks of an image [B, P, 2], and
    two for each of S targets [B, S, ., 2], see `segjax.systems.mask2former.Points`."""

    match: np.ndarray
    candidates: np.ndarray
    uniform: np.ndarray


def loss(model: nn.Module, image: Tensor, targets: Targets) -> Tensor:
    """Of all predictions, weighted; matched by SciPy on the host."""
    return model(image, mask_labels=targets.masks, class_labels=targets.classes).loss


def loss_and_slope(
    model: nn.Module, image: Tensor, targets: Targets, points: Sequence[Draws]
) -> tuple[float, float]:
    """The loss at given points, and the length of its gradient, which is dropped.

    Args:
        model: of `model`, in training mode.
        image: float32 [B, 3, H, W].
        targets: of the images.
        points: what transformers would draw, for each prediction, the final one last.
    """
    pairs: list[tuple[Tensor, Tensor]] = []

    def remember(_: nn.Module, __: Any, matched: list[tuple[Tensor, Tensor]]) -> None:
        pairs[:] = matched

    def in_order() -> Iterator[np.ndarray]:
        for part in (points[-1], *points[:-1]):  # it charges the final one first
            yield from part.match[:, None]
            images = [number for number, (_, target) in enumerate(pairs) for _ in target]
            own = images, torch.cat([target for _, target in pairs]).numpy()
            yield part.candidates[own]
            yield part.uniform[own]

    draws = in_order()
    hook = model.criterion.matcher.register_forward_hook(remember)
    with mock.patch.object(torch, "rand", lambda *_, **to: torch.tensor(next(draws), **to)):
        value = loss(model, image, targets)
    hook.remove()
    value.backward()
    slopes = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return float(value.detach()), float(torch.stack(slopes).norm())


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, targets: Targets
) -> Tensor:
    """One step; returns the loss and leaves no gradients in memory."""
    value = loss(model, image, targets)
    value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value.detach()


# --------------------------------------------------------------------------------------------------
# Results, the official way: all masks at full size, then one query after another


def enlarged(masks: Tensor, padded: Size, inside: Size, size: Size) -> Tensor:
    """Mask logits [Q, h, w] to the padded image, cropped to the image, to the result [Q, H, W]."""
    wide = F.interpolate(masks[None], padded, mode="bilinear", align_corners=False)
    wide = wide[..., : inside[0], : inside[1]]
    if inside == size:
        return wide[0]
    return F.interpolate(wide, size, mode="bilinear", align_corners=False)[0]


def semantic(class_logits: Tensor, masks: Tensor) -> Tensor:
    """[Q, K + 1] and [Q, H, W] logits -> the best class of each pixel, int64 [H, W]."""
    shares = class_logits.softmax(dim=-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", shares, masks.sigmoid()).argmax(dim=0)


def panoptic(
    class_logits: Tensor,
    masks: Tensor,
    is_thing: Sequence[bool],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[tuple[int, float]]]:
    """The map int32 [H, W], 0 where there is no segment, and each segment's class and score. See
    `ops.panoptic.panoptic` for the rule."""
    scores, labels = class_logits.softmax(dim=-1).max(dim=-1)
    kept = (labels != class_logits.shape[1] - 1) & (scores > object_threshold)
    found = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    table: list[tuple[int, float]] = []
    stuff: dict[int, int] = {}
    if not kept.any():
        return found, table
    scores, labels, shares = scores[kept], labels[kept], masks[kept].sigmoid()
    winner = (scores[:, None, None] * shares).argmax(dim=0)
    for query, (label, score) in enumerate(zip(labels.tolist(), scores.tolist())):
        won, half = winner == query, shares[query] >= 0.5
        drawn = won & half
        area, whole = int(won.sum()), int(half.sum())
        if not (area and whole and drawn.any()) or area / whole < overlap_threshold:
            continue
        number = stuff.get(label)
        if number is None:
            table.append((label, score))
            number = len(table)
            if not is_thing[label]:
                stuff[label] = number
        found[drawn] = number
    return found, table


class Found(NamedTuple):
    """Instances: scores float32 [N], classes and queries int64 [N], masks bool [N, H, W]."""

    scores: Tensor
    classes: Tensor
    queries: Tensor
    masks: Tensor


def instances(class_logits: Tensor, masks: Tensor, topk: int) -> Found:
    """The `topk` most probable pairs of a query and a class; see `ops.panoptic.instances`."""
    shares = class_logits.softmax(dim=-1)[:, :-1]
    best, pairs = shares.flatten().topk(topk, sorted=False)
    queries, classes = pairs // shares.shape[1], pairs % shares.shape[1]
    chosen = masks[queries]
    held = chosen > 0
    certainty = (chosen.sigmoid() * held).sum(dim=(1, 2)) / (held.sum(dim=(1, 2)) + 1e-6)
    return Found(best * certainty, classes, queries, held)


def processor() -> Any:
    """What makes results in transformers; from 5.0 on the usual class asks for torchvision, which
    results don't need."""
    package = transformers()
    without = getattr(package, "Mask2FormerImageProcessorPil", None)
    return (without or package.Mask2FormerImageProcessor)()


def said(class_logits: Tensor, masks: Tensor) -> Any:
    """[Q, K + 1] and [Q, h, w] logits of one image as the processor reads a model's outputs."""
    return SimpleNamespace(
        class_queries_logits=class_logits[None], masks_queries_logits=masks[None]
    )
