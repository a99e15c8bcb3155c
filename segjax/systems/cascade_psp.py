"""CascadePSP: Toward Class-Agnostic and Very High-Resolution Segmentation via Global and Local
Refinement (Cheng, Chung, Tai, Tang; CVPR 2020).

One network sharpens a coarse mask three times over, from stride 8 to stride 4 to every pixel
(Sec. 3.1, 3.2). A large image is sharpened as a whole at a reduced size, then in overlapping crops
at full size (Sec. 3.4). Facts follow github.com/hkchengrex/CascadePSP, its research scripts and its
package segmentation-refinement, whose ways differ in a few places.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.backbones.layers import BatchNorm, Conv, relu
from segjax.backbones.resnet import ResNet
from segjax.errors import SegjaxError
from segjax.losses import refinement
from segjax.ops import pooling, resize
from segjax.structs import Array, Batch, Refined, Scalars, Size, Variables
from segjax.systems import refiner
from segjax.systems.labelling import make_resnet
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image

Dtype = Any

STRIDE = 8
"""Of the backbone; sides that the network sees are multiples of it."""

# --------------------------------------------------------------------------------------------------
# The network (Sec. 3.1)

uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""torch's own start of a convolution, which all but the backbone has."""


@flax.struct.dataclass
class Output:
    """What the passes said; all logits are float32 [B, H, W].

    Attributes:
        logits: the last pass at every pixel.
        stride8: each pass at stride 8, enlarged.
        stride4: each pass but the first at stride 4, enlarged.
        levels: the backbone's maps in the last pass.
        context: [B, H/8, W/8, C] after the pyramid, in the last pass.
        ups: the maps after each up block, at strides 4, 2 and 1.
    """

    logits: Array
    stride8: tuple[Array, ...]
    stride4: tuple[Array, ...]
    levels: Mapping[str, Array]
    context: Array
    ups: tuple[Array, Array, Array]


class CascadePSP(nn.Module):
    """Attributes:
    backbone: of output stride 8, with its stem's maps.
    features: channels after the pyramid.
    up_features: of the up blocks.
    head_features: of the hidden layer of each head.
    sizes: cells per side of the pyramid's grids.
    """

    backbone: ResNet
    features: int = 1024
    up_features: tuple[int, int, int] = (512, 256, 32)
    head_features: int = 32
    sizes: tuple[int, ...] = (1, 2, 3, 6)
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.psp = Pyramid(self.features, self.sizes, self.dtype)
        self.up_1, self.up_2, self.up_3 = (UpBlock(n, self.dtype) for n in self.up_features)
        self.head_8, self.head_4, self.head_1 = (
            Head(self.head_features, self.dtype) for _ in range(3)
        )

    def __call__(
        self,
        image: Array,
        coarse: Array,
        stride8: Array | None = None,
        stride4: Array | None = None,
        train: bool = False,
    ) -> Output:
        """Three passes with the same weights, or fewer.

        Args:
            image: [B, H, W, 3], normalised; H and W multiples of 8.
            coarse: [B, H, W], -1..1.
            stride8: what the first pass would have found, -1..1; that pass is left out.
            stride4: what the second would have found; needs `stride8`, and leaves both out.
            train: batch norms take the statistics of each pass.
        """
        found8, found4 = [], []
        if self.is_initializing():  # the last pass meets all parameters
            stride8 = stride4 = coarse
        if stride8 is None:
            _, context = self.encoded(image, (coarse, coarse, coarse), train)
            found8.append(self.at_stride_8(context))
            stride8 = jnp.tanh(found8[-1])
        if stride4 is None:
            levels, context = self.encoded(image, (coarse, stride8, stride8), train)
            found8.append(self.at_stride_8(context))
            up = self.up_1(context, levels["res2"], train)
            found4.append(self.at_stride_4(up))
            stride8, stride4 = jnp.tanh(found8[-1]), jnp.tanh(found4[-1])
        levels, context = self.encoded(image, (coarse, stride8, stride4), train)
        found8.append(self.at_stride_8(context))
        up_1 = self.up_1(context, levels["res2"], train)
        found4.append(self.at_stride_4(up_1))
        image = image.astype(self.dtype)
        up_2 = self.up_2(up_1, levels["stem_conv"], train)
        up_3 = self.up_3(up_2, image, train)
        logits = self.head_1(jnp.concatenate([up_3, image], axis=-1))
        return Output(logits, tuple(found8), tuple(found4), levels, context, (up_1, up_2, up_3))

    def encoded(
        self, image: Array, masks: Sequence[Array], train: bool
    ) -> tuple[Mapping[str, Array], Array]:
        """The backbone's maps of an image with three masks beside it, and the pyramid's."""
        x = jnp.concatenate([image, jnp.stack(masks, axis=-1).astype(image.dtype)], axis=-1)
        levels = self.backbone(x, train)
        return levels, self.psp(levels["res5"])

    def at_stride_8(self, context: Array) -> Array:
        return _enlarged(self.head_8(context), 8)

    def at_stride_4(self, up: Array) -> Array:
        return _enlarged(self.head_4(up), 4)


