"""What `segjax bench hssn` measures against: tree losses, DeepLabV3+ and OCRNet in PyTorch, as a
PyTorch user would write them.

Modules are called as in mmsegmentation's files (github.com/open-mmlab/mmsegmentation), so weights
load by name. Importing this module needs torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segjax.bench import torch_regproxy
from segjax.ops.hierarchy import EPSILON, Tree
from segjax.structs import IGNORE

# --------------------------------------------------------------------------------------------------
# Tree losses

CHUNK = 2**24
"""Most bytes of one tensor [V, V, pixels] of `masked_broadcast`, of which several live at a time.
For a whole image of 512 x 1024 it would have 1.4 GB with 26 nodes and 46 GB with 148, and on a CPU
parts are faster."""

Scores = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Probabilities [B, V, pixels] -> what each node scores where it is true, and where it is false."""


def masked_broadcast(tree: Tree, device: str) -> Scores:
    """Every node beside every node, [B, V, V, pixels], masked to ancestors and to descendants, and
    the extremum over one axis."""
    under = np.eye(tree.nodes, dtype=bool)
    for path in tree.paths:
        for level, node in enumerate(path):
            under[node, path[: level + 1]] = True
    is_under = torch.tensor(under, device=device)[None, :, :, None]
    is_over = is_under.transpose(1, 2)

    def scores(p: Tensor) -> tuple[Tensor, Tensor]:
        beside = p[:, None].expand(-1, tree.nodes, -1, -1)
        lowest = beside.masked_fill(~is_over, 2.0).amin(dim=2)
        return lowest, beside.masked_fill(~is_under, -1.0).amax(dim=2)

    return scores


def by_parents(tree: Tree, device: str) -> Scores:
    """Level by level, one parent after another: the fast way in PyTorch."""
    parents = [torch.tensor(parent, device=device) for parent in tree.parents]
    families = [
        [torch.tensor(family, device=device) for family in tree.families(level)]
        for level in range(len(tree.parents))
    ]

    def scores(p: Tensor) -> tuple[Tensor, Tensor]:
        levels = p.split(tree.sizes, dim=1)
        lowest, highest = [levels[-1]], [levels[0]]
        for own, parent in zip(levels[-2::-1], parents[::-1]):
            lowest.insert(0, torch.minimum(own, lowest[0][:, parent]))
        for own, children in zip(levels[1:], families):
            below = [highest[-1][:, family].amax(dim=1) for family in children]
            highest.append(torch.maximum(own, torch.stack(below, dim=1)))
        return torch.cat(lowest, dim=1), torch.cat(highest, dim=1)

    return scores


def tree_loss(
    logits: Tensor, labels: Tensor, tree: Tree, gamma: float, scores: Scores, pixels: int
) -> tuple[Tensor, Tensor]:
    """See `ops.hierarchy.tree_min_loss`.

    Args:
        logits: [B, V, h, w].
        labels: int64 [B, H, W].
        tree: of V nodes.
        gamma: the focal exponent.
        scores: how extrema are found.
        pixels: of each image that are worked on at a time.

    Returns:
        The sum over pixels, and its gradient in the logits.
    """
    start = logits.detach().requires_grad_()
    wide = F.interpolate(start, size=labels.shape[1:], mode="bilinear", align_corners=False)
    z = wide.detach().flatten(2)
    slope = torch.empty_like(z)
    paths = torch.tensor(tree.paths.astype(np.int64), device=logits.device)
    share = np.repeat(1 / np.float32(tree.sizes), tree.sizes)
    weight = torch.tensor(share, device=logits.device)[None, :, None]
    total = torch.zeros((), device=logits.device)
    for first in range(0, z.shape[2], pixels):
        part = slice(first, first + pixels)
        own, label = z[:, :, part].clone().requires_grad_(), labels.flatten(1)[:, part]
        right, wrong = scores(own.sigmoid())
        truth = torch.zeros_like(right, dtype=torch.bool)
        truth.scatter_(1, paths[label.clamp(min=0)].transpose(1, 2), True)
        true, false = -torch.log(right + EPSILON), -torch.log(1 - wrong + EPSILON)
        if gamma:
            true, false = (1 - right) ** gamma * true, wrong**gamma * false
        cost = weight * torch.where(truth, true, false)
        value = (cost * (label != IGNORE)[:, None]).sum()
        value.backward()
        slope[:, :, part] = own.grad
        total += value.detach()
    wide.backward(slope.view_as(wide))
    return total, start.grad


