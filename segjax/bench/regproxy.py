"""`segjax bench regproxy`: forward pass, training step and whole predictions against PyTorch, then
what else decides how fast it is: painting, sliding windows, loading."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from segjax import config as configs
from segjax import importers, systems
from segjax.backbones.vit import VARIANTS
from segjax.bench import loader, ops, torch_side
from segjax.bench import torch_regproxy as twin
from segjax.bench.measure import OURS, Contest, Goal, Side, agree, compiled, temporary_bytes
from segjax.bench.torch_side import nchw, tensor
from segjax.data import transforms
from segjax.data.labels import LabelSpace
from segjax.inference.predictor import Predictor
from segjax.inference.windows import Settings
from segjax.ops import attention
from segjax.structs import System, Variables
from segjax.training import optimizer, state, step

Make = Callable[[], Contest]

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
"""What a PyTorch model says and labels [B, H, W] -> the loss."""

SIZES = {name.removeprefix("vit_").removesuffix("16"): shape for name, shape in VARIANTS.items()}
TINY = dict(width=32, depth=2, heads=2, patch=16)

COMPILED = "torch.compile"
AS_FAST = {"torch": Goal(1.0)}


class Options(NamedTuple):
    """What is measured.

    Attributes:
        sizes: names in SIZES, or "tiny".
        side: pixels of the square image.
        batch: images of the forward pass and the training step.
        classes: K.
        workers: processes of the loader.
        photos: (number of photographs for the loader, images of a batch, batches of a run).
        compile: whether torch.compile takes part.
        device: see `torch_side.setup`.
    """

    sizes: tuple[str, ...]
    side: int = 512
    batch: int = 1
    classes: int = 150
    workers: int = 2
    photos: tuple[int, int, int] = (24, 8, 6)
    compile: bool = True
    device: str = "cpu"


class Numerics(NamedTuple):
    """How it is computed.

    Attributes:
        dtype: of the computation.
        flash: whether kernels may keep the attention weights out of memory.
        text: for the names of rows.
    """

    dtype: str = "float32"
    flash: bool = True
    text: str = ""

    @property
    def tolerance(self) -> float:
        """Of the largest difference relative to the largest value."""
        exact = self.dtype == "float32" and jax.default_backend() == "cpu"
        return 1e-4 if exact else 5e-2

    @property
    def share(self) -> float:
        """Of labels that may differ: with random weights many classes are close."""
        return 10 * self.tolerance

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """What JAX traces and PyTorch runs inside is computed so."""
        with contextlib.ExitStack() as stack:
            if self.dtype != "float32":
                stack.enter_context(torch.autocast("cuda", torch.bfloat16))
            if not self.flash:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                # cuDNN's kernel is taken from Ampere on.
                stack.enter_context(mock.patch.object(attention, "_is_ampere", lambda: False))
            yield


PLAIN = Numerics()


def contests(options: Options) -> Iterator[tuple[str, Make]]:
    """All rows, in order."""
    kinds = [Numerics()]
    if options.device == "cuda":
        kinds += [
            Numerics("bfloat16", True, ", bfloat16, flash"),
            Numerics("bfloat16", False, ", bfloat16, no flash"),
        ]
    for size in options.sizes:
        for numerics in kinds:
            for what, make in (("forward", forward), ("step", train_step), ("predict", predict)):
                title = f"{size.capitalize()} {what}{numerics.text}"
                yield title, functools.partial(make, options, size, numerics)
    shapes = ops.Shapes(options.side, options.classes, device=options.device)
    for name in ("painting and argmax", "sliding windows"):
        yield name, dict(ops.contests(shapes))[name]
    yield "loader", lambda: loader.loading(options.side, options.workers, *options.photos)


# --------------------------------------------------------------------------------------------------
# The same weights on both sides


class Pair(NamedTuple):
    """A system with its variables, and PyTorch's model of the same weights."""

    system: System
    variables: Variables
    model: torch.nn.Module


