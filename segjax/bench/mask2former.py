"""`segjax bench mask2former`: forward pass and training step against transformers' PyTorch model of
the same weights, its ops, and making results of the masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from segjax import config as configs
from segjax import importers, systems
from segjax.bench import ops, ops_sets, regproxy, torch_side
from segjax.bench import torch_mask2former as twin
from segjax.bench.measure import OURS, Contest, Goal, Side, agree, compiled, temporary_bytes
from segjax.bench.regproxy import AS_FAST, Numerics, Training
from segjax.bench.torch_side import nchw, tensor
from segjax.inference import mask_runner
from segjax.inference.mask_runner import Placements, View
from segjax.ops import matching, panoptic
from segjax.structs import Array, Instances, Panoptic, Size, System, Variables
from segjax.systems import mask2former
from segjax.training import state

Make = Callable[[], Contest]

TINY = twin.Shape(
    width=16,
    depths=(1, 1, 1, 1),
    heads=(1, 2, 2, 4),
    window=4,
    queries=9,
    layers=2,
    encoder_layers=1,
    features=64,
    hidden=48,
    encoder_hidden=32,
    points=64,
)

HOST = "SciPy on the host"
TWICE = {"torch": Goal(2.0)}
TRANSFORMERS = "transformers"

THRESHOLDS = 0.8, 0.8
"""Of an object's probability, and of how much of its mask a query has to win."""

TOPK = 100

SEED = 0
"""Of `regproxy.Training`."""

SQUARE = 384, 384
"""What transformers resizes all masks to before it makes results of them."""


class Options(NamedTuple):
    """What is measured.

    Attributes:
        shape: of the model.
        side: pixels of the square image.
        batch: images of the forward pass and the training step.
        classes: K.
        targets: of an image in the training step.
        room: rows of its table of targets.
        size: (height, width) of the photograph that results are made for.
        compile: whether torch.compile takes part.
        device: see `torch_side.setup`.
    """

    shape: twin.Shape = twin.Shape()
    side: int = 512
    batch: int = 1
    classes: int = 133
    targets: int = 12
    room: int = 100
    size: Size = (480, 640)
    compile: bool = True
    device: str = "cpu"


def contests(options: Options) -> Iterator[tuple[str, Make]]:
    """All rows, in order."""
    yield "forward", lambda: forward(options)
    yield "step", lambda: train_step(options)
    yield "matching", matched
    shapes = ops.Shapes(options.side, options.classes, device=options.device)
    for name in ("deformable sampling", "deformable sampling, gradient"):
        yield name, dict(ops_sets.contests(shapes))[name]
    yield "panoptic", lambda: panoptic_results(options)
    yield "instances", lambda: instance_results(options)
    yield "semantic", lambda: semantic_results(options)
    yield "panoptic, transformers", lambda: transformers_panoptic(options)
    yield "instances, transformers", lambda: transformers_instances(options)
    yield "semantic, transformers", lambda: transformers_semantic(options)


def tolerance() -> float:
    """Of the largest difference relative to the largest value. A mask that is close to one half
    at a pixel lets its query look there on one side only."""
    return 1e-3 if jax.default_backend() == "cpu" else 5e-2


# --------------------------------------------------------------------------------------------------
# The network


@functools.lru_cache(maxsize=1)
def pair(options: Options) -> regproxy.Pair:
    """A system with its variables, and transformers' model, whose file they come from."""
    fields = options.shape._asdict()
    backbone = {name: fields.pop(name) for name in ("width", "depths", "heads", "window")}
    system = systems.build(
        dict(
            system="mask2former",
            backbone=backbone,
            classes=options.classes,
            drop_path=0.0,
            **fields,
        )
    )
    model = twin.model(options.shape, options.classes)
    expected = jax.eval_shape(system.init, jax.random.key(0), {"image": images(options)})
    variables = importers.to_variables("transformers", twin.tensors(model), expected)
    return regproxy.Pair(system, jax.device_put(variables), model.to(options.device))


