"""The ops of set prediction in `segjax bench ops`: deformable sampling, matching, points, masked
attention. The manner is that of `segjax.bench.ops`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from segjax.bench.measure import OURS, Contest, Side, agree, compiled
from segjax.bench.ops import Make, Shapes, random, versus
from segjax.bench.torch_side import nchw, tensor
from segjax.ops import attention, deformable, matching, sampling
from segjax.structs import Array

HEADS, CHANNELS, POINTS = 8, 32, 4
"""Of Mask2Former's pixel decoder; its other attention has the same heads."""

QUERIES, TARGETS, PROBLEMS = 100, 100, 20
"""Queries, room for targets, and matchings of a step: 10 predictions of 2 images."""

PAIRS = 40
"""Masks that have points of their own: matched pairs of 2 images."""


def contests(shapes: Shapes) -> Iterator[tuple[str, Make]]:
    """All rows, in order."""
    yield "deformable sampling", lambda: deformed(shapes, gradient=False)
    yield "deformable sampling, gradient", lambda: deformed(shapes, gradient=True)
    yield "matching", lambda: matched()
    yield "points shared by masks", lambda: shared_points(shapes, gradient=False)
    yield "points shared by masks, gradient", lambda: shared_points(shapes, gradient=True)
    yield "points of each mask", lambda: own_points(shapes, gradient=False)
    yield "points of each mask, gradient", lambda: own_points(shapes, gradient=True)
    yield "segments at points", lambda: membership(shapes)
    yield "masked attention", lambda: masked(shapes, gradient=False)
    yield "masked attention, gradient", lambda: masked(shapes, gradient=True)


def against_torch(
    what: str,
    ours: Callable[..., Array],
    plain: Callable[..., Array],
    args: tuple[Array, ...],
    theirs: Callable[..., torch.Tensor],
    given: list[torch.Tensor],
    shapes: Shapes,
    restore: Callable[[Any], Any] = np.asarray,
    gradient: bool = False,
    fixed: tuple[Array, ...] = (),
) -> Contest:
    """`versus` of functions of the same arguments.

    Args:
        what, shapes, restore: see `versus`.
        ours, plain: called on `args` and `fixed`.
        args: arrays.
        theirs: called on `given`; holds its own copies of `fixed`.
        given: `args` as PyTorch wants them.
        gradient: whether the slopes of `args` are measured too, along a given result.
        fixed: arguments without slopes (constants would be worked on when compiling).
    """
    # On GPUs products are TF32 or bfloat16, on both sides.
    tolerance = 1e-4 if shapes.device == "cpu" else 1e-2
    if not gradient:
        return versus(
            *(what, ours, plain, (*args, *fixed), lambda: theirs(*given), shapes, restore),
            tolerance=tolerance,
        )
    with torch.no_grad():
        their_slope = theirs(*given).sin()
    slope = jnp.asarray(restore(their_slope.cpu().numpy()))
    given = [x.requires_grad_() for x in given]

    def with_slopes(function: Callable[..., Array]) -> Callable[..., Any]:
        def both(slope: Array, args: tuple[Array, ...], fixed: tuple[Array, ...]) -> Any:
            found, pull = jax.vjp(lambda *args: function(*args, *fixed), *args)
            return found, *pull(slope)

        return both

    def theirs_with_slopes() -> Any:
        found = theirs(*given)
        return found.detach(), *torch.autograd.grad(found, given, their_slope)

    return versus(
        what,
        with_slopes(ours),
        with_slopes(plain),
        (slope, args, fixed),
        theirs_with_slopes,
        shapes,
        restore,
        tolerance=tolerance,
    )


# --------------------------------------------------------------------------------------------------
# Deformable sampling


