"""RegProxy in PyTorch, as a PyTorch user would write it: what `segjax bench` measures against.

Modules are called as in the released files (github.com/YiF-Zhang/RegionProxy), so weights load by
name. Importing this module needs torch; the rest of `segjax.bench` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segjax.structs import IGNORE, Size


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"attn": Attention(width, heads)})
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        fc1 = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        fc2 = nn.Linear(4 * width, width)
        self.ffn = nn.ModuleDict({"layers": nn.Sequential(fc1, fc2)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn["attn"](self.ln1(x))
        return x + self.ffn["layers"](self.ln2(x))


class ViT(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + tokens, width))
        self.layers = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.ln1 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, image: Tensor, early_block: int) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> the early and the last map, both [B, C, Ht, Wt]."""
        x = self.patch_embed["projection"](image)
        batch, width, rows, cols = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1) + self.pos_embed
        early = x
        for index, block in enumerate(self.layers):
            x = block(x)
            if index == early_block:
                early = x
        return tuple(
            level[:, 1:].transpose(1, 2).reshape(batch, width, rows, cols)
            for level in (early, self.ln1(x))
        )


class ConvNorm(nn.Module):
    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Head(nn.Module):
    def __init__(self, width: int, classes: int, region: Size) -> None:
        super().__init__()
        self.region = region
        separable = nn.Sequential()
        separable.add_module("depthwise_conv", ConvNorm(width, 3, width))
        separable.add_module("pointwise_conv", ConvNorm(width, 1, 1))
        logits = nn.ModuleDict({"conv": nn.Conv2d(width, 9 * region[0] * region[1], 1)})
        self.affinity_head = nn.ModuleList([separable, logits])
        self.mlp = nn.ModuleList([nn.ModuleList([nn.Linear(width, classes)])])

    def forward(self, early: Tensor, last: Tensor) -> Tensor:
        """Two maps [B, C, Ht, Wt] -> painted scores [B, K, Ht*h, Wt*w]."""
        separable, logits = self.affinity_head
        affinity = logits["conv"](separable(early))
        scores = self.mlp[0][0](last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return paint(scores, affinity, self.region)


def paint(scores: Tensor, affinity: Tensor, region: Size) -> Tensor:
    """Class scores [B, K, Ht, Wt] and affinity logits [B, 9*h*w, Ht, Wt] -> [B, K, Ht*h, Wt*w]."""
    batch, classes, rows, cols = scores.shape
    inside = F.unfold(torch.ones_like(scores[:1, :1]), 3, padding=1) > 0
    affinity = affinity.reshape(batch, 9, *region, rows, cols)
    affinity = affinity.masked_fill(~inside.reshape(1, 9, 1, 1, rows, cols), -torch.inf)
    near = F.unfold(scores, 3, padding=1).reshape(batch, classes, 9, rows, cols)
    painted = torch.einsum("bnxyij,bknij->bkixjy", affinity.softmax(dim=1), near)
    return painted.reshape(batch, classes, rows * region[0], cols * region[1])


class RegProxy(nn.Module):
    """[B, 3, H, W] -> painted scores [B, K, h, w]."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        tokens: int,
        classes: int,
        early_block: int,
        region: Size,
    ) -> None:
        super().__init__()
        self.early_block = early_block
        self.backbone = ViT(width, depth, heads, patch, tokens)
        self.decode_head = Head(width, classes, region)

    def forward(self, image: Tensor) -> Tensor:
        return self.decode_head(*self.backbone(image, self.early_block))


def load(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """The model with the weights of a published file (names as there)."""
    state = {name: torch.tensor(np.array(value)) for name, value in tensors.items()}
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict(counters | state)
    return model


def loss(painted: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy at the labels' resolution, the mean over all pixels."""
    logits = F.interpolate(painted, size=labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / labels.numel()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    image: Tensor,
    labels: Tensor,
    loss: Callable[[Any, Tensor], Tensor] = loss,
) -> Tensor:
    """One step; the loss."""
    optimizer.zero_grad(set_to_none=True)
    value = loss(model(image), labels)
    value.backward()
    optimizer.step()
    return value.detach()


@torch.inference_mode()
def predict(
    model: nn.Module,
    photo: np.ndarray,
    inner: Size,
    crop: Size,
    stride: Size,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: str = "cpu",
) -> np.ndarray:
    """Sliding windows as mmsegmentation and RegProxy lay them, logits averaged and resized.

    Args:
        model: in evaluation mode.
        photo: uint8 [H, W, 3] RGB.
        inner: (height, width) that it is resized to.
        crop, stride: of the windows; what the image doesn't fill is zero after normalisation.
        mean, std: per channel.

    Returns:
        int64 [H, W].
    """
    small = cv2.resize(photo, inner[::-1], interpolation=cv2.INTER_LINEAR)
    pixels = (small.astype(np.float32) - np.float32(mean)) / np.float32(std)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
    total, count = 0.0, torch.zeros(1, 1, *inner, device=device)
    for top, left in _windows(inner, crop, stride):
        part = image[..., top : top + crop[0], left : left + crop[1]]
        rows, cols = part.shape[2:]
        window = F.pad(part, (0, crop[1] - cols, 0, crop[0] - rows))
        logits = F.interpolate(model(window), size=crop, mode="bilinear", align_corners=False)
        place = (left, inner[1] - left - cols, top, inner[0] - top - rows)
        total = total + F.pad(logits[..., :rows, :cols].float(), place)
        count[..., top : top + rows, left : left + cols] += 1
    logits = F.interpolate(
        total / count, size=photo.shape[:2], mode="bilinear", align_corners=False
    )
    return logits.argmax(dim=1)[0].cpu().numpy()


def _windows(size: Size, crop: Size, stride: Size) -> list[tuple[int, int]]:
    starts = [
        [max(min(k * s + c, n) - c, 0) for k in range(max(n - c + s - 1, 0) // s + 1)]
        for n, c, s in zip(size, crop, stride)
    ]
    return [(top, left) for top in starts[0] for left in starts[1]]