class Pyramid(nn.Module):
    """What a map looks like on coarser and coarser grids, beside itself, mixed: pyramid pooling
    (Zhao et al., CVPR 2017) without norms.

    The mix is a 1x1 convolution of all grids, enlarged, and the map. Enlarging is linear, so each
    grid's share is mixed while it is small; that leaves one of five parts at full size.
    """

    features: int
    sizes: tuple[int, ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        channels = x.shape[-1]
        mix = Mix(self.features, (len(self.sizes) + 1) * channels, self.dtype, name="bottleneck")
        y = mix(x, len(self.sizes) * channels)
        for i, size in enumerate(self.sizes):
            conv = Conv(
                channels, 1, False, self.dtype, kernel_init=uniform_fan_in, name=f"grid_{i}"
            )
            grid = mix(conv(pooling.adaptive_average(x, (size, size))), i * channels)
            y = y + resize.bilinear(grid, x.shape[1:3])
        return relu(y + mix.offset())


class Mix(nn.Module):
    """A 1x1 convolution of many channels, a few at a time."""

    features: int
    inputs: int
    dtype: Dtype

    def setup(self) -> None:
        shape = (1, 1, self.inputs, self.features)
        self.kernel = self.param("kernel", uniform_fan_in, shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: Array, first: int) -> Array:
        """The share of the channels from `first` on: [..., c] -> [..., features]."""
        part = self.kernel[0, 0, first : first + x.shape[-1]]
        return x.astype(self.dtype) @ part.astype(self.dtype)

    def offset(self) -> Array:
        return self.bias.astype(self.dtype)


class UpBlock(nn.Module):
    """A map enlarged twice and joined with a finer one: two residual units with the norms first.

    The shortcut's convolution acts before the enlargement; 1x1 and linear, they change places.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, finer: Array, train: bool) -> Array:
        """[B, h, w, C], [B, 2h, 2w, c] -> [B, 2h, 2w, features]."""

        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=uniform_fan_in)

        def unit(y: Array, number: int) -> Array:
            y = relu(BatchNorm(dtype=self.dtype, name=f"norm{number}")(y, train))
            return conv(self.features, 3, name=f"conv{number}")(y)

        shortcut = conv(self.features, name="shortcut")(x)
        shortcut = resize.bilinear(shortcut, finer.shape[1:3])
        wide = resize.bilinear(x, finer.shape[1:3])
        y = unit(unit(jnp.concatenate([wide, finer], axis=-1), 1), 2) + shortcut
        return y + unit(unit(y, 3), 4)


class Head(nn.Module):
    """[B, h, w, C] -> float32 logits [B, h, w]."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = functools.partial(Conv, kernel_init=uniform_fan_in)
        x = relu(conv(self.features, dtype=self.dtype, name="conv1")(x))
        return conv(1, name="conv2")(x.astype(jnp.float32))[..., 0]


def _enlarged(logits: Array, factor: int) -> Array:
    height, width = logits.shape[1:]
    return resize.bilinear(logits[..., None], (factor * height, factor * width))[..., 0]


def filled_up(sides: Size) -> Size:
    """The sides that the network sees: if one is no multiple of 8 both grow to the next, and one
    that is grows by 8 (so the official code)."""
    if not any(side % STRIDE for side in sides):
        return sides
    return tuple((side // STRIDE + 1) * STRIDE for side in sides)


# --------------------------------------------------------------------------------------------------
# The loss (Sec. 3.3)

LEVELS = ("final", "s8_1", "s4_2", "s8_2", "s8_3", "s4_3")
"""All logits of three passes, in the order of the published weights: stride and pass."""


class Weights(NamedTuple):
    """Factors of the terms of each of LEVELS, and of the gradient term, which the final one has."""

    ce: tuple[float, ...] = (0.0, 1.0, 0.5, 1.0, 1.0, 0.5)
    l1: tuple[float, ...] = (1.0, 0.0, 0.25, 0.0, 0.0, 0.25)
    l2: tuple[float, ...] = (1.0, 0.0, 0.25, 0.0, 0.0, 0.25)
    gradient: float = 5.0


def logits_of(output: Output) -> tuple[Array, ...]:
    """All of LEVELS."""
    first, second, third = output.stride8
    fine_second, fine_third = output.stride4
    return output.logits, first, fine_second, second, third, fine_third


def loss(logits: Sequence[Array], truth: Array, weights: Weights) -> tuple[Array, Scalars]:
    """The sum of all levels' losses.

    Args:
        logits: [B, H, W] of each of LEVELS.
        truth: [B, H, W], 0..1, grey at borders.

    Returns:
        The loss; "loss_LEVEL" of each level, weighted, and "loss_gradient" before it is.
    """
    scalars = {}
    for name, level, *factors in zip(LEVELS, logits, *weights[:3], strict=True):
        found = refinement.terms(level, truth)
        scalars[f"loss_{name}"] = sum(f * term for f, term in zip(factors, found, strict=True))
    steep = refinement.gradient_term(logits[0], truth)
    scalars["loss_final"] = scalars["loss_final"] + weights.gradient * steep
    return sum(scalars.values()), {**scalars, "loss_gradient": steep}


# --------------------------------------------------------------------------------------------------
# Global and local steps (Sec. 3.4)

MARGIN = 16
"""Pixels at each side of a crop that do not count, but at the sides of the image."""

DULL = 0.1
"""A crop is left as it is where less than this share of it is object, or of it is not."""


class Variant(NamedTuple):
    """Where the two published programs differ.

    Attributes:
        binary: the mask is cut at 127 first.
        enlarges: images smaller than `side` are enlarged, also before local steps.
        align_corners: of the enlargement of a result that was made at a reduced size.
        suppresses: the answer to an empty mask is an empty mask.
    """

    binary: bool
    enlarges: bool
    align_corners: bool
    suppresses: bool


VARIANTS = {
    "research": Variant(False, False, False, True),
    "package": Variant(True, True, True, False),
}

Progress = Callable[[int, int], None]


def reduced_size(size: Size, ratio: float) -> Size:
    """What torch makes of a scale: both sides rounded down, in float64, so that the longest side L
    of a scale of 900 / L may become 899."""
    height, width = (max(math.floor(float(n) * ratio), 1) for n in size)
    return height, width


def crops_of(size: Size, side: int, step: int) -> list[Size]:
    """(top, left) of the crops of an image, columns of crops from left to right; those that would
    pass the image's end are moved back."""
    height, width = size
    corners = (
        (max(min(row * step, height - side), 0), max(min(col * step, width - side), 0))
        for col in range(width // step + 1)
        for row in range(height // step + 1)
    )
    return list(dict.fromkeys(corners))


Part = tuple[slice, slice]
"""Rows and columns."""


def parts_of(corner: Size, side: int, size: Size) -> tuple[Part, Part, Part]:
    """Of a crop: where it lies in the image, where in the image it counts, and where that is in
    the crop. What counts reaches to the margins, but to the sides of the image where they are the
    crop's own."""
    here, kept, inner = [], [], []
    for first, length in zip(corner, size):
        last = min(first + side, length)
        begins = first + (MARGIN if first else 0)
        ends = last - (MARGIN if last < length else 0)
        here.append(slice(first, last))
        kept.append(slice(begins, ends))
        inner.append(slice(begins - first, ends - first))
    return tuple(here), tuple(kept), tuple(inner)


def is_dull(inside: np.ndarray) -> bool:
    """Whether a crop of a mask (bool) holds next to nothing or next to all; in float32, as torch
    has it."""
    share = np.float32(np.count_nonzero(inside)) / np.float32(inside.size)
    return bool(share > np.float32(1 - DULL) or share < np.float32(DULL))


@functools.partial(jax.jit, static_argnums=0)
def _globally(
    module: CascadePSP, variables: Variables, image: Array, coarse: Array
) -> tuple[Array, Array]:
    """Normalised [h, w, 3] and [h, w], filled up -> probabilities [h, w] at every pixel and of the
    last pass at stride 4."""
    output = module.apply(variables, image[None], coarse[None])
    return jax.nn.sigmoid(output.logits[0]), jax.nn.sigmoid(output.stride4[-1][0])


@functools.partial(jax.jit, static_argnums=0)
def _locally(
    module: CascadePSP, variables: Variables, image: Array, coarse: Array, stride8: Array
) -> tuple[Array]:
    """The same of a crop, whose first pass the global step has replaced -> probability [h, w]."""
    output = module.apply(variables, image[None], coarse[None], stride8[None])
    return (jax.nn.sigmoid(output.logits[0]),)


@functools.lru_cache(maxsize=8)
def _program(
    call: Any, module: CascadePSP, tree: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> jax.stages.Compiled:
    """One of the two compiled for its arguments, flattened."""
    return call.lower(module, *jax.tree.unflatten(tree, shapes)).compile()


def _called(
    call: Any, *maps: np.ndarray, module: CascadePSP, variables: Variables, most: int | None
) -> list[np.ndarray]:
    """One of the two on the host, with maps of any size.

    Maps are filled up here and not in the program, so that images of about one size share it.

    Args:
        maps: normalised [h, w, 3], and masks [h, w].
        most: bytes that the device may hold, None for any.
    """
    size = maps[0].shape[:2]
    arrays = variables, *(x[0] for x in _filled(*(x[None] for x in maps), pad=np.pad))
    if most is None:
        found = call(module, *arrays)
    else:
        leaves, tree = jax.tree.flatten(arrays)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        program = _program(call, module, tree, shapes)
        _check_memory(program, most, max(size))
        found = program(*arrays)
    return [np.asarray(x)[: size[0], : size[1]] for x in found]


def _check_memory(program: jax.stages.Compiled, most: int, side: int) -> None:
    memory = program.memory_analysis()  # None where a backend doesn't tell
    if memory is None:
        return
    needs = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    if needs > most:
        raise SegjaxError(
            f"max_memory is {most / 2**20:.0f} MiB, but this network needs {needs / 2**20:.0f} MiB"
            f" for a side of {side} pixels; allow more, or set config.model.side lower (results"
            " change with it)."
        )


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`. What it can do with a large image is `turns`.

    Attributes:
        weights: of the loss.
        side: longest side that the network sees at a time.
        stride: of the crops of the local step, whose margins overlap besides.
        variant: a name in VARIANTS.
        steps: "global_local", or "global" for the first step alone.
        least: longest side that smaller images are enlarged to in the first step, 0 for none.
    """

    module: CascadePSP
    weights: Weights
    side: int
    stride: int
    variant: str
    steps: str
    least: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    classes: ClassVar[int] = 2  # background and object

    def init(self, rng: Array, batch: Batch) -> Variables:
        image = jnp.zeros((1, 8 * STRIDE, 8 * STRIDE, 3))  # shapes of parameters follow no image
        return self.module.init(rng, image, image[..., 0])

    def applied(
        self,
        variables: Variables,
        image: Array,
        coarse: Array,
        stride8: Array | None = None,
        stride4: Array | None = None,
    ) -> Output:
        """The network on maps of any size, in evaluation mode. What is missing of a multiple of 8
        is the mean colour and no object; the logits are cut to the size again."""
        size = image.shape[1:3]
        output = self.module.apply(variables, *_filled(image, coarse, stride8, stride4))
        return _cut(output, size)

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        refiner.check_whole_batch(microbatches)
        image = normalised_image(batch, self.mean, self.std)
        coarse, truth = refiner.normalised_mask(batch), refiner.truth(batch)
        output, mutated = self.module.apply(
            variables, *_filled(image, coarse), train=True, mutable=["batch_stats"]
        )
        logits = logits_of(_cut(output, image.shape[1:3]))
        value, scalars = loss(logits, truth, self.weights)
        return value, (scalars | refinement.counts(logits[0], truth, coarse), mutated)

    def predict(self, variables: Variables, batch: Batch) -> Refined:
        image = normalised_image(batch, self.mean, self.std)
        logits = self.applied(variables, image, refiner.normalised_mask(batch)).logits
        return Refined(jax.nn.sigmoid(logits), logits)

    def turns(
        self,
        variables: Variables,
        image: np.ndarray,
        mask: np.ndarray,
        *,
        max_memory: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """Refines one mask of an image of any size, step by step.

        The network sees `side` x `side` pixels at most, so its memory has a bound that no image
        passes: about 2.9 GB with a ResNet-50 and the published 900. What is as large as the image
        lies in the host's memory. All crops of an image have one shape.

        Args:
            image: uint8 [H, W, 3] RGB.
            mask: uint8 [H, W], 255 where the object is.
            max_memory: bytes that the variables and one call of the network may take on the device;
                None for no bound.
            progress: called after each call of the network or crop without need of one, as (done,
                total).

        Yields:
            The probability, float32 [H, W], after the global step and after the local one.

        Raises:
            SegjaxError: a call needs more memory.
        """
        chex.assert_shape(image, (*mask.shape, 3))
        chex.assert_type((image, mask), np.uint8)
        variant, local = VARIANTS[self.variant], self.steps == "global_local"
        size, step = mask.shape, self.stride - 2 * MARGIN
        corners = crops_of(size, self.side, step) if local else []
        done, total = 0, 1 + len(corners)

        def tick() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        if variant.suppresses and refiner.is_empty(mask):
            for _ in range(total):
                tick()
            for _ in range(1 + local):
                yield np.zeros(size, np.float32)
            return
        if variant.binary:
            mask = np.where(mask > 127, np.uint8(255), np.uint8(0))
        variables = jax.tree.map(jnp.asarray, variables)

        see = functools.partial(_called, module=self.module, variables=variables, most=max_memory)

        small, small4 = see(_globally, *self._global_inputs(image, mask))
        tick()
        if not local:
            yield self._back(small, size)
            return

        whole = _bilinear(small, size)
        yield whole
        inside, stride8 = whole > 0.5, 2.0 * _bilinear(small4, size) - 1.0
        summed, counted = np.zeros(size, np.float32), np.zeros(size, np.uint16)
        for corner in corners:
            here, kept, inner = parts_of(corner, self.side, size)
            if not is_dull(inside[here]):
                coarse = np.where(inside[here], np.float32(1), np.float32(-1))
                pixels = self._normalised(image[here])
                (found,) = see(_locally, pixels, coarse, stride8[here])
                summed[kept] += found[inner]
                counted[kept] += 1
            tick()
        yield np.where(counted, summed / counted.clip(1).astype(np.float32), np.float32(inside))

    def _normalised(self, image: np.ndarray) -> np.ndarray:
        """0..255 of any type -> float32."""
        mean, std = (np.asarray(x, np.float32) for x in (self.mean, self.std))
        return (image.astype(np.float32) - mean) * (1 / std)

    def _global_inputs(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised, at the size of the global step."""
        size = mask.shape
        longest = max(size)
        if longest < self.least:
            ratio = self.least / longest
            image = _by_factor(image, ratio, "bicubic")
            mask = _by_factor(mask, ratio, "bilinear")
        elif longest > self.side:
            smaller = reduced_size(size, self.side / longest)
            image, mask = _area(image, smaller), _area(mask, smaller)
        return self._normalised(image), (mask.astype(np.float32) / 255 - 0.5) / 0.5

    def _back(self, found: np.ndarray, size: Size) -> np.ndarray:
        """The result of the global step alone, at the image's size."""
        if max(size) < self.least:
            return _area(found, size)
        return _bilinear(found, size, VARIANTS[self.variant].align_corners)


def _filled(image: Any, *masks: Any, pad: Callable[..., Any] = jnp.pad) -> tuple[Any, ...]:
    """See `filled_up`: [B, H, W, 3] with its mean colour, [B, H, W] with -1; masks may be None."""
    size = image.shape[1:3]
    more = [(0, 0), *((0, new - old) for new, old in zip(filled_up(size), size))]
    return pad(image, [*more, (0, 0)]), *(
        None if mask is None else pad(mask, more, constant_values=-1.0) for mask in masks
    )


def _cut(output: Output, size: Size) -> Output:
    """All logits without what was filled up."""

    def cut(logits: Array) -> Array:
        return logits[:, : size[0], : size[1]]

    return output.replace(
        logits=cut(output.logits),
        stride8=tuple(map(cut, output.stride8)),
        stride4=tuple(map(cut, output.stride4)),
    )


# --------------------------------------------------------------------------------------------------
# Resizes on the host, where the whole image lies


def _area(x: np.ndarray, size: Size) -> np.ndarray:
    """torch's "area": the means of `ops.pooling.adaptive_average`. [H, W] or [H, W, C] -> float32
    [*size] or [*size, C]."""
    return _mixed(x, size, *(_area_taps(out, n) for out, n in zip(size, x.shape[:2])))


def _bilinear(x: np.ndarray, size: Size, align_corners: bool = False) -> np.ndarray:
    """`ops.resize.bilinear`."""
    taps = (resize.taps(out, n, "bilinear", align_corners) for out, n in zip(size, x.shape[:2]))
    return _mixed(x, size, *taps)


def _by_factor(x: np.ndarray, ratio: float, method: str) -> np.ndarray:
    """torch's `interpolate(scale_factor=ratio)`: sizes are rounded down, coordinates follow the
    ratio itself."""
    size = reduced_size(x.shape[:2], ratio)
    taps = (resize.taps(out, n, method, step=1 / ratio) for out, n in zip(size, x.shape[:2]))
    return _mixed(x, size, *taps)


def _area_taps(cells: int, length: int) -> resize.Taps:
    cell = np.arange(cells)[:, None]
    first, last = cell * length // cells, -(-(cell + 1) * length // cells) - 1
    indices = first + np.arange((last - first).max() + 1)
    weights = (indices <= last) / (last - first + 1)
    return np.minimum(indices, last).astype(np.int32), weights.astype(np.float32)


def _mixed(x: np.ndarray, size: Size, rows: resize.Taps, columns: resize.Taps) -> np.ndarray:
    """The taps applied to the first two axes, in float32."""
    if x.shape[:2] == tuple(size):
        return x.astype(np.float32)
    for axis, (indices, weights) in enumerate((rows, columns)):
        wide = (-1,) + (1,) * (x.ndim - 1 - axis)
        mixed = np.float32(0)
        for t in range(indices.shape[1]):
            mixed = mixed + np.take(x, indices[:, t], axis=axis) * weights[:, t].reshape(wide)
        x = mixed
    return x


# --------------------------------------------------------------------------------------------------
# From config values


def build(
    *,
    backbone: str | Mapping[str, Any] = "resnet50",
    features: int = 1024,
    up_features: Sequence[int] = (512, 256, 32),
    head_features: int = 32,
    sizes: Sequence[int] = (1, 2, 3, 6),
    ce_weights: Sequence[float] = Weights._field_defaults["ce"],
    l1_weights: Sequence[float] = Weights._field_defaults["l1"],
    l2_weights: Sequence[float] = Weights._field_defaults["l2"],
    gradient_weight: float = Weights._field_defaults["gradient"],
    side: int = 900,
    stride: int | None = None,
    variant: str = "research",
    steps: str = "global_local",
    min_side: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
) -> System:
    """CascadePSP from plain values.

    Args:
        backbone: see `labelling.make_resnet`.
        features: channels after the pyramid.
        up_features: channels of the up blocks, at strides 4, 2 and 1.
        head_features: channels of the hidden layer of each head.
        sizes: cells per side of the pyramid's grids.
        ce_weights, l1_weights, l2_weights: factors of the loss terms of each of LEVELS.
        gradient_weight: factor of the gradient term.
        side: longest side that the network sees; the paper's L.
        stride: of the local step's crops; None means half of `side`.
        variant: "research", the scripts that the paper's numbers come from, or "package", the pip
            package segmentation-refinement.
        steps: "global_local", or "global" for the global step alone.
        min_side: with "global" and "research": longest side that smaller images are enlarged to;
            None means `side`. The paper's ADE20K results are made with 224.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the computation; parameters, statistics, logits and loss stay float32.
        remat: recompute each bottleneck of the backbone in the backward pass.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    for field, value, allowed in (
        ("variant", variant, tuple(VARIANTS)),
        ("steps", steps, ("global_local", "global")),
    ):
        if value not in allowed:
            raise SegjaxError(f"config.model.{field}: '{value}' is none of {', '.join(allowed)}.")
    half = side // 2
    stride = half if stride is None else stride
    if stride <= 2 * MARGIN or stride > side:
        raise SegjaxError(
            f"config.model.stride: {stride} must be above {2 * MARGIN}, the margins of two crops,"
            f" and at most config.model.side, {side}."
        )
    free = variant == "research" and steps == "global"
    if min_side is not None and not (free and min_side <= side):
        raise SegjaxError(
            f"config.model.min_side: {min_side} needs variant='research', steps='global' and a"
            f" config.model.side of at least as much; leave it out, or set these."
        )
    if variant == "package" and stride != half:
        raise SegjaxError(
            f"config.model.stride: the package always takes half of config.model.side, {half};"
            " leave it out."
        )
    weights = Weights(*map(tuple, (ce_weights, l1_weights, l2_weights)), gradient_weight)
    for name, part in zip(("ce", "l1", "l2"), weights):
        if len(part) != len(LEVELS):
            raise SegjaxError(
                f"config.model.{name}_weights: {len(part)} values, but there are {len(LEVELS)}"
                f" levels ({', '.join(LEVELS)}); give one for each."
            )
    if len(up_features) != 3:
        raise SegjaxError(
            f"config.model.up_features: {len(up_features)} values, but there are 3 up blocks; give"
            " one for each."
        )
    least = 0
    if free or VARIANTS[variant].enlarges:
        least = side if min_side is None else min_side
    encoder = make_resnet(backbone, dtype, remat).clone(first_dilation=1, stem_levels=True)
    module = CascadePSP(
        encoder, features, tuple(up_features), head_features, tuple(sizes), jnp.dtype(dtype)
    )
    return System(module, weights, side, stride, variant, steps, least, tuple(mean), tuple(std))
