"""`segjax bench ops`: every op of `segjax.ops` against its plain form and the PyTorch way.

The plain form is what one writes first in JAX: it holds everything at full resolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from segjax.bench import torch_regproxy as twin
from segjax.bench import torch_side
from segjax.bench.measure import OURS, Contest, Goal, Side, agree, compiled, temporary_bytes
from segjax.bench.torch_side import nchw, tensor
from segjax.inference import windows
from segjax.inference.windows import Settings
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.metrics import confusion
from segjax.ops import (
    assembly,
    attention,
    convolution,
    dense,
    painting,
    pooling,
    resize,
    superpixels,
)
from segjax.structs import IGNORE, Array, Size

Make = Callable[[], Contest]

WHOLE = "at full resolution"
"""The side that makes the full-resolution tensor of classes. XLA fuses it away in the plain form,
where it can."""

LABEL_GOALS = {WHOLE: Goal(3.0, 10.0), "torch": Goal(1.0)}
AT_LEAST_TORCH = {"torch": Goal(1.0)}


class Shapes(NamedTuple):
    """What the ops are measured on.

    Attributes:
        side: pixels of the square image; tokens stand for 16 x 16 of them, cells for 4 x 4.
        classes: K.
        width, heads: of the attention and the convolution.
        device: see `torch_side.setup`.
    """

    side: int = 512
    classes: int = 150
    width: int = 384
    heads: int = 6
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """Along a side."""
        return self.side // 16

    @property
    def cells(self) -> int:
        """Along a side."""
        return self.side // 4


def contests(shapes: Shapes) -> Iterator[tuple[str, Make]]:
    """All rows, in order."""
    yield "painting and argmax", lambda: painted_labels(shapes)
    yield "painting", lambda: painted(shapes)
    yield "resize and argmax", lambda: resize_argmax(shapes)
    yield "cross entropy, gradient", lambda: cross_entropy(shapes)
    yield "attention", lambda: attended(shapes, gradient=False)
    yield "attention, gradient", lambda: attended(shapes, gradient=True)
    yield "sliding windows", lambda: sliding_windows(shapes)
    yield "adaptive pooling", lambda: adaptive_pooling(shapes)
    yield "depthwise convolution", lambda: depthwise(shapes)
    yield "resize, bilinear", lambda: resized(shapes, "bilinear")
    yield "resize, bicubic", lambda: resized(shapes, "bicubic")
    yield "areas per class", lambda: class_areas(shapes)
    yield "confusion matrix", lambda: class_pairs(shapes)
    yield "superpixels, clustering", lambda: clustered(shapes)
    yield "superpixels", lambda: superpixel_regions(shapes)


# --------------------------------------------------------------------------------------------------
# Three ways


def versus(
    what: str,
    ours: Callable[..., Any],
    plain: Callable[..., Any],
    args: tuple[Any, ...],
    theirs: Callable[[], Any],
    shapes: Shapes,
    restore: Callable[[Any], Any] = np.asarray,
    goals: dict[str, Goal] = AT_LEAST_TORCH,
    tolerance: float = 1e-4,
    share: float = 1e-3,
) -> Contest:
    """Two functions of JAX arrays and one of PyTorch tensors, after their results are compared.

    Args:
        what: names the op in errors.
        ours, plain: called on `args`.
        args: arrays.
        theirs: holds its own copies of them.
        shapes: for the device.
        restore: brings a tensor of `theirs` (as an array) into the layout of ours.
        goals: see `Contest`.
        tolerance: of numbers.
        share: of integers that may differ (ties).
    """
    side, result = compiled(ours, *args)
    torch_way, torch_result = torch_side.side(theirs, shapes.device)
    sides, errors = {OURS: side}, {}

    def compare(name: str, results: Any) -> None:
        pairs = zip(jax.tree.leaves(result), results, strict=True)
        errors[name] = max(
            agree(
                f"{what} ({name})",
                mine,
                other,
                share if np.issubdtype(np.asarray(mine).dtype, np.integer) else tolerance,
            )
            for mine, other in pairs
        )

    sides["plain"], others = compiled(plain, *args)
    compare("plain", jax.tree.leaves(others))
    sides["torch"] = torch_way
    arrays = [leaf.detach().cpu().numpy() for leaf in jax.tree.leaves(torch_result)]
    compare("torch", map(restore, arrays))
    return Contest(sides, errors, goals=goals)


def labelled(
    what: str,
    ours: Callable[..., Array],
    full: Callable[..., Array],
    args: tuple[Any, ...],
    theirs: Callable[[], torch.Tensor],
    shapes: Shapes,
) -> Contest:
    """`versus` for labels, the argmax of what `full` makes, [B, H, W, K]."""

    def best(scores: Array) -> Array:
        return scores.argmax(axis=-1).astype(jnp.int32)

    found = versus(
        *(what, ours, lambda *args: best(full(*args)), args, theirs, shapes), goals=LABEL_GOALS
    )
    # Two programs, so that the scores exist.
    make, choose = jax.jit(full).lower(*args).compile(), jax.jit(best)
    scores = make(*args)
    choose = choose.lower(scores).compile()

    def run() -> Array:
        return jax.block_until_ready(choose(make(*args)))

    held = [temporary_bytes(program) for program in (make, choose)]
    temporary = None if None in held else max(held) + scores.nbytes
    error = agree(f"{what} ({WHOLE})", ours(*args), run(), 1e-3)
    sides = {**found.sides, WHOLE: Side(run, temporary)}
    return found._replace(sides=sides, errors={**found.errors, WHOLE: error})


def random(*shape: int, seed: int = 0) -> Array:
    """Normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_labels(shapes: Shapes, seed: int = 0, least: int = IGNORE) -> Array:
    """int32 [1, H, W]: squares of one class each, as labels have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(least, shapes.classes, (shapes.tokens, shapes.tokens))
    return jnp.asarray(coarse.repeat(16, axis=0).repeat(16, axis=1)[None], jnp.int32)


def nhwc(array: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]; all else as it is."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def upsampled(scores: torch.Tensor, size: Size) -> torch.Tensor:
    """[B, K, h, w] -> [B, K, H, W]."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