def deformed(shapes: Shapes, gradient: bool) -> Contest:
    """A layer of the pixel decoder: the tokens of strides 32, 16 and 8, each looking around itself.
    The plain form gathers the four pixels of all points at once."""
    sides = [shapes.side // stride for stride in (32, 16, 8)]
    levels = tuple((side, side) for side in sides)
    tokens = sum(side**2 for side in sides)
    centres = [np.stack(np.mgrid[:side, :side][::-1], axis=-1).reshape(-1, 2) for side in sides]
    centres = np.concatenate([(xy + 0.5) / side for xy, side in zip(centres, sides)])
    wide = np.array(sides, np.float32)[:, None, None]
    offsets = 2.5 * random(1, tokens, HEADS, len(levels), POINTS, 2, seed=1) / wide
    locations = jnp.asarray(centres, jnp.float32)[:, None, None, None] + offsets
    weights = jax.nn.softmax(random(1, tokens, HEADS, len(levels) * POINTS, seed=2))
    args = random(1, tokens, HEADS, CHANNELS), locations, weights.reshape(locations.shape[:-1])

    def plain(value: Array, locations: Array, weights: Array) -> Array:
        mixed, start = 0.0, 0
        for level, (h, w) in enumerate(levels):
            maps = value[:, start : start + h * w]
            place = locations[:, :, :, level] * jnp.array([w, h]) - 0.5
            low = jnp.floor(place)
            for corner in np.ndindex(2, 2):
                at = low + jnp.array(corner)
                share = (1.0 - jnp.abs(place - at)).prod(axis=-1) * weights[:, :, :, level]
                inside = ((at >= 0) & (at < jnp.array([w, h]))).all(axis=-1)
                x, y = jnp.moveaxis(at.astype(jnp.int32), -1, 0)
                index = jnp.where(inside, y * w + x, 0).swapaxes(2, 3).reshape(len(maps), -1, HEADS)
                rows = jnp.take_along_axis(maps, index[..., None], axis=1)
                rows = rows.reshape(len(maps), -1, POINTS, HEADS, CHANNELS)
                share = jnp.where(inside, share, 0.0)
                mixed += jnp.einsum("bnhp,bnphd->bnhd", share, rows)
            start += h * w
        return mixed.reshape(*mixed.shape[:2], -1)

    def theirs(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        batch = len(value)
        found = []
        parts = value.split([h * w for h, w in levels], dim=1)
        for level, (part, (h, w)) in enumerate(zip(parts, levels)):
            maps = part.permute(0, 2, 3, 1).reshape(batch * HEADS, CHANNELS, h, w)
            places = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
            found.append(F.grid_sample(maps, places, align_corners=False))  # [B*heads, D, N, P]
        shares = weights.transpose(1, 2).reshape(batch * HEADS, 1, tokens, -1)
        mixed = (torch.cat(found, dim=-1) * shares).sum(dim=-1)
        return mixed.reshape(batch, -1, tokens).transpose(1, 2)

    return against_torch(
        "deformable sampling",
        lambda value, *rest: deformable.sample(value, levels, *rest),
        plain,
        args,
        theirs,
        [tensor(x, shapes.device) for x in args],
        shapes,
        gradient=gradient,
    )


# --------------------------------------------------------------------------------------------------
# Matching


def problems() -> tuple[np.ndarray, np.ndarray]:
    """The matchings of a training step: costs float32 [N, Q, T] and how many targets there are,
    int32 [N]. Some queries are good for many targets, as they are early in training."""
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(PROBLEMS, QUERIES, TARGETS))
    costs = np.float32(costs + rng.normal(size=(PROBLEMS, QUERIES, 1)))
    return costs, rng.integers(5, 41, PROBLEMS).astype(np.int32)


def matched() -> Contest:
    """Matchings, against SciPy on the host."""
    costs, counts = problems()
    side, found = compiled(matching.match, jnp.asarray(costs), jnp.asarray(counts))
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        return Contest({OURS: side}, absent={"SciPy": "it is not installed; pip install scipy"})
    on_device = jnp.asarray(costs)

    def theirs() -> list[tuple[np.ndarray, np.ndarray]]:
        fetched = np.array(on_device)
        return [
            linear_sum_assignment(one[:, :count])
            for one, count in zip(fetched, counts, strict=True)
        ]

    right = np.full((PROBLEMS, QUERIES), -1)
    for row, (queries, targets) in zip(right, theirs(), strict=True):
        row[queries] = targets
    error = agree("matching (SciPy)", found.target_of_query, right, 1e-3)
    return Contest({OURS: side, "SciPy": Side(theirs)}, {"SciPy": error})


# --------------------------------------------------------------------------------------------------
# Points


def _points(shapes: Shapes, *batch: int) -> Array:
    """Mask2Former's 12544; fewer where the image is smaller than 512 x 512."""
    count = min(12544 * shapes.side**2 // 512**2, 12544)
    drawn = np.random.default_rng(1).uniform(size=(*batch, count, 2))
    return jnp.asarray(drawn, jnp.float32)


def _plain_sample(maps: Array, points: Array) -> Array:
    """[B, h, w, Q] at [B, P, 2] -> [B, P, Q]: all rows of the four corners, then their sum."""
    size = np.array(maps.shape[2:0:-1])
    place = points * size - 0.5
    low = jnp.floor(place)
    found = 0.0
    for corner in np.ndindex(2, 2):
        at = low + jnp.array(corner)
        share = (1.0 - jnp.abs(place - at)).prod(axis=-1)
        share = jnp.where(((at >= 0) & (at < size)).all(axis=-1), share, 0.0)
        x, y = jnp.moveaxis(at.clip(0, size - 1).astype(jnp.int32), -1, 0)
        rows = jax.vmap(lambda maps, y, x: maps[y, x])(maps, y, x)
        found += share[..., None] * rows
    return found


def _grid_sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """[B, Q, h, w] at [B, P, 2] -> [B, Q, P]."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def shared_points(shapes: Shapes, gradient: bool) -> Contest:
    """The mask logits of all queries at the points of the matching."""
    maps = random(2, shapes.cells, shapes.cells, QUERIES)
    points = _points(shapes, 2)
    places = tensor(points, shapes.device)
    return against_torch(
        "points shared by masks",
        sampling.sample_points,
        _plain_sample,
        (maps,),
        lambda maps: _grid_sample(maps, places),
        [nchw(maps, shapes.device)],
        shapes,
        lambda x: x.transpose(0, 2, 1) if x.ndim == 3 else x.transpose(0, 2, 3, 1),
        gradient,
        (points,),
    )


def own_points(shapes: Shapes, gradient: bool) -> Contest:
    """The mask logits of the matched pairs at the points of the loss."""
    maps = random(PAIRS, shapes.cells, shapes.cells)
    points = _points(shapes, PAIRS)
    places = tensor(points, shapes.device)
    return against_torch(
        "points of each mask",
        sampling.sample_own_points,
        lambda maps, points: _plain_sample(maps[..., None], points)[..., 0],
        (maps,),
        lambda maps: _grid_sample(maps[:, None], places)[:, 0],
        [tensor(maps, shapes.device)],
        shapes,
        gradient=gradient,
        fixed=(points,),
    )


def membership(shapes: Shapes) -> Contest:
    """The masks of all segments at the points of the matching; the other sides make the masks."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(-1, PAIRS // 2, (2, shapes.tokens, shapes.tokens))
    segments = jnp.asarray(coarse.repeat(16, axis=1).repeat(16, axis=2), jnp.int16)
    points = _points(shapes, 2)
    ids, places = tensor(segments, shapes.device), tensor(points, shapes.device)
    every = torch.arange(TARGETS, device=shapes.device)[:, None, None]

    def plain(segments: Array, points: Array) -> Array:
        masks = segments[..., None] == jnp.arange(TARGETS, dtype=segments.dtype)
        return _plain_sample(masks.astype(jnp.float32), points)

    return versus(
        "segments at points",
        lambda segments, points: sampling.sample_membership(segments, points, TARGETS),
        plain,
        (segments, points),
        lambda: _grid_sample((ids[:, None] == every).float(), places),
        shapes,
        lambda x: x.transpose(0, 2, 1),
    )


# --------------------------------------------------------------------------------------------------
# Masked attention


def masked(shapes: Shapes, gradient: bool) -> Contest:
    """Queries that attend to a fifth of the tokens of stride 8."""
    pixels = (shapes.side // 8) ** 2
    forbidden = np.random.default_rng(3).uniform(size=(1, QUERIES, pixels)) < 0.8
    forbidden[:, 0] = True
    sizes = QUERIES, pixels, pixels
    args = tuple(random(1, n, HEADS, CHANNELS, seed=seed) for seed, n in enumerate(sizes))
    their_closed = tensor(forbidden, shapes.device)

    def plain(query: Array, key: Array, value: Array, closed: Array) -> Array:
        allowed = ~closed | closed.all(axis=-1, keepdims=True)
        return jax.nn.dot_product_attention(query, key, value, mask=allowed[:, None])

    def theirs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        allowed = ~their_closed | their_closed.all(dim=-1, keepdim=True)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None])

    return against_torch(
        "masked attention",
        attention.masked_attention,
        plain,
        args,
        theirs,
        [tensor(x, shapes.device).swapaxes(1, 2).contiguous() for x in args],
        shapes,
        lambda array: array.swapaxes(1, 2),
        gradient,
        (jnp.asarray(forbidden),),
    )
