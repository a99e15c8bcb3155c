"""CRM: High Quality Segmentation for Ultra High-resolution Images (Shen, Zhang, Qi, Kuen, Li, Wu,
Lin, Jia; CVPR 2022).

A coarse mask beside its image is encoded at a low resolution and answered at full resolution: the
features of three depths are aligned with each other (Sec. 3.2), and an implicit function says of
every pixel what it is (Sec. 3.3). A large image is refined in turns from low to high resolution,
each with the last answer as its mask (Sec. 3.4). Facts follow github.com/dvlab-research/Entity,
where paper and code differ the code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import cv2
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.backbones import resnet
from segjax.backbones.layers import BatchNorm, Conv, relu
from segjax.backbones.resnet import ResNet
from segjax.errors import SegjaxError
from segjax.losses import refinement
from segjax.ops import implicit, resize
from segjax.structs import Array, Batch, Refined, Scalars, Size, Variables
from segjax.systems import crm_windows as windows
from segjax.systems import refiner
from segjax.systems.labelling import make_resnet
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image

Dtype = Any

he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""torch's own start of a linear layer."""

# --------------------------------------------------------------------------------------------------
# The network


@flax.struct.dataclass
class Output:
    """What one pass found.

    Attributes:
        logits: float32 [B, H, W].
        levels: the backbone's maps.
        features: [B, H/2, W/2, C], aligned.
    """

    logits: Array
    levels: Mapping[str, Array]
    features: Array


class CRM(nn.Module):
    """Attributes:
    backbone: at output stride 8, of three stages, with its stem's maps.
    projected: channels of each level when they are aligned.
    features: channels after the alignment.
    hidden: channels inside the implicit function.
    layers: linear layers of the implicit function.
    ensemble: see `implicit.grid_logits`; the paper's alignment module.
    positions: whether the implicit function sees positions.
    dropout: rate in the alignment.
    remat: compute the implicit function again in the backward pass.
    """

    backbone: ResNet
    projected: tuple[int, int, int] = (64, 64, 128)
    features: int = 256
    hidden: int = 32
    layers: int = 5
    ensemble: bool = True
    positions: bool = True
    dropout: float = 0.5
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.alignment = Alignment(self.projected, self.features, self.dropout, self.dtype)
        self.implicit = ImplicitFunction(self.features, self.hidden, self.layers, self.positions)

    def __call__(self, x: Array, train: bool = False) -> Output:
        """One pass, asked at every pixel.

        Args:
            x: [B, H, W, 4], the normalised image and the mask in -1..1.
            train: batch norms take the batch's statistics, and dropout draws from the rng
                "dropout".
        """
        levels, features = self.encoded(x, train)
        network = self.implicit()
        rows, columns = map(implicit.grid_axis, x.shape[1:3], features.shape[1:3])

        def answers(projected: Array) -> Array:
            return implicit.grid_logits(projected, network, rows, columns, self.ensemble)

        answers = jax.checkpoint(answers) if self.remat else answers
        return Output(answers(implicit.project(features, network)), levels, features)

    def projected_levels(self, x: Array) -> tuple[Array, ...]:
        """What the alignment mixes, at strides 2, 4 and 8, in evaluation."""
        levels = levels_of(self.backbone(x, False))
        return tuple(p(y, False) for p, y in zip(self.alignment.project, levels))

    def folded(self) -> tuple[implicit.Network, Array, Array]:
        """The implicit function, and the alignment's last convolution as it is in evaluation."""
        return self.implicit(), *self.alignment.folded()

    def encoded(self, x: Array, train: bool = False) -> tuple[Mapping[str, Array], Array]:
        """The backbone's maps and the aligned features."""
        levels = self.backbone(x, train)
        return levels, self.alignment(levels_of(levels), train)