# --------------------------------------------------------------------------------------------------
# Scores to labels


def _painting_inputs(shapes: Shapes) -> tuple[Array, Array]:
    grid = (1, shapes.tokens, shapes.tokens)
    scores = random(*grid, shapes.classes)
    return scores, painting.associate(random(*grid, 9 * 16, seed=1), (4, 4))


def painted_labels(shapes: Shapes) -> Contest:
    """RegProxy's prediction from what its network says."""
    size = (shapes.side, shapes.side)
    scores, association = _painting_inputs(shapes)
    theirs = nchw(scores, shapes.device), tensor(association, shapes.device)

    return labelled(
        "painting and argmax",
        lambda scores, association: painting.painted_labels(scores, association, size),
        lambda scores, association: resize.bilinear(plain_paint(scores, association), size),
        (scores, association),
        lambda: upsampled(torch_paint(*theirs), size).argmax(dim=1),
        shapes,
    )


def painted(shapes: Shapes) -> Contest:
    """The painted scores themselves."""
    scores, association = _painting_inputs(shapes)
    theirs = nchw(scores, shapes.device), tensor(association, shapes.device)
    return versus(
        "painting",
        painting.paint,
        plain_paint,
        (scores, association),
        lambda: torch_paint(*theirs),
        shapes,
        nhwc,
    )


def plain_paint(scores: Array, association: Array) -> Array:
    """As the formula is written."""
    batch, rows, cols, classes = scores.shape
    h, w = association.shape[-2:]
    around = painting.neighbourhoods(scores)
    fine = jnp.einsum("bijnhw,bijnk->bihjwk", association, around)
    return fine.reshape(batch, rows * h, cols * w, classes)


def torch_paint(scores: torch.Tensor, association: torch.Tensor) -> torch.Tensor:
    """Scores [B, K, Ht, Wt] and association [B, Ht, Wt, 9, h, w] -> [B, K, Ht*h, Wt*w]."""
    batch, classes, rows, cols = scores.shape
    h, w = association.shape[-2:]
    near = F.unfold(scores, 3, padding=1).reshape(batch, classes, 9, rows, cols)
    fine = torch.einsum("bijnxy,bknij->bkixjy", association, near)
    return fine.reshape(batch, classes, rows * h, cols * w)


def resize_argmax(shapes: Shapes) -> Contest:
    """The labels of scores on a grid of 4 x 4 pixels."""
    size = (shapes.side, shapes.side)
    scores = random(1, shapes.cells, shapes.cells, shapes.classes)
    theirs = nchw(scores, shapes.device)
    return labelled(
        "resize and argmax",
        lambda scores: dense.resize_argmax(scores, size),
        lambda scores: resize.bilinear(scores, size),
        (scores,),
        lambda: upsampled(theirs, size).argmax(dim=1),
        shapes,
    )


