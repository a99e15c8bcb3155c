"""What segjax's CascadePSP is measured against: the network, and its global and local steps, in
PyTorch, as a PyTorch user would write them.

Modules are called as in the published files (github.com/hkchengrex/CascadePSP), so weights load by
name. Importing this module needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segjax import importers
from segjax.bench import torch_regproxy
from segjax.bench.torch_hssn import Bottleneck, ConvNorm
from segjax.systems.cascade_psp import (
    MARGIN,
    crops_of,
    filled_up,
    is_dull,
    parts_of,
    reduced_size,
)
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD


def enlarged(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """A ResNet of output stride 8 -> the last stage, the raw stem and the first stage."""

    def __init__(self, inputs: int, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, (depth, stride, dilation) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4))):
            inner, blocks = width * 2**stage, []
            for block in range(depth):
                step, shortcut = 1, None
                if block == 0:
                    step, shortcut = stride, ConvNorm(inputs, 4 * inner, 1, stride)
                blocks.append(Bottleneck(inputs, inner, step, dilation if block else 1, shortcut))
                inputs = 4 * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem = self.conv1(x)
        x = F.max_pool2d(F.relu(self.bn1(stem)), 3, 2, 1)
        first = self.layer1(x)
        return self.layer4(self.layer3(self.layer2(first))), stem, first


class Pyramid(nn.Module):
    def __init__(self, channels: int, features: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(channels, channels, 1, bias=False))
            for size in sizes
        )
        self.bottleneck = nn.Conv2d((len(sizes) + 1) * channels, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        grids = [
            F.interpolate(stage(x), size=x.shape[2:], mode="bilinear", align_corners=False)
            for stage in self.stages
        ]
        return F.relu(self.bottleneck(torch.cat([*grids, x], dim=1)))


def unit(inputs: int, features: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, features, 3, padding=1),
    ]


class UpBlock(nn.Module):
    def __init__(self, inputs: int, finer: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*unit(inputs + finer, features), *unit(features, features))
        self.conv2 = nn.Sequential(*unit(features, features), *unit(features, features))
        self.shortcut = nn.Conv2d(inputs, features, 1)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = enlarged(x, 2)
        y = self.conv(torch.cat([x, finer], dim=1)) + self.shortcut(x)
        return y + self.conv2(y)


def head(inputs: int, features: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, features, 1), nn.ReLU(True), nn.Conv2d(features, 1, 1))


class CascadePSP(nn.Module):
    """Attributes as those of `systems.cascade_psp.CascadePSP`."""

    def __init__(
        self,
        *,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        features: int = 1024,
        up_features: Sequence[int] = (512, 256, 32),
        head_features: int = 32,
        sizes: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        first, second, third = up_features
        self.feats = Encoder(6, width, depths)
        self.psp = Pyramid(32 * width, features, sizes)
        self.up_1 = UpBlock(features, 4 * width, first)
        self.up_2 = UpBlock(first, width, second)
        self.up_3 = UpBlock(second, 3, third)
        self.final_28 = head(features, head_features)
        self.final_56 = head(first, head_features)
        self.final_11 = nn.Conv2d(third + 3, head_features, 1)
        self.final_21 = nn.Conv2d(head_features, 1, 1)

    def forward(self, image: Tensor, coarse: Tensor, stride8: Tensor | None = None) -> tuple:
        """Image [B, 3, H, W] and masks [B, 1, H, W] -> the final logits, and the last pass's at
        stride 4, enlarged; all passes, or without the first."""
        if stride8 is None:
            x, *_ = self.feats(torch.cat([image, coarse, coarse, coarse], dim=1))
            stride8 = torch.tanh(enlarged(self.final_28(self.psp(x)), 8))
        x, _, finer = self.feats(torch.cat([image, coarse, stride8, stride8], dim=1))
        x = self.psp(x)
        stride8 = torch.tanh(enlarged(self.final_28(x), 8))
        stride4 = torch.tanh(enlarged(self.final_56(self.up_1(x, finer)), 4))
        x, stem, finer = self.feats(torch.cat([image, coarse, stride8, stride4], dim=1))
        x = self.up_1(self.psp(x), finer)
        stride4 = enlarged(self.final_56(x), 4)
        x = torch.cat([self.up_3(self.up_2(x, stem), image), image], dim=1)
        return self.final_21(F.relu(self.final_11(x))), stride4


def load(system: Any, variables: Any) -> CascadePSP:
    """The network of a `systems.cascade_psp.System` with its weights, in evaluation mode."""
    ours = system.module
    model = CascadePSP(
        width=ours.backbone.width,
        depths=ours.backbone.depths,
        features=ours.features,
        up_features=ours.up_features,
        head_features=ours.head_features,
        sizes=ours.sizes,
    )
    return torch_regproxy.load(model, importers.to_published("cascade_psp", variables)).eval()


# --------------------------------------------------------------------------------------------------
# Large images


def probabilities(model: CascadePSP, image: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
    """Both outputs of maps of any size."""
    height, width = image.shape[2:]
    tall, wide = filled_up((height, width))
    more = (0, wide - width, 0, tall - height)
    outputs = model(F.pad(image, more), *(F.pad(mask, more, value=-1.0) for mask in masks))
    return tuple(output.sigmoid()[:, :, :height, :width] for output in outputs)


@torch.inference_mode()
def refine(
    model: CascadePSP, image: np.ndarray, mask: np.ndarray, side: int = 900, stride: int = 450
) -> np.ndarray:
    """The research script's steps: uint8 [H, W, 3] and [H, W] -> float32 [H, W]."""
    size = mask.shape
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((torch.tensor(image).permute(2, 0, 1).float() - mean) / std)[None]
    coarse = torch.tensor(mask)[None, None].float() / 127.5 - 1.0
    small = pixels, coarse
    if max(size) > side:
        smaller = reduced_size(size, side / max(size))
        small = tuple(F.adaptive_avg_pool2d(x, smaller) for x in small)
    whole, whole4 = (
        F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        for x in probabilities(model, *small)
    )
    inside = (whole > 0.5).float()
    summed, counted = torch.zeros_like(whole), torch.zeros_like(whole)
    for corner in crops_of(size, side, stride - 2 * MARGIN):
        here, kept, inner = ((..., *part) for part in parts_of(corner, side, size))
        if is_dull(inside[here].numpy()):
            continue
        found, _ = probabilities(model, pixels[here], 2 * inside[here] - 1, 2 * whole4[here] - 1)
        summed[kept] += found[inner]
        counted[kept] += 1
    return torch.where(counted > 0, summed / counted.clamp(min=1), inside)[0, 0].numpy()