def levels_of(levels: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """What is aligned: the maps at strides 2, 4 and 8."""
    return levels["stem"], levels["res2"], levels["res4"]


class Alignment(nn.Module):
    """Three levels on the finest one's grid, mixed by a 3x3 convolution (the code's
    "ASPP_no4level", which has no dilation)."""

    projected: tuple[int, int, int]
    features: int
    dropout: float
    dtype: Dtype

    def setup(self) -> None:
        self.project = [Projection(n, self.dropout, self.dtype) for n in self.projected]
        self.mix = Conv(self.features, 3, False, self.dtype, kernel_init=he_fan_in)
        self.mix_norm = BatchNorm(dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, levels: tuple[Array, Array, Array], train: bool) -> Array:
        """Levels at strides 2, 4 and 8 -> [B, H/2, W/2, features]."""
        x = relu(self.mix_norm(self.mix(self.side_by_side(levels, train)), train))
        return self.drop(x, deterministic=not train)

    def folded(self) -> tuple[Array, Array]:
        """The kernel and the bias that the convolution and its norm are together in evaluation."""
        norm, stats = self.mix_norm.variables["params"], self.mix_norm.variables["batch_stats"]
        gain = norm["scale"] * jax.lax.rsqrt(stats["var"] + self.mix_norm.epsilon)
        kernel = self.mix.variables["params"]["kernel"]
        return kernel * gain, norm["bias"] - stats["mean"] * gain

    def side_by_side(self, levels: tuple[Array, Array, Array], train: bool = False) -> Array:
        """The projected levels, all enlarged to the first one's grid."""
        size = levels[0].shape[1:3]
        maps = [project(x, train) for project, x in zip(self.project, levels, strict=True)]
        return jnp.concatenate(
            [resize.bilinear(x, size, align_corners=True) for x in maps], axis=-1
        )


class Projection(nn.Module):
    """1x1 convolution, then twice batch norm and ReLU, then dropout."""

    features: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, h, w, c] -> [B, h, w, features]."""
        conv = Conv(self.features, 1, False, self.dtype, kernel_init=he_fan_in, name="conv")
        x = conv(x)
        for number in (1, 2):
            x = relu(BatchNorm(dtype=self.dtype, name=f"norm{number}")(x, train))
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class ImplicitFunction(nn.Module):
    """The weights of the function; see `segjax.ops.implicit`."""

    features: int
    hidden: int
    layers: int
    positions: bool

    @nn.compact
    def __call__(self) -> implicit.Network:
        inputs = [self.features + 6 * self.positions] + [self.hidden] * (self.layers - 1)
        outputs = [self.hidden] * (self.layers - 1) + [1]
        layers = []
        for i, shape in enumerate(zip(inputs, outputs)):
            layers.append(Linear(*shape, name=f"layer_{i}")())
        (kernel, bias), *rest = layers
        places = kernel[self.features :] if self.positions else None
        return implicit.Network(kernel[: self.features], places, bias, tuple(rest))


class Linear(nn.Module):
    """The weights of a linear layer, as torch starts them."""

    inputs: int
    outputs: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        def uniform(rng: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
            return jax.random.uniform(rng, shape, dtype, -1.0, 1.0) * self.inputs**-0.5

        kernel = self.param("kernel", uniform, (self.inputs, self.outputs), jnp.float32)
        return kernel, self.param("bias", uniform, (self.outputs,), jnp.float32)


# --------------------------------------------------------------------------------------------------
# The loss (Sec. 3.5)


class Weights(NamedTuple):
    """Factors of the loss's terms; the published command's."""

    ce: float = 1.0
    l1: float = 0.5
    l2: float = 0.5
    gradient: float = 2.0


def loss(logits: Array, truth: Array, weights: Weights) -> tuple[Array, Scalars]:
    """The weighted sum of the terms, and the terms.

    Args:
        logits: [B, H, W].
        truth: [B, H, W] in 0..1, grey at borders.
    """
    parts = (*refinement.terms(logits, truth), refinement.gradient_term(logits, truth))
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return total, {f"loss_{name}": part for name, part in zip(Weights._fields, parts)}


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know

Progress = Callable[[int, int], None]

QUERIES = ("all", "band")


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`. What it can do with a large image is `turns`.

    Attributes:
        weights: of the loss.
        scales: of each turn of the schedule.
        pad: pixels that an image is reflected by on every side.
        query: "all" asks every pixel in every turn. "band" asks those that the last turn left
            between UNSURE and 1 - UNSURE and those near the mask's boundary; all others keep what
            they had, and what lies beyond the rectangle of those asked is not encoded.
        band: how near, in pixels of the scaled image.
    """

    module: CRM
    weights: Weights
    scales: tuple[float, ...]
    pad: int
    query: str = "all"
    band: int = 8
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    classes: ClassVar[int] = 2  # background and object

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, jnp.zeros((1, 16, 16, 4)))  # the parameters follow no image

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        refiner.check_whole_batch(microbatches)
        output, mutated = self.module.apply(
            variables, self._seen(batch), True, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        truth, coarse = refiner.truth(batch), refiner.normalised_mask(batch)
        value, scalars = loss(output.logits, truth, self.weights)
        return value, (scalars | refinement.counts(output.logits, truth, coarse), mutated)

    def predict(self, variables: Variables, batch: Batch) -> Refined:
        logits = self.module.apply(variables, self._seen(batch)).logits
        return Refined(jax.nn.sigmoid(logits), logits)

    def _seen(self, batch: Batch) -> Array:
        image = normalised_image(batch, self.mean, self.std)
        return jnp.concatenate([image, refiner.normalised_mask(batch)[..., None]], axis=-1)

    def turns(
        self,
        variables: Variables,
        image: np.ndarray,
        mask: np.ndarray,
        *,
        max_memory: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """The probability after each turn; see `inference.refinement`.

        Args:
            variables: of the system.
            image: uint8 [H, W, 3].
            mask: uint8 [H, W], grey.
            max_memory: bytes that arrays on the device may take; the result is the same.
            progress: is told (done, total) in pixels seen.

        Yields:
            float32 [H, W].

        Raises:
            SegjaxError: memory is less than the smallest window needs.
        """
        ends = [(self.pad, self.pad + side) for side in mask.shape]
        cut = tuple(slice(*both) for both in ends)
        for found in self.padded_turns(variables, image, mask, max_memory, progress):
            yield found[cut]

    def padded_turns(
        self,
        variables: Variables,
        image: np.ndarray,
        mask: np.ndarray,
        max_memory: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """`turns` with the reflected border."""
        variables = jax.tree.map(jnp.asarray, variables)
        # An image narrower than the border (the official program fails) is reflected again.
        ends = ((self.pad, self.pad),) * 2
        mask = np.pad(mask, ends, mode="reflect")
        size = mask.shape
        beyond = [(0, windows.canvas(side) - side) for side in size]
        padded = np.pad(image, (*ends, (0, 0)), mode="reflect")
        on_device = jnp.asarray(np.pad(padded, (*beyond, (0, 0))))
        current = (mask.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)
        pixels = windows.affordable(self.module, size, max_memory)
        total = sum(math.prod(scaled_size(size, scale)) for scale in self.scales)
        done = 0
        for scale in self.scales:
            turn = math.prod(scaled_size(size, scale))
            found = np.zeros(size, np.float32)
            if (current + 1).sum(dtype=np.float64) >= 2:  # else nothing is there to be refined
                told = refiner.part_of(progress, done, turn, total)
                self._turn(variables, on_device, current, scale, pixels, found, told)
            done += turn
            if progress is not None:
                progress(done, total)
            yield found
            current = (found - np.float32(0.5)) * 2

    def _turn(
        self,
        variables: Variables,
        image: Array,
        current: np.ndarray,
        scale: float,
        pixels: int,
        found: np.ndarray,
        progress: Progress | None,
    ) -> None:
        """Fills `found`, float32 [H, W]."""
        size = current.shape
        wanted = None
        box = [(0, side) for side in size]
        if self.query == "band":
            wanted = near_boundary(current, max(round(self.band / scale), 1))
            found[:] = (current + 1) / 2
            if not wanted.any():
                return
            box = [windows.used(wanted.any(axis=axis)) for axis in (1, 0)]
        axes = [windows.Axis(*both) for both in zip(size, scaled_size(size, scale))]
        plan = windows.plan(axes, box, pixels, windows.reaches(self.module.backbone))
        more = [(0, canvas - side) for canvas, side in zip(image.shape, size)]
        mask = jnp.asarray(np.pad(current, more))
        scaling = np.float32(self.mean), np.float32(self.std)
        network, *_ = self.module.apply(variables, method=CRM.folded)
        for number, (down, across) in enumerate(plan.windows, start=1):
            rows = windows.rows_of(axes[0], down, plan.sides[0], plan.fine)
            columns = windows.columns_of(axes[1], across, plan.sides[1])
            seen = windows.seen(image, mask, scaling, rows, columns)
            features = windows.projected(self.module, variables, seen, rows, columns)
            here = tuple(slice(*span.answers) for span in (down, across))
            points = windows.points_of(axes[0], down, down.fine[0], plan.asked[0])
            points_across = windows.points_of(axes[1], across, across.seen[0] // 2, plan.asked[1])
            ensemble = self.module.ensemble
            if wanted is None:
                answers = windows.answers(features, network, points, points_across, ensemble)
                found[here] = np.asarray(answers)[tuple(slice(s.stop - s.start) for s in here)]
            else:
                y, x = np.nonzero(wanted[here])
                found[here][y, x] = windows.answers_at(
                    features, network, points, points_across, y, x
                )
            if progress is not None:
                progress(number, len(plan.windows))


UNSURE = 0.05
"""See `System`."""


def near_boundary(mask: np.ndarray, radius: int) -> np.ndarray:
    """bool [H, W]: pixels of a mask -1..1 that are unsure, or from which a square of `radius`
    pixels to each side reaches over the boundary."""
    inside = (mask > 0).astype(np.uint8)
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    edge = cv2.dilate(inside, square) != cv2.erode(inside, square)
    return edge | (np.abs(mask) < 1 - 2 * UNSURE)


def scaled_size(size: Size, scale: float) -> Size:
    """Halves go to the even number."""
    height, width = (max(round(n * scale), 1) for n in size)
    return height, width


def build(
    *,
    backbone: str | Mapping[str, Any] = "resnet50",
    projected: Sequence[int] = (64, 64, 128),
    features: int = 256,
    hidden: int = 32,
    layers: int = 5,
    cam: bool = True,
    implicit: bool = True,
    dropout: float = 0.5,
    scales: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
    pad: int = 32,
    query: str = "all",
    band: int = 8,
    ce_weight: float = Weights._field_defaults["ce"],
    l1_weight: float = Weights._field_defaults["l1"],
    l2_weight: float = Weights._field_defaults["l2"],
    gradient_weight: float = Weights._field_defaults["gradient"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
) -> System:
    """CRM from plain values.

    Args:
        backbone: see `labelling.make_resnet`; three stages of it are taken, at output stride 8.
        projected: channels of each of the three levels when they are aligned.
        features: channels after the alignment.
        hidden, layers: channels inside the implicit function, and its linear layers.
        cam: False asks once, of interpolated features, instead of beside four cells (ablation; the
            models of the paper's Table 6 are not public, this form of them is ours).
        implicit: False asks without positions (ablation, ours too).
        dropout: rate in the alignment.
        scales: of the turns, shares of the image's size in 0..1.
        pad: pixels that an image is reflected by on every side first.
        query, band: see `System`.
        ce_weight, l1_weight, l2_weight, gradient_weight: factors of the loss's terms.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the network; the implicit function, statistics and loss stay float32.
        remat: recompute each bottleneck and the implicit function in the backward pass.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    if query not in QUERIES:
        raise SegjaxError(f"config.model.query: '{query}' is none of {', '.join(QUERIES)}.")
    if query == "band" and not cam:
        raise SegjaxError("config.model.query: 'band' asks beside four cells; set cam=True.")
    if band < 1 or pad < 0:
        raise SegjaxError(
            f"config.model.band is {band} and config.model.pad {pad}; take at least 1 and 0."
        )
    scales = tuple(map(float, scales))
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise SegjaxError(
            f"config.model.scales is {scales}; give one or more shares of the image's size, above 0"
            " and up to 1."
        )
    if layers < 2:
        raise SegjaxError(f"config.model.layers is {layers}; the implicit function needs 2.")
    shape = backbone
    if isinstance(backbone, str) and backbone in resnet.VARIANTS:
        shape = dict(resnet.VARIANTS[backbone])
    if not isinstance(shape, str):
        shape = dict(shape) | dict(
            depths=tuple(shape["depths"][:3]),
            strides=(1, 2, 1),
            dilations=(1, 1, 2),
            first_dilation=1,
            stem_levels=True,
        )
    module = CRM(
        make_resnet(shape, dtype, remat),
        tuple(projected),
        features,
        hidden,
        layers,
        ensemble=cam,
        positions=implicit,
        dropout=dropout,
        dtype=jnp.dtype(dtype),
        remat=remat,
    )
    weights = Weights(ce_weight, l1_weight, l2_weight, gradient_weight)
    return System(module, weights, scales, pad, query, band, tuple(mean), tuple(std))