def images(options: Options) -> Array:
    """float32 [B, side, side, 3], normalised."""
    return ops.random(options.batch, options.side, options.side, 3)


def forward(options: Options) -> Contest:
    """Normalised images to class and mask logits."""
    system, variables, model = pair(options)
    image = images(options)
    given = nchw(image, options.device)

    def ours(variables: Variables, image: Array) -> tuple[Array, Array]:
        found = system.predict(variables, {"image": image})
        return found.class_logits, found.mask_logits

    def run(model: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            found = model(given)
        return found.class_queries_logits, found.masks_queries_logits

    side, (logits, masks) = compiled(ours, variables, image)
    torch_way, (their_logits, their_masks) = torch_side.side(lambda: run(model), options.device)
    error = max(
        agree("forward, classes", logits, their_logits.cpu(), tolerance()),
        agree("forward, masks", masks, their_masks.permute(0, 2, 3, 1).cpu(), tolerance()),
    )

    def faster() -> tuple[Side | None, str]:
        program, reason = torch_side.faster(lambda x: model(x), run)
        if program is None:
            return None, reason
        return torch_side.side(lambda: run(program), options.device)[0], ""

    contest = Contest({OURS: side, "torch": torch_way}, {"torch": error}, goals=AS_FAST)
    return regproxy.with_compiled(contest, options, faster)


# --------------------------------------------------------------------------------------------------
# The training step


def train_step(options: Options) -> Contest:
    """The trainer's step; one of transformers' model with PyTorch's fused AdamW; and the trainer's
    step with its matchings done by SciPy on the host.

    Compared with transformers are the loss and the length of the gradient of the first step, at the
    points that the trainer draws in it; in the steps that are timed each side draws its own.
    Compared with the step that is matched on the host are both of the first two steps together.

    The loss leaves blocks of the padded table out that no image fills, and makes its slope beside
    its value; before it did, a step took 1.7 times PyTorch's time. Its memory is above PyTorch's by
    the slopes of all predictions' masks.
    """
    system, variables, model = pair(options)
    model.train()
    batch = {"image": images(options), **segments(options)}
    image, targets = nchw(batch["image"], options.device), _targets(batch, options.device)
    ours = Training(system, variables, batch, Numerics())
    with mock.patch.object(matching, "match", host_match):
        host = Training(system, variables, batch, Numerics())
    ours()
    theirs = twin.loss_and_slope(model, image, targets, first_points(system, options))
    allowed = {"loss": tolerance(), "gradient_norm": 10 * tolerance()}
    first = [
        agree(f"step, {name}", ours.logged[name], found, allowed[name])
        for name, found in zip(allowed, theirs)
    ]
    ours()
    host()
    host()
    both = [
        agree(f"step, {name} on the host", ours.logged[name], host.logged[name], allowed[name])
        for name in allowed
    ]
    adamw = configs.defaults().optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=adamw.learning_rate,
        betas=(adamw.beta1, adamw.beta2),
        eps=adamw.epsilon,
        weight_decay=adamw.weight_decay,
        fused=True,
    )
    torch_way, _ = torch_side.side(
        lambda: twin.train_step(model, optimizer, image, targets), options.device
    )
    pair.cache_clear()  # the step has changed the model
    sides = {
        OURS: Side(ours, ours.temporary),
        "torch": torch_way,
        HOST: Side(host, host.temporary),
    }
    errors = {"torch": max(first), HOST: max(both)}
    return Contest(sides, errors, goals=AS_FAST | {HOST: Goal(1.0)})


