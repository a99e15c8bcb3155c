"""What `segjax bench crm` measures against: CRM in PyTorch, as a PyTorch user would write it, and
the loop over resolutions as its authors release it.

Modules are called as in the released file (github.com/dvlab-research/Entity), so weights load by
name. Importing this module needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segjax.systems import crm as ours

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

CHUNK = 16 * 224 * 224
"""Pixels that are asked for at a time."""


# --------------------------------------------------------------------------------------------------
# The encoder


class Bottleneck(nn.Module):
    def __init__(self, before: int, inner: int, stride: int, dilation: int) -> None:
        super().__init__()
        after = 4 * inner
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Encoder(nn.Module):
    """A ResNet at stride 8. With `whole` it runs a fourth stage too, as the released code does,
    whose output nobody reads."""

    def __init__(self, width: int, depths: Sequence[int], whole: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.whole = whole
        depths = [*depths, 3] if whole else depths
        before = width
        for i, (depth, stride, dilation) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4))):
            inner, blocks = width * 2**i, []
            for block in range(depth):
                step, apart = (1, dilation) if block else (stride, 1)
                blocks.append(Bottleneck(before, inner, step, apart))
                before = 4 * inner
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem = self.relu(self.bn1(self.conv1(x)))
        first = self.layer1(self.maxpool(stem))
        third = self.layer3(self.layer2(first))
        if self.whole:
            self.layer4(third)
        return stem, first, third


# --------------------------------------------------------------------------------------------------
# Alignment and implicit function


class Projection(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.atrous_conv = nn.Conv2d(before, after, 1, bias=False)
        self.bn = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.atrous_conv(x)))


class Alignment(nn.Module):
    NAMES = ("128", "256", "1024")

    def __init__(self, width: int, projected: Sequence[int], features: int) -> None:
        super().__init__()
        for name, before, after in zip(self.NAMES, (width, 4 * width, 16 * width), projected):
            self.add_module(f"aspp1_{name}", Projection(before, after))
            self.add_module(f"bn1_{name}", nn.BatchNorm2d(after))
        self.last_conv = nn.Sequential(
            nn.Conv2d(sum(projected), features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        size, maps = levels[0].shape[2:], []
        for x, name in zip(levels, self.NAMES):
            x = F.relu(getattr(self, f"bn1_{name}")(getattr(self, f"aspp1_{name}")(x)))
            if maps:
                x = F.interpolate(x, size, mode="bilinear", align_corners=True)
            maps.append(x)
        return self.last_conv(torch.cat(maps, dim=1))


class ImplicitNetwork(nn.Module):
    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before in [features + 6] + [hidden] * (layers - 2):
            parts += [nn.Linear(before, hidden), nn.ReLU()]
        self.layers = nn.Sequential(*parts, nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def centres(n: int) -> Tensor:
    """The centres of n cells that fill -1..1."""
    return (2 / n) * torch.arange(n).float() + (1 / n - 1)


class CRM(nn.Module):
    """Args:
    like: ours, of the same widths and depths, with both of the paper's parts.
    whole: see `Encoder`.
    """

    def __init__(self, like: ours.CRM, whole: bool = True) -> None:
        super().__init__()
        width = like.backbone.width
        self.feats = Encoder(width, like.backbone.depths, whole)
        self.aspp_ = Alignment(width, like.projected, like.features)
        self.imnet = ImplicitNetwork(like.features, like.hidden, like.layers)

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """[B, 3, H, W] and [B, 1, H, W], normalised -> [B, 256, H / 2, W / 2]."""
        return self.aspp_(self.feats(torch.cat([image, mask], dim=1)))

    def ask(self, features: Tensor, coord: Tensor, cell: Tensor) -> Tensor:
        """Points [B, Q, 2] (y, x) and the sizes of their pixels -> logits [B, Q, 1]."""
        batch, _, height, width = features.shape
        size = torch.tensor([height, width])
        grid = torch.stack(torch.meshgrid(centres(height), centres(width), indexing="ij"))
        grid = grid[None].expand(batch, -1, -1, -1)
        answers, areas = [], []
        for down in (-1, 1):
            for across in (-1, 1):
                moved = coord.clone()
                moved[..., 0] += down / height + 1e-6
                moved[..., 1] += across / width + 1e-6
                moved = moved.clamp(-1 + 1e-6, 1 - 1e-6).flip(-1)[:, None]

                def nearest(x: Tensor, at: Tensor = moved) -> Tensor:
                    found = F.grid_sample(x, at, mode="nearest", align_corners=False)
                    return found[:, :, 0].permute(0, 2, 1)

                away = (coord - nearest(grid)) * size
                x = torch.cat([nearest(features), away, coord, cell * size], dim=-1)
                answers.append(self.imnet(x.reshape(-1, x.shape[-1])).reshape(batch, -1, 1))
                areas.append(away.prod(dim=-1, keepdim=True).abs() + 1e-9)
        total = sum(areas)
        return sum(answer * (area / total) for answer, area in zip(answers, areas[::-1]))


# --------------------------------------------------------------------------------------------------
# The loop


def normalised(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 [H, W, 3] and [H, W] -> [1, 3, H, W] and [1, 1, H, W]."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    colours = torch.tensor(image).permute(2, 0, 1).float() / 255
    coarse = torch.tensor(mask).float()[None, None] / 255
    return ((colours - mean) / std)[None], (coarse - 0.5) / 0.5


@torch.no_grad()
def refined(
    model: CRM,
    image: np.ndarray,
    mask: np.ndarray,
    scales: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
    pad: int = 32,
    chunk: int = CHUNK,
) -> Iterator[np.ndarray]:
    """The probability, float32 [H, W], after each turn."""
    colours, current = (F.pad(x, [pad] * 4, mode="reflect") for x in normalised(image, mask))
    height, width = current.shape[2:]
    coord = torch.stack(torch.meshgrid(centres(height), centres(width), indexing="ij"), dim=-1)
    coord = coord.reshape(1, -1, 2)
    cell = torch.ones_like(coord) * torch.tensor([2 / height, 2 / width])
    for scale in scales:
        size = round(height * scale), round(width * scale)
        small = [
            F.interpolate(x, size, mode="bilinear", align_corners=True) for x in (colours, current)
        ]
        features = model.encode(*small)
        parts = zip(coord.split(chunk, dim=1), cell.split(chunk, dim=1))
        chance = torch.cat([model.ask(features, *part).sigmoid() for part in parts], dim=1)
        chance = chance.reshape(1, 1, height, width)
        if (current + 1).sum() < 2:
            chance = torch.zeros_like(chance)
        yield chance[0, 0, pad : height - pad, pad : width - pad].numpy()
        current = (chance - 0.5) * 2


def load(tensors: Mapping[str, np.ndarray], whole: bool, like: ours.CRM) -> CRM:
    """The network with the tensors of a released file, in evaluation. A fourth stage that the file
    lacks stays as it starts."""
    model = CRM(like, whole).eval()
    bare = {name.removeprefix("module."): torch.tensor(x) for name, x in tensors.items()}
    wanted = model.state_dict()
    fitting = {name: x for name, x in bare.items() if name in wanted}
    missing, _ = model.load_state_dict(fitting, strict=False)
    spare = ("feats.layer4.", "num_batches_tracked")
    if wrong := [name for name in missing if not any(part in name for part in spare)]:
        raise ValueError(f"the tensors lack {wrong[0]} and {len(wrong) - 1} more")
    return model