@functools.lru_cache(maxsize=1)  # rows of one size come one after another
def pair(options: Options, size: str, dtype: str) -> Pair:
    """Random weights on both sides: fresh ones, all moved a little, so that nothing is 0 or 1."""
    shape = TINY if size == "tiny" else SIZES[size]
    early_block = min(4, shape["depth"] - 2)
    system = systems.build(
        dict(
            system="regproxy",
            backbone=shape,
            classes=options.classes,
            image_size=(options.side, options.side),
            early_block=early_block,
            drop_path=0.0,
            dtype=dtype,
        )
    )

    def make() -> Variables:
        fresh = state.initial_variables(system, 0, (options.side, options.side))
        leaves, tree = jax.tree.flatten(fresh)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        moved = [x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
        return jax.tree.unflatten(tree, moved)

    variables = jax.jit(make)()
    model = twin.RegProxy(
        **shape,
        tokens=(options.side // shape["patch"]) ** 2,
        classes=options.classes,
        early_block=early_block,
        region=system.module.region,
    )
    published = importers.to_published("regproxy", variables)
    return Pair(system, variables, twin.load(model, published).to(options.device).eval())


def images(options: Options) -> jax.Array:
    """float32 [B, side, side, 3], normalised."""
    return ops.random(options.batch, options.side, options.side, 3)


def with_compiled(
    contest: Contest, options: Options, make: Callable[[], tuple[Side | None, str]]
) -> Contest:
    """The contest with torch.compile's side, or why it has none."""
    if not options.compile:
        return contest
    side, reason = make()
    if side is None:
        return contest._replace(absent={COMPILED: reason})
    return contest._replace(sides={**contest.sides, COMPILED: side})


# --------------------------------------------------------------------------------------------------
# Rows


def forward(options: Options, size: str, numerics: Numerics) -> Contest:
    """Normalised images to painted scores."""
    return passes(
        f"{size} forward", pair(options, size, numerics.dtype), images(options), options, numerics
    )


def passes(
    name: str, pair: Pair, image: jax.Array, options: Any, numerics: Numerics = PLAIN
) -> Contest:
    """Normalised images [B, H, W, 3] to the scores of any system; `options` has `device` and
    `compile`."""
    system, variables, model = pair
    given = nchw(image, options.device)

    def ours(variables: Variables, image: jax.Array) -> jax.Array:
        return system.predict(variables, {"image": image}).scores

    def run(model: Callable[..., torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode(), numerics():
            return model(given)

    with numerics():
        side, scores = compiled(ours, variables, image)
    torch_way, their_scores = torch_side.side(lambda: run(model), options.device)
    theirs = their_scores.float().cpu().permute(0, 2, 3, 1)
    error = agree(name, scores, theirs, numerics.tolerance)

    def faster() -> tuple[Side | None, str]:
        program, reason = torch_side.faster(lambda x: model(x), run)
        if program is None:
            return None, reason
        return torch_side.side(lambda: run(program), options.device)[0], ""

    contest = Contest({OURS: side, "torch": torch_way}, {"torch": error}, goals=AS_FAST)
    return with_compiled(contest, options, faster)


def train_step(options: Options, size: str, numerics: Numerics) -> Contest:
    """The trainer's step, and one of PyTorch with its fused AdamW. Compared are the losses of two
    steps and the first gradient's norm."""
    batch = {"image": images(options), "semantic": _labels(options)}
    return steps(
        f"{size} step", pair(options, size, numerics.dtype), batch, options, numerics=numerics
    )


def steps(
    name: str,
    pair: Pair,
    batch: dict[str, jax.Array],
    options: Any,
    loss: Loss = twin.loss,
    numerics: Numerics = PLAIN,
    norm_tolerance: float | None = None,
) -> Contest:
    """`train_step` of any system with labels for every pixel; `options` as in `passes`. The
    gradient's norm may differ by ten times the tolerance of `numerics`, or as it is said."""
    system, variables, model = pair
    model = copy.deepcopy(model).train()
    image, labels = nchw(batch["image"], options.device), tensor(batch["semantic"], options.device)
    ours = Training(system, variables, batch, numerics)
    theirs = TorchTraining(model, image, labels.long(), numerics, loss)
    our_losses, their_losses = [], []
    for _ in range(2):
        before = ours.logged
        ours()
        our_losses.append(ours.logged["loss"] - before["loss"])
        their_losses.append(float(theirs()))
        if len(our_losses) == 1:
            norms = ours.logged["gradient_norm"], theirs.first_norm
    # AdamW turns the rounding of a gradient that should be zero into a whole step, so the loss
    # after it is known less well.
    error = max(
        agree(f"{name}, loss", our_losses[:1], their_losses[:1], numerics.tolerance),
        agree(f"{name}, second loss", our_losses, their_losses, 10 * numerics.tolerance),
        agree(f"{name}, gradient norm", *norms, norm_tolerance or 10 * numerics.tolerance),
    )
    torch_way, _ = torch_side.side(theirs, options.device)

    def faster() -> tuple[Side | None, str]:
        program, reason = torch_side.faster(lambda x: model(x), theirs.run)
        if program is None:
            return None, reason
        return torch_side.side(lambda: theirs.run(program), options.device)[0], ""

    contest = Contest(
        {OURS: Side(ours, ours.temporary), "torch": torch_way}, {"torch": error}, goals=AS_FAST
    )
    return with_compiled(contest, options, faster)


def _labels(options: Options) -> jax.Array:
    shapes = ops.Shapes(options.side, options.classes)
    parts = [ops.random_labels(shapes, seed=seed) for seed in range(options.batch)]
    return jnp.concatenate(parts).astype(jnp.int16)


class Training:
    """The trainer's compiled step with its state; a call does one step."""

    def __init__(
        self, system: System, variables: Variables, batch: dict[str, Any], numerics: Numerics
    ) -> None:
        settings = configs.defaults()
        settings.schedule.update(name="constant", warmup_steps=0)
        adamw = optimizer.make(settings.optimizer, settings.schedule, settings.steps)
        # Copies, since the state is donated.
        begin = jax.jit(lambda v: state.from_variables(v, adamw, seed=0, ema=0.0))
        self._state = begin(variables)
        self._totals = step.zero_totals(system, self._state, batch, 1)
        self._batch = batch
        function = jax.jit(step.make_step(system, adamw), donate_argnums=0)
        with numerics():
            self._program = function.lower(self._state, self._totals, batch).compile()
        self.temporary = temporary_bytes(self._program)

    def __call__(self) -> None:
        self._state, self._totals = jax.block_until_ready(
            self._program(self._state, self._totals, self._batch)
        )

    @property
    def logged(self) -> dict[str, float]:
        """The sums of what the trainer logs."""
        return {name: float(total) for name, total in self._totals.items()}


class TorchTraining:
    """PyTorch's step; a call does one and returns the loss."""

    def __init__(
        self,
        model: torch.nn.Module,
        image: torch.Tensor,
        labels: torch.Tensor,
        numerics: Numerics,
        loss: Loss = twin.loss,
    ) -> None:
        adamw = configs.defaults().optimizer
        self._model, self._image, self._labels, self._numerics = model, image, labels, numerics
        self._loss = loss
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=adamw.learning_rate,
            betas=(adamw.beta1, adamw.beta2),
            eps=adamw.epsilon,
            weight_decay=adamw.weight_decay,
            fused=True,
        )
        self.first_norm = self._gradient_norm()

    def __call__(self) -> torch.Tensor:
        return self.run(self._model)

    def run(self, model: Callable[..., torch.Tensor]) -> torch.Tensor:
        """A step whose forward pass is `model`; leaves no gradients in memory."""
        with self._numerics():
            value = twin.train_step(model, self._optimizer, self._image, self._labels, self._loss)
        self._optimizer.zero_grad(set_to_none=True)
        return value

    def _gradient_norm(self) -> float:
        statistics = copy.deepcopy(self._model.state_dict())
        with self._numerics():
            self._loss(self._model(self._image), self._labels).backward()
        norms = [p.grad.float().norm() for p in self._model.parameters()]
        self._model.load_state_dict(statistics)  # batch norm has counted the images
        self._optimizer.zero_grad(set_to_none=True)
        return float(torch.stack(norms).norm())


def predict(options: Options, size: str, numerics: Numerics) -> Contest:
    """A photograph to its labels: resized, cut into two windows, labelled, put together at its own
    size."""
    system, variables, model = pair(options, size, numerics.dtype)
    side = options.side
    photo = photograph(side)
    settings = Settings(scale=(4 * side, side), crop=(side, side), stride=(side, side))
    space = LabelSpace(
        "bench",
        tuple(map(str, range(options.classes))),
        ((0, 0, 0),) * options.classes,
        (False,) * options.classes,
    )
    predictor = Predictor(system, variables, space, settings)
    inner = transforms.rescaled_size(photo.shape[:2], settings.scale)

    def run(model: Callable[..., torch.Tensor]) -> np.ndarray:
        with numerics():
            return twin.predict(
                *(model, photo, inner, settings.crop, settings.stride),
                *(system.mean, system.std, options.device),
            )

    with numerics():
        labels = predictor(photo).labels  # compiles
    error = agree(f"{size} predict", labels.astype(np.int64), run(model), numerics.share)
    sides = {OURS: Side(lambda: predictor(photo).labels), "torch": Side(lambda: run(model))}

    def faster() -> tuple[Side | None, str]:
        program, reason = torch_side.faster(lambda x: model(x), run)
        return (None, reason) if program is None else (Side(lambda: run(program)), "")

    return with_compiled(Contest(sides, {"torch": error}, goals=AS_FAST), options, faster)


def photograph(side: int) -> np.ndarray:
    """uint8 [H, W, 3], a little larger than the window, and wider."""
    return transforms.resize_image(ops.photograph(side), (side * 9 // 8, side * 3 // 2))