def cross_entropy(shapes: Shapes) -> Contest:
    """The loss of such scores, and its gradient."""
    scores = random(1, shapes.cells, shapes.cells, shapes.classes)
    labels = random_labels(shapes)

    def ours(scores: Array, labels: Array) -> Array:
        return pixel_cross_entropy(scores, labels)[0]

    def plain(scores: Array, labels: Array) -> Array:
        logits = jax.nn.log_softmax(resize.bilinear(scores, labels.shape[1:]))
        own = jnp.take_along_axis(logits, labels.clip(0)[..., None], axis=-1)[..., 0]
        return -jnp.where(labels == IGNORE, 0.0, own).sum() / labels.size

    given = nchw(scores, shapes.device).requires_grad_()
    target = tensor(labels, shapes.device).long()

    def theirs() -> tuple[torch.Tensor, torch.Tensor]:
        value = twin.loss(given, target)
        return value.detach(), torch.autograd.grad(value, given)[0]

    return versus(
        "cross entropy",
        jax.value_and_grad(ours),
        jax.value_and_grad(plain),
        (scores, labels),
        theirs,
        shapes,
        nhwc,
    )


def sliding_windows(shapes: Shapes) -> Contest:
    """The labels of an image 4/3 as wide as a window from the scores of two that overlap."""
    side = shapes.side
    size = side, side * 4 // 3
    original = size[0] * 5 // 4, size[1] * 5 // 4
    settings = Settings(scale=(4 * side, side), crop=(side, side), stride=(side * 2 // 3,) * 2)
    (copy,) = windows.plan(original, settings)
    blocks = windows.blocks(copy, (shapes.cells,) * 2, original, (side, side))
    blocks = jax.tree.map(lambda x: jnp.asarray(x)[None], blocks)
    starts = copy.columns.starts
    scores = random(1, len(starts), shapes.cells, shapes.cells, shapes.classes)

    def ours(scores: Array) -> Array:
        joined = assembly.join_windows(scores, copy.grid)
        labels = assembly.labels([assembly.Copy(joined, *blocks)])
        return labels[:, : original[0], : original[1]]

    def full(scores: Array) -> Array:
        total, count = jnp.zeros((1, *copy.size, shapes.classes)), jnp.zeros(copy.size[1])
        for k, left in enumerate(starts):
            here = slice(left, left + side)
            total = total.at[:, :, here].add(resize.bilinear(scores[:, k], (side, side)))
            count = count.at[here].add(1)
        return resize.bilinear(total / count[:, None], original)

    parts = [nchw(scores[:, k], shapes.device) for k in range(len(starts))]

    def theirs() -> torch.Tensor:
        total, count = 0.0, torch.zeros(copy.size[1], device=shapes.device)
        for part, left in zip(parts, starts):
            place = (left, copy.size[1] - left - side)
            total = total + F.pad(upsampled(part, (side, side)), place)
            count[left : left + side] += 1
        return upsampled(total / count, original).argmax(dim=1)

    return labelled("sliding windows", ours, full, (scores,), theirs, shapes)


# --------------------------------------------------------------------------------------------------
# Layers


def attended(shapes: Shapes, gradient: bool) -> Contest:
    """Self-attention of a ViT's tokens, class token included; with `gradient`, that of all three
    inputs too."""
    shape = (1, shapes.tokens**2 + 1, shapes.heads, shapes.width // shapes.heads)
    inputs = [random(*shape, seed=seed) for seed in range(3)]
    slope = random(*shape, seed=3)
    given = [
        tensor(x, shapes.device).swapaxes(1, 2).contiguous().requires_grad_(gradient)
        for x in inputs
    ]
    their_slope = tensor(slope, shapes.device).swapaxes(1, 2).contiguous()

    def theirs() -> Any:
        mixed = F.scaled_dot_product_attention(*given)
        if not gradient:
            return mixed
        return mixed.detach(), *torch.autograd.grad(mixed, given, their_slope)

    def with_gradient(function: Callable[..., Array]) -> Callable[..., Any]:
        def both(*inputs: Array) -> Any:
            mixed, pull = jax.vjp(function, *inputs)
            return mixed, *pull(slope)

        return both if gradient else function

    return versus(
        "attention",
        with_gradient(attention.attention),
        with_gradient(jax.nn.dot_product_attention),
        tuple(inputs),
        theirs,
        shapes,
        lambda array: array.swapaxes(1, 2),
        tolerance=1e-4 if shapes.device == "cpu" else 1e-2,
    )


def adaptive_pooling(shapes: Shapes) -> Contest:
    """The four grids of a pyramid pooling module (PSPNet, UPerNet)."""
    grids = (1, 2, 3, 6)
    x = random(1, shapes.tokens, shapes.tokens, 2 * shapes.width)
    given = nchw(x, shapes.device)

    def mean_of(x: Array, n: int, i: int, j: int) -> Array:
        ends = [slice(k * x.shape[1] // n, -(-(k + 1) * x.shape[1] // n)) for k in (i, j)]
        return x[:, ends[0], ends[1]].mean(axis=(1, 2))

    def plain(x: Array) -> list[Array]:
        return [
            jnp.stack(
                [jnp.stack([mean_of(x, n, i, j) for j in range(n)], 1) for i in range(n)], axis=1
            )
            for n in grids
        ]

    return versus(
        "adaptive pooling",
        lambda x: [pooling.adaptive_average(x, (n, n)) for n in grids],
        plain,
        (x,),
        lambda: [F.adaptive_avg_pool2d(given, n) for n in grids],
        shapes,
        nhwc,
    )


def depthwise(shapes: Shapes) -> Contest:
    """3 x 3 on the tokens, and its gradient."""
    x = random(1, shapes.tokens, shapes.tokens, shapes.width)
    kernel = random(3, 3, 1, shapes.width, seed=1)
    given = nchw(x, shapes.device).requires_grad_()
    weight = tensor(kernel, shapes.device).permute(3, 2, 0, 1).contiguous().requires_grad_()

    def plain(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=shapes.width,
        )

    def with_gradient(function: Callable[..., Array]) -> Callable[..., Any]:
        def both(x: Array, kernel: Array) -> Any:
            y, pull = jax.vjp(function, x, kernel)
            return y, *pull(y)

        return both

    def theirs() -> tuple[torch.Tensor, ...]:
        y = F.conv2d(given, weight, padding=1, groups=shapes.width)
        along_x, along_weight = torch.autograd.grad(y, (given, weight), y.detach())
        return y.detach(), along_x, along_weight.permute(1, 0, 2, 3)

    return versus(
        "depthwise convolution",
        with_gradient(convolution.depthwise),
        with_gradient(plain),
        (x, kernel),
        theirs,
        shapes,
        lambda array: array.transpose(2, 3, 0, 1) if array.shape[2:] == (3, 3) else nhwc(array),
    )


def resized(shapes: Shapes, method: str) -> Contest:
    """Features from the tokens' grid to the cells'. The plain form multiplies by the whole
    matrix."""
    source, size = shapes.tokens, (shapes.cells, shapes.cells)
    x = random(1, source, source, shapes.width)
    given = nchw(x, shapes.device)
    whole = resize.matrix(*resize.taps(size[0], source, method), source)

    def plain(x: Array) -> Array:
        return jnp.einsum("ih,bhwc,jw->bijc", whole, x, whole, precision="highest")

    return versus(
        method,
        lambda x: getattr(resize, method)(x, size),
        plain,
        (x,),
        lambda: F.interpolate(given, size=size, mode=method, align_corners=False),
        shapes,
        nhwc,
    )


# --------------------------------------------------------------------------------------------------
# Counting


def class_areas(shapes: Shapes) -> Contest:
    """Intersection, predicted and labelled pixels of each class."""
    classes = shapes.classes
    predicted, labels = random_labels(shapes, seed=1, least=0), random_labels(shapes)
    found, truth = tensor(predicted, shapes.device), tensor(labels, shapes.device)

    def plain(predicted: Array, labels: Array) -> Array:
        ids = jnp.arange(classes)
        valid = (labels != IGNORE)[..., None]
        found = (predicted[..., None] == ids) & valid
        truth = labels[..., None] == ids
        return jnp.stack([x.sum(axis=(1, 2)) for x in (found & truth, found, truth)], axis=1)

    def theirs() -> torch.Tensor:
        valid = truth != IGNORE
        kept, right = found[valid], truth[valid]
        parts = (kept[kept == right], kept, right)
        return torch.stack([torch.bincount(part, minlength=classes) for part in parts])[None]

    return versus(
        "areas per class",
        lambda predicted, labels: confusion.image_areas(predicted, labels, classes),
        plain,
        (predicted, labels),
        theirs,
        shapes,
    )


def class_pairs(shapes: Shapes) -> Contest:
    """The whole confusion matrix. The plain form multiplies one-hot rows."""
    classes = shapes.classes
    predicted, labels = random_labels(shapes, seed=1, least=0), random_labels(shapes)
    found, truth = tensor(predicted, shapes.device).long(), tensor(labels, shapes.device).long()

    def plain(predicted: Array, labels: Array) -> Array:
        rows, columns = jax.nn.one_hot(labels, classes), jax.nn.one_hot(predicted, classes)
        return jnp.einsum("bhwt,bhwp->btp", rows, columns).astype(jnp.int32)

    def theirs() -> torch.Tensor:
        valid = truth != IGNORE
        pairs = truth[valid] * classes + found[valid]
        return torch.bincount(pairs, minlength=classes**2).reshape(1, classes, classes)

    return versus(
        "confusion matrix",
        lambda predicted, labels: confusion.image_pairs(predicted, labels, classes),
        plain,
        (predicted, labels),
        theirs,
        shapes,
    )


# --------------------------------------------------------------------------------------------------
# Superpixels


def photograph(side: int) -> np.ndarray:
    """uint8 [side, side, 3]: smooth, with texture."""
    rng = np.random.default_rng(0)
    coarse = jnp.asarray(rng.uniform(0, 255, (1, 8, 8, 3)), jnp.float32)
    smooth = np.asarray(resize.bilinear(coarse, (side, side))[0])
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def clustered(shapes: Shapes) -> Contest:
    """SLIC's k-means; the other sides gather the nine centres around every pixel."""
    grid, iterations, compactness = (shapes.tokens, shapes.tokens), 10, 10.0
    size = (shapes.side, shapes.side)
    cells = superpixels.Cells.of(size, grid)
    colour = superpixels.lab(jnp.asarray(photograph(shapes.side))[None])
    place = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).reshape(-1, 2)
    place = np.float32(place) * np.float32(compactness / cells.step)
    cell = np.asarray(superpixels.square_regions(size, grid)).reshape(-1)
    shift = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    around = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1)[:, None] + shift
    outside = ((around < 0) | (around >= grid)).any(axis=-1)[cell]
    near = np.where(outside, 0, around[cell] @ (grid[1], 1))
    count = grid[0] * grid[1]

    def plain(colour: Array, regions: Array) -> Array:
        features = jnp.concatenate([colour.reshape(-1, 3), place], axis=-1)

        def centres_of(regions: Array) -> Array:
            total = jax.ops.segment_sum(features, regions, count)
            return total / jax.ops.segment_sum(jnp.ones(len(regions)), regions, count)[:, None]

        def assign(centres: Array) -> Array:
            distance = jnp.square(features[:, None] - centres[near]).sum(-1)
            best = jnp.where(outside, jnp.inf, distance).argmin(axis=1)
            return jnp.take_along_axis(jnp.asarray(near), best[:, None], axis=1)[:, 0]

        for _ in range(iterations):
            regions = assign(centres_of(regions))
        return assign(centres_of(regions)).reshape(1, *size).astype(jnp.int32)

    on_device = functools.partial(tensor, device=shapes.device)
    their_features = torch.cat([on_device(colour).reshape(-1, 3), on_device(place)], dim=1)
    their_cell, their_near, their_outside = map(on_device, (cell, near, outside))

    def theirs() -> torch.Tensor:
        regions = their_cell.long()
        for _ in range(iterations + 1):
            total = torch.zeros(count, 5, device=shapes.device)
            total = total.index_add(0, regions, their_features)
            centres = total / torch.bincount(regions, minlength=count)[:, None]
            distance = (their_features[:, None] - centres[their_near]).square().sum(-1)
            best = distance.masked_fill(their_outside, torch.inf).argmin(dim=1, keepdim=True)
            regions = their_near.gather(1, best)[:, 0]
        return regions.reshape(1, *size)

    return versus(
        "superpixels",
        lambda colour, _: superpixels.clustered(colour, cells, compactness, iterations),
        plain,
        (colour, jnp.asarray(cell)),
        theirs,
        shapes,
        share=0.05,  # rounding moves centres, and those move pixels
    )


def superpixel_regions(shapes: Shapes) -> Contest:
    """From an image to connected superpixels, against scikit-image. The results are alike, not
    equal: its grid and its treatment of small regions are others."""
    image = photograph(shapes.side)
    grid = (shapes.tokens, shapes.tokens)
    side, _ = compiled(lambda image: superpixels.slic(image, grid), jnp.asarray(image)[None])
    try:
        from skimage.segmentation import slic
    except ImportError:
        reason = "it is not installed; pip install scikit-image"
        return Contest({OURS: side}, absent={"scikit-image": reason})

    def theirs() -> np.ndarray:
        return slic(image, grid[0] * grid[1], compactness=10.0, max_num_iter=10, start_label=0)

    return Contest(
        {OURS: side, "scikit-image": side._replace(run=theirs, temporary=None)},
        goals={"scikit-image": Goal(1.0)},
    )