def pixels_at_a_time(tree: Tree) -> int:
    """For `masked_broadcast`; see CHUNK."""
    return max(CHUNK // (4 * tree.nodes**2), 1)


# --------------------------------------------------------------------------------------------------
# What both networks are made of


class ConvNorm(nn.Sequential):
    """k x k convolution without bias and batch norm; numbered, as in `nn.Sequential`."""

    def __init__(self, inputs: int, features: int, kernel: int = 3, stride: int = 1) -> None:
        padding = kernel // 2
        super().__init__(
            nn.Conv2d(inputs, features, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(features),
        )


class ConvModule(nn.Module):
    """The same with a ReLU; named, as in mmcv."""

    def __init__(
        self, inputs: int, features: int, kernel: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            features,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Separable(nn.Module):
    def __init__(self, inputs: int, features: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(inputs, inputs, 3, dilation, groups=inputs)
        self.pointwise_conv = ConvModule(inputs, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Bottleneck(nn.Module):
    def __init__(
        self, inputs: int, inner: int, stride: int, dilation: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Of both heads; see `losses.segmentation.deep_supervision`."""
    scores, auxiliary = outputs
    return torch_regproxy.loss(scores, labels) + 0.4 * torch_regproxy.loss(auxiliary, labels)


# --------------------------------------------------------------------------------------------------
# DeepLabV3+


class ResNet(nn.Module):
    """Of output stride 8, with mmcv's deep stem and mean shortcuts ("v1d")."""

    def __init__(self, width: int, depths: Sequence[int], stem_width: int) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        inputs = 3
        for features, stride in ((stem_width, 2), (stem_width, 1), (2 * stem_width, 1)):
            stem += [*ConvNorm(inputs, features, 3, stride), nn.ReLU(inplace=True)]
            inputs = features
        self.stem = nn.Sequential(*stem)
        for stage, (depth, stride, most) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4))):
            inner, blocks = width * 2**stage, []
            for block in range(depth):
                step, shortcut = stride if block == 0 else 1, None
                if block == 0:
                    mean = nn.AvgPool2d(step, step, ceil_mode=True, count_include_pad=False)
                    shortcut = nn.Sequential(mean, *ConvNorm(inputs, 4 * inner, 1))
                dilation = max(most // 2, 1) if block == 0 else most
                blocks.append(Bottleneck(inputs, inner, step, dilation, shortcut))
                inputs = 4 * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(image), 3, 2, 1)
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return levels


class SeparableASPPHead(nn.Module):
    def __init__(
        self,
        classes: int,
        early: int,
        deep: int,
        features: int,
        early_features: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(deep, features))
        separable = (Separable(deep, features, dilation) for dilation in dilations)
        self.aspp_modules = nn.ModuleList([ConvModule(deep, features), *separable])
        self.bottleneck = ConvModule((2 + len(dilations)) * features, features, 3)
        self.c1_bottleneck = ConvModule(early, early_features)
        self.sep_bottleneck = nn.Sequential(
            Separable(features + early_features, features), Separable(features, features)
        )
        self.conv_seg = nn.Conv2d(features, classes, 1)

    def forward(self, early: Tensor, deep: Tensor) -> Tensor:
        views = [resized(self.image_pool(deep), deep), *(view(deep) for view in self.aspp_modules)]
        x = self.bottleneck(torch.cat(views, dim=1))
        detail = self.c1_bottleneck(early)
        x = torch.cat([resized(x, detail), detail], dim=1)
        return self.conv_seg(self.sep_bottleneck(x))


class FCNHead(nn.Module):
    def __init__(self, classes: int, inputs: int, features: int, kernel: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inputs, features, kernel))
        self.conv_seg = nn.Conv2d(features, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.convs(x))


class DeepLabV3Plus(nn.Module):
    """[B, 3, H, W] -> scores [B, K, H/4, W/4], in training the auxiliary head's too."""

    def __init__(
        self,
        *,
        classes: int,
        width: int,
        depths: Sequence[int],
        stem_width: int,
        features: int,
        early_features: int,
        dilations: Sequence[int],
        auxiliary_features: int,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(width, depths, stem_width)
        self.decode_head = SeparableASPPHead(
            classes, 4 * width, 32 * width, features, early_features, dilations
        )
        self.auxiliary_head = FCNHead(classes, 16 * width, auxiliary_features, 3)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        early, _, third, deep = self.backbone(image)
        scores = self.decode_head(early, deep)
        return (scores, self.auxiliary_head(third)) if self.training else scores


# --------------------------------------------------------------------------------------------------
# OCRNet


class BasicBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + x, inplace=True)


class Exchange(nn.Module):
    """Blocks on every branch, then each branch becomes the sum of all. Sizes are even."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, i, j) for j in range(len(widths)))
            for i in range(len(widths))
        )

    @staticmethod
    def _path(widths: Sequence[int], i: int, j: int) -> nn.Module:
        """From branch j to branch i."""
        if j > i:
            enlarged = nn.Upsample(scale_factor=2 ** (j - i), mode="bilinear")
            return nn.Sequential(*ConvNorm(widths[j], widths[i], 1), enlarged)
        steps: list[nn.Module] = []
        for k in range(i - j):
            last = k == i - j - 1
            step = ConvNorm(widths[j], widths[i if last else j], 3, 2)
            steps.append(step if last else nn.Sequential(*step, nn.ReLU(inplace=True)))
        return nn.Sequential(*steps)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        return [
            F.relu(functools.reduce(torch.add, (path(x) for path, x in zip(paths, maps))))
            for paths in self.fuse_layers
        ]


class HRNet(nn.Module):
    """Maps at strides 4, 8, 16 and 32, as many as there are stages."""

    def __init__(self, width: int, stem: int, modules: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        first = Bottleneck(stem, stem, 1, 1, ConvNorm(stem, 4 * stem, 1))
        rest = (Bottleneck(4 * stem, stem, 1, 1, None) for _ in range(blocks - 1))
        self.layer1 = nn.Sequential(first, *rest)
        self.stages = len(modules)
        widths = [4 * stem]
        for number, count in enumerate(modules, start=1):
            wanted = [width * 2**i for i in range(number + 1)]
            self.add_module(f"transition{number}", self._transition(widths, wanted))
            stage = (Exchange(wanted, blocks) for _ in range(count))
            self.add_module(f"stage{number + 1}", nn.Sequential(*stage))
            widths = wanted

    @staticmethod
    def _transition(widths: Sequence[int], wanted: Sequence[int]) -> nn.ModuleList:
        relu = nn.ReLU(inplace=True)
        steps: list[nn.Module] = []
        for have, features in zip(widths, wanted):
            same = nn.Identity() if have == features else nn.Sequential(*ConvNorm(have, features))
            steps.append(same if have == features else same.append(relu))
        new = nn.Sequential(*ConvNorm(widths[-1], wanted[-1], 3, 2), relu)
        return nn.ModuleList([*steps, nn.Sequential(new)])

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        maps = [self.layer1(x)]
        for number in range(1, self.stages + 1):
            transition = getattr(self, f"transition{number}")
            maps = [step(x) for step, x in zip(transition, [*maps, maps[-1]])]
            maps = getattr(self, f"stage{number + 1}")(maps)
        return maps


class ObjectAttention(nn.Module):
    def __init__(self, features: int, inner: int) -> None:
        super().__init__()
        self.query_project, self.key_project = (
            nn.Sequential(ConvModule(features, inner), ConvModule(inner, inner)) for _ in range(2)
        )
        self.value_project = ConvModule(features, inner)
        self.out_project = ConvModule(inner, features)
        self.bottleneck = ConvModule(2 * features, features)

    def forward(self, x: Tensor, objects: Tensor) -> Tensor:
        """Pixels [B, C, H, W] and objects [B, C, K, 1]."""
        query = self.query_project(x).flatten(2).transpose(1, 2)
        key = self.key_project(objects).flatten(2)
        value = self.value_project(objects).flatten(2).transpose(1, 2)
        share = (query @ key * key.shape[1] ** -0.5).softmax(dim=-1)
        context = (share @ value).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.bottleneck(torch.cat([self.out_project(context), x], dim=1))


class OCRHead(nn.Module):
    def __init__(self, classes: int, inputs: int, features: int, key_features: int) -> None:
        super().__init__()
        self.bottleneck = ConvModule(inputs, features, 3)
        self.object_context_block = ObjectAttention(features, key_features)
        self.conv_seg = nn.Conv2d(features, classes, 1)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        x = self.bottleneck(x)
        share = coarse.flatten(2).softmax(dim=-1)
        objects = (share @ x.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]
        return self.conv_seg(self.object_context_block(x, objects))


class OCRNet(nn.Module):
    """[B, 3, H, W] -> scores [B, K, H/4, W/4], in training the coarse head's too."""

    def __init__(
        self,
        *,
        classes: int,
        width: int,
        stem: int,
        modules: Sequence[int],
        blocks: int,
        features: int,
        key_features: int,
    ) -> None:
        super().__init__()
        self.backbone = HRNet(width, stem, modules, blocks)
        joined = width * (2 ** (1 + len(modules)) - 1)
        self.decode_head = nn.ModuleList(
            [FCNHead(classes, joined, joined, 1), OCRHead(classes, joined, features, key_features)]
        )

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.backbone(image)
        x = torch.cat([resized(branch, maps[0]) for branch in maps], dim=1)
        coarse = self.decode_head[0](x)
        scores = self.decode_head[1](x, coarse)
        return (scores, coarse) if self.training else scores