def segments(options: Options) -> dict[str, Array]:
    """Blocks of 16 x 16 pixels that belong to a target or to none, and a table with more room."""
    rng = np.random.default_rng(0)
    blocks = options.side // 16
    coarse = rng.integers(-1, options.targets, (options.batch, blocks, blocks))
    classes = np.full((options.batch, options.room), -1)
    classes[:, : options.targets] = rng.integers(options.classes, size=options.targets)
    return {
        "segments": jnp.asarray(coarse.repeat(16, axis=1).repeat(16, axis=2), jnp.int16),
        "segment_class": jnp.asarray(classes, jnp.int32),
        "segment_is_crowd": jnp.zeros(classes.shape, bool),
    }


def _targets(batch: dict[str, Array], device: str) -> twin.Targets:
    """The same for transformers, without the padding; every target has a pixel."""
    masks, classes = [], []
    for ids, labels in zip(np.asarray(batch["segments"]), np.asarray(batch["segment_class"])):
        real = np.flatnonzero(labels >= 0)
        masks.append(tensor((ids == real[:, None, None]).astype(np.float32), device))
        classes.append(tensor(labels[real].astype(np.int64), device))
    return twin.Targets(masks, classes)


def first_points(system: System, options: Options) -> list[twin.Draws]:
    """What the first step draws for the real targets, for each prediction, the final one last."""
    begin = state.from_variables({"params": {}}, optax.identity(), SEED, ema=0.0)
    rng = jax.random.fold_in(jax.random.wrap_key_data(begin.rng), begin.step)
    _, point_rng = jax.random.split(rng)
    blocks = -(-options.targets // mask2former.BLOCK)

    @jax.jit
    def draw(rng: Array) -> twin.Draws:
        match, own = mask2former.draw_points(rng, options.batch, system.settings)
        parts = zip(*(own(k) for k in range(blocks)))
        joined = (jnp.concatenate(part, axis=1)[:, : options.targets] for part in parts)
        return twin.Draws(match, *joined)

    keys = jax.random.split(point_rng, options.shape.layers + 1)
    return [jax.tree.map(np.asarray, draw(key)) for key in keys]


def host_match(costs: Array, count: Array) -> matching.Matching:
    """`matching.match` by SciPy on the host, from inside a compiled program; costs are finite."""
    from scipy.optimize import linear_sum_assignment

    def solve(costs: Any, count: Any) -> tuple[np.ndarray, np.ndarray]:
        costs, count = np.asarray(costs), np.asarray(count)
        batch, queries, targets = costs.shape
        query_of_target = np.full((batch, targets), -1, np.int32)
        target_of_query = np.full((batch, queries), -1, np.int32)
        for row in range(batch):
            query, target = linear_sum_assignment(costs[row, :, : count[row]])
            query_of_target[row, target], target_of_query[row, query] = query, target
        return query_of_target, target_of_query

    batch, queries, targets = costs.shape
    shapes = tuple(jax.ShapeDtypeStruct((batch, n), jnp.int32) for n in (targets, queries))
    return matching.Matching(
        *jax.pure_callback(solve, shapes, costs, count), jnp.zeros(batch, jnp.int32)
    )


def matched() -> Contest:
    """The row of `ops_sets`, and optax's Hungarian algorithm, for which the padding is targets that
    cost the same for all queries.

    What limits ours on a CPU: the problems are solved side by side, and the slowest one takes 143
    steps of a few dozen operations on vectors of 100, each of which costs more to begin than to
    do; SciPy does 1146 steps, of all problems together, in C. In the training step, where nothing
    has to be fetched and sent back, the row "step" says what that comes to.
    """
    contest = ops_sets.matched()
    costs, counts = map(jnp.asarray, ops_sets.problems())
    real = jnp.arange(costs.shape[2]) < counts[:, None, None]
    padded = jnp.where(real, costs, 0.0)
    side, (queries, targets) = compiled(jax.vmap(optax.assignment.hungarian_algorithm), padded)
    found = np.full(costs.shape[:2], -1)
    np.put_along_axis(found, np.asarray(queries), np.asarray(targets), axis=1)
    found[found >= np.asarray(counts)[:, None]] = -1
    ours = matching.match(costs, counts).target_of_query
    return contest._replace(
        sides={**contest.sides, "optax": side},
        errors={**contest.errors, "optax": agree("matching (optax)", ours, found, 1e-3)},
        goals={"SciPy": Goal(1.0), "optax": Goal(1.0)},
    )


# --------------------------------------------------------------------------------------------------
# Results


class Scene(NamedTuple):
    """What a network said about a photograph, and what for.

    Attributes:
        class_logits: float32 [Q, K + 1].
        mask_logits: float32 [h, w, Q].
        view: how the network saw it.
        size: (height, width) of the results.
        is_thing: bool [K].
    """

    class_logits: np.ndarray
    mask_logits: np.ndarray
    view: View
    size: Size
    is_thing: np.ndarray


def scene(options: Options, seen: Size, size: Size) -> Scene:
    """Logits as a trained network has them: a fifth of the queries are sure of a class; most of
    these divide the image, the masks of the others are blobs.

    Args:
        options: numbers of queries and classes.
        seen: (height, width) of the image that the network saw.
        size: of the results.
    """
    rng = np.random.default_rng(0)
    queries, classes = options.shape.queries, options.classes
    confident = -(-queries // 5)
    height, width = (side // 4 for side in seen)
    logits = rng.normal(size=(queries, classes + 1))
    logits[:, -1] += 3
    chosen = rng.choice(queries, confident, replace=False)
    logits[chosen, rng.integers(classes, size=confident)] += 14
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(0, (height, width), (queries, 2))
    away = np.hypot(y[..., None] - centre[:, 0], x[..., None] - centre[:, 1])
    masks = 0.5 * (rng.uniform(4, height / 4 + 4, queries) - away)
    cells = np.sort(chosen[: 2 * confident // 3 + 1])
    nearest = np.sort(away[..., cells], axis=-1)
    rival = np.where(away[..., cells] == nearest[..., :1], nearest[..., 1:2], nearest[..., :1])
    masks[..., cells] = rival - away[..., cells]
    masks += rng.normal(size=masks.shape) / 4
    return Scene(
        np.float32(logits),
        np.float32(masks),
        View(seen, seen, False),
        size,
        rng.uniform(size=classes) < 0.6,
    )


def photograph(options: Options) -> Scene:
    """Of a photograph that the network saw at its own size."""
    return scene(options, options.size, options.size)


def results(
    made: Scene, make: Callable[..., Any], resize_masks_first: bool = True
) -> tuple[Side, Any]:
    """Our side as `MaskRunner` has it, from the taps on the host to results at the size of a
    bucket; and the results.

    Args:
        made: the scene.
        make: (class logits, mask logits, taps, extent) -> results of one image.
        resize_masks_first: see `mask_runner.Settings`.
    """
    logits, masks = jnp.asarray(made.class_logits)[None], jnp.asarray(made.mask_logits)[None]
    room, extent = mask_runner.bucket(made.size), np.array([made.size], np.int32)

    def taps() -> Placements:
        grid = masks.shape[1:3]
        found = mask_runner.placements(made.view, grid, made.size, room, resize_masks_first)
        return jax.tree.map(lambda part: part[None], found)

    program = jax.jit(jax.vmap(make)).lower(logits, masks, taps(), extent).compile()

    def run() -> Any:
        return jax.block_until_ready(program(logits, masks, taps(), extent))

    return Side(run, temporary_bytes(program)), jax.tree.map(lambda x: np.asarray(x)[0], run())


def their_logits(made: Scene, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[Q, K + 1] and [Q, h, w]."""
    masks = tensor(made.mask_logits, device).permute(2, 0, 1).contiguous()
    return tensor(made.class_logits, device), masks


def official(
    made: Scene, device: str, make: Callable[[torch.Tensor, torch.Tensor], Any]
) -> tuple[Side, Any]:
    """PyTorch's side: all masks at full size, and `make` of class logits and these."""
    logits, masks = their_logits(made, device)

    def run() -> Any:
        with torch.inference_mode():
            wide = twin.enlarged(masks, made.view.padded, made.view.size, made.size)
            return make(logits, wide)

    return torch_side.side(run, device)


def by_transformers(
    made: Scene, device: str, make: Callable[[Any, Any], list[Any]]
) -> tuple[Side, Any]:
    """transformers' side: `make` of its processor and a model's outputs."""
    said, processor = twin.said(*their_logits(made, device)), twin.processor()

    def run() -> Any:
        with torch.inference_mode():
            return make(processor, said)[0]

    return torch_side.side(run, device)


def _segments(made: Scene, clip: bool) -> tuple[Side, Panoptic]:
    def make(logits: Array, masks: Array, taps: Placements, extent: Array) -> Panoptic:
        place = taps.rows, taps.columns, extent
        return panoptic.panoptic(logits, masks, *place, made.is_thing, *THRESHOLDS, clip)

    return results(made, make)


def _instances(made: Scene, topk: int) -> tuple[Side, Instances]:
    def make(logits: Array, masks: Array, taps: Placements, extent: Array) -> Instances:
        return panoptic.instances(logits, masks, taps.rows, taps.columns, extent, topk)

    return results(made, make)


def _labels(made: Scene, resize_masks_first: bool) -> tuple[Side, Array]:
    def make(logits: Array, masks: Array, taps: Placements, extent: Array) -> Array:
        return panoptic.semantic_views([panoptic.View(logits, masks, *taps)], extent)

    return results(made, make, resize_masks_first)


def same_labels(what: str, ours: Any, theirs: Any) -> float:
    """The share of pixels that differ; one in a thousand may, where two scores are close."""
    height, width = theirs.shape
    return agree(what, ours[:height, :width], theirs.cpu().numpy().astype(np.int32), 1e-3)


def same_segments(what: str, ours: Panoptic, theirs: Any, table: list[tuple[int, float]]) -> float:
    """`same_labels` of the maps, whose ids have to be of the same classes in the same order."""
    number = int((ours.segment_class >= 0).sum())
    classes, scores = np.array(table, np.float64).reshape(-1, 2).T
    agree(f"{what}, classes", ours.segment_class[:number], classes.astype(np.int32), 0.0)
    agree(f"{what}, scores", ours.segment_score[:number], scores, tolerance())
    return same_labels(what, ours.segment_map, theirs)


def same_instances(
    what: str, made: Scene, ours: Instances, scores: Any, classes: Any, masks: Any
) -> float:
    """The share of the masks' pixels that differ; classes and scores have to be the same. Neither
    side's order nor empty masks count."""
    height, width = made.size
    bits = np.unpackbits(ours.masks, axis=-1).astype(bool)[ours.queries, :height, :width]

    def sorted_ones(scores: Any, classes: Any, masks: np.ndarray) -> tuple[np.ndarray, ...]:
        held = masks.any(axis=(1, 2))
        found = np.asarray(scores)[held], np.asarray(classes)[held].astype(np.int32), masks[held]
        order = np.lexsort(found[:2])
        return tuple(part[order] for part in found)

    mine = sorted_ones(ours.scores, ours.classes, bits)
    other = sorted_ones(scores, classes, masks)
    agree(f"{what}, scores", mine[0], other[0], tolerance())
    agree(f"{what}, classes", mine[1], other[1], 0.0)
    return agree(f"{what}, masks", *(part[2].astype(np.int32) for part in (mine, other)), 1e-3)


def panoptic_results(options: Options) -> Contest:
    """Segments, as Mask2Former's own code makes them."""
    made = photograph(options)
    side, ours = _segments(made, clip=True)
    torch_way, (theirs, table) = official(
        made, options.device, lambda *said: twin.panoptic(*said, made.is_thing, *THRESHOLDS)
    )
    error = same_segments("panoptic", ours, theirs, table)
    return Contest({OURS: side, "torch": torch_way}, {"torch": error}, goals=TWICE)


def instance_results(options: Options) -> Contest:
    """Instances, as Mask2Former's own code makes them. Ours have boxes and areas besides, and each
    query's mask once, in bits; PyTorch's a mask of bytes for each instance."""
    made = photograph(options)
    topk = min(TOPK, options.shape.queries * options.classes)
    side, ours = _instances(made, topk)
    torch_way, theirs = official(made, options.device, lambda *said: twin.instances(*said, topk))
    found = (x.cpu().numpy() for x in (theirs.scores, theirs.classes, theirs.masks))
    error = same_instances("instances", made, ours, *found)
    return Contest({OURS: side, "torch": torch_way}, {"torch": error}, goals=TWICE)


def semantic_results(options: Options) -> Contest:
    """Labels; masks are resized before classes are summed."""
    made = photograph(options)
    side, ours = _labels(made, resize_masks_first=True)
    torch_way, theirs = official(made, options.device, twin.semantic)
    error = same_labels("semantic", ours, theirs)
    return Contest({OURS: side, "torch": torch_way}, {"torch": error}, goals=TWICE)


def transformers_panoptic(options: Options) -> Contest:
    """Segments by transformers' own function. Its rules differ from the official ones, but not for
    an image and a result of 384 x 384 pixels, queries that are sure, and segments that keep what
    lies outside of their masks."""
    made = scene(options, SQUARE, SQUARE)
    side, ours = _segments(made, clip=False)
    stuff = set(np.flatnonzero(~made.is_thing).tolist())
    object_threshold, overlap_threshold = THRESHOLDS
    theirs_side, theirs = by_transformers(
        made,
        options.device,
        lambda processor, said: processor.post_process_panoptic_segmentation(
            said,
            threshold=object_threshold,
            overlap_mask_area_threshold=overlap_threshold,
            label_ids_to_fuse=stuff,
            target_sizes=[made.size],
        ),
    )
    first = {info["id"]: info for info in reversed(theirs["segments_info"])}
    table = [(first[number]["label_id"], first[number]["score"]) for number in sorted(first)]
    error = same_segments("panoptic (transformers)", ours, theirs["segmentation"], table)
    return Contest({OURS: side, TRANSFORMERS: theirs_side}, {TRANSFORMERS: error})


def transformers_instances(options: Options) -> Contest:
    """Instances by transformers' own function, for an image and a result of 384 x 384 pixels, where
    its rules are the official ones."""
    made = scene(options, SQUARE, SQUARE)
    side, ours = _instances(made, options.shape.queries)
    theirs_side, theirs = by_transformers(
        made,
        options.device,
        lambda processor, said: processor.post_process_instance_segmentation(
            said, threshold=0.0, target_sizes=[made.size], return_binary_maps=True
        ),
    )
    info = theirs["segments_info"]
    scores, classes = ([one[field] for one in info] for field in ("score", "label_id"))
    masks = theirs["segmentation"].cpu().numpy() > 0
    error = same_instances("instances (transformers)", made, ours, scores, classes, masks)
    return Contest({OURS: side, TRANSFORMERS: theirs_side}, {TRANSFORMERS: error})


def transformers_semantic(options: Options) -> Contest:
    """Labels by transformers' own function: the network saw 384 x 384 pixels, and classes are
    summed there before they are resized."""
    made = scene(options, SQUARE, options.size)
    side, ours = _labels(made, resize_masks_first=False)
    theirs_side, theirs = by_transformers(
        made,
        options.device,
        lambda processor, said: processor.post_process_semantic_segmentation(
            said, target_sizes=[made.size]
        ),
    )
    error = same_labels("semantic (transformers)", ours, theirs)
    return Contest({OURS: side, TRANSFORMERS: theirs_side}, {TRANSFORMERS: error})
