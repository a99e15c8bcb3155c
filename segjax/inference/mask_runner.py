"""Runs systems that answer with masks on whole images, and makes results of what they say.

An image is resized and given to the network whole, filled up as the system asks. What the network
says stays on the device, and so does the making of results: how a result's pixels follow from the
masks' grid are arrays, so that one compiled program serves all sizes that a bucket holds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from segjax.data import set_transforms
from segjax.errors import SegjaxError
from segjax.ops import panoptic as ops
from segjax.ops.panoptic import View as Said
from segjax.ops.panoptic import placement
from segjax.structs import Array, Instances, Masks, Panoptic, Size, System, Variables
from segjax.training.sharding import batch_sharding, replicated

BUCKET = 128
"""Results are made for sizes that are multiples of this, and cut."""

TASKS = ("semantic", "panoptic", "instance")


def answers_with_masks(system: System) -> bool:
    """Whether `predict` gives `Masks`."""
    return hasattr(system, "clips_segments")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to infer; the fields of `config.eval` of the same names.

    Attributes:
        scale: (long side, short side): an image's short side becomes the second, or less so that
            its long side does not pass the first.
        ratios: for each a view whose sides are these times as long; class scores are averaged.
            Several views serve the semantic task alone.
        flip: also the mirrored views.
        tasks: of `TASKS`.
        object_threshold, overlap_threshold: see `ops.panoptic.panoptic`.
        topk: see `ops.panoptic.instances`.
        resize_masks_first: whether masks are resized to the image's own size before they are
            summed to class scores, or the scores are.
    """

    scale: tuple[int, int] = (2048, 512)
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    tasks: tuple[str, ...] = ("semantic",)
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    topk: int = 100
    resize_masks_first: bool = True

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise SegjaxError(
                f"config.eval.tasks is {self.tasks}; take some of {', '.join(TASKS)}."
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise SegjaxError(
                f"config.eval.ratios is {self.ratios}; give one or more positive numbers."
            )
        if self.several and self.tasks != ("semantic",):
            raise SegjaxError(
                "config.eval.ratios and flip average class scores, which only the semantic task"
                f" has; set config.eval.tasks=\"('semantic',)\", not {self.tasks}."
            )

    @property
    def several(self) -> bool:
        """Whether there are several views of an image."""
        return self.flip or len(self.ratios) > 1

    @classmethod
    def of(cls, settings: Settings | Mapping[str, Any]) -> Settings:
        """From `config.eval`; fields that don't concern masks are left out."""
        if isinstance(settings, cls):
            return settings
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: settings[name] for name in names if name in settings}
        return cls(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()})


# --------------------------------------------------------------------------------------------------
# Host: which views there are


class View(NamedTuple):
    """How the network sees an image.

    Attributes:
        size: (height, width) the image is resized to.
        padded: what the network fills it up to.
        mirrored: left and right exchanged.
    """

    size: Size
    padded: Size
    mirrored: bool


def views(
    size: Size, shorts: Sequence[int], longest: float, flip: bool, divisible: int
) -> list[View]:
    """For each short side the plain view of an image of `size`, then the mirrored one."""
    found = []
    for short in shorts:
        resized = set_transforms.shortest_edge_size(size, short, longest)
        padded = tuple(-(-side // max(divisible, 1)) * max(divisible, 1) for side in resized)
        found += [View(resized, padded, mirrored) for mirrored in ((False, True)[: 1 + flip])]
    return found


def planned(size: Size, settings: Settings, divisible: int) -> list[View]:
    """The views that the settings ask for."""
    longest, short = settings.scale
    found = []
    for ratio in settings.ratios:
        found += views(size, [int(short * ratio)], longest * ratio, settings.flip, divisible)
    return found


def view_of(image: np.ndarray, view: View) -> np.ndarray:
    """The image [H, W, 3] as a view shows it, not filled up yet."""
    resized = set_transforms.resize_photo(image, view.size)
    return np.ascontiguousarray(resized[:, ::-1]) if view.mirrored else resized


def bucket(size: Size) -> Size:
    """The size that results are made at."""
    return tuple(-(-side // BUCKET) * BUCKET for side in size)


class Placements(NamedTuple):
    """Taps of one view, see `ops.panoptic.View`; the last two are None if masks go first."""

    rows: Any
    columns: Any
    then_rows: Any = None
    then_columns: Any = None


def placements(
    view: View, grid: Size, size: Size, within: Size, resize_first: bool = True
) -> Placements:
    """How a result of `size`, laid in an array of `within`, follows from the masks of a view."""
    mirrored = (False, view.mirrored)
    if resize_first:
        return Placements(
            *(
                placement(g, p, inside, out, room, flip)
                for g, p, inside, out, room, flip in zip(
                    grid, view.padded, view.size, size, within, mirrored
                )
            )
        )
    first = (placement(g, p, p, p, p) for g, p in zip(grid, view.padded))
    then = (
        placement(p, p, inside, out, room, flip)
        for p, inside, out, room, flip in zip(view.padded, view.size, size, within, mirrored)
    )
    return Placements(*first, *then)


# --------------------------------------------------------------------------------------------------
# Device: one image at a time


def semantic_scores_of(
    masks: Masks, inside: Size, size: Size, resize_first: bool = True
) -> np.ndarray:
    """Class scores float32 [H, W, K] of the first image of a batch.

    Args:
        masks: what the network said.
        inside: (height, width) of the image that it saw, without filling.
        size: (height, width) of the result.
        resize_first: see `Settings.resize_masks_first`.
    """
    return mean_scores_of([masks], [View(inside, masks.covers, False)], size, resize_first)


def mean_scores_of(
    said: Sequence[Masks], seen: Sequence[View], size: Size, resize_first: bool = False
) -> np.ndarray:
    """The mean class scores over several views, float32 [H, W, K]."""
    parts = [_said(masks, view, size, resize_first) for masks, view in zip(said, seen)]
    return np.asarray(_scores(parts, np.array(size, np.int32)))


@jax.jit
def _scores(parts: list[Said], extent: Array) -> Array:
    return ops.semantic_scores_of_views(parts, extent)


def _said(masks: Masks, view: View, size: Size, resize_first: bool) -> Said:
    taps = placements(view, masks.mask_logits.shape[1:3], size, size, resize_first)
    return Said(masks.class_logits[0], masks.mask_logits[0], *taps)


# --------------------------------------------------------------------------------------------------
# Device: groups of images over a mesh


class Results(NamedTuple):
    """What was made for a group, arrays with a leading axis over images; None where not asked for.

    Attributes:
        semantic: int32 [G, H, W].
    """

    semantic: Array | None
    panoptic: Panoptic | None
    instances: Instances | None


class MaskRunner:
    """A system with its variables on a mesh.

    Attributes:
        shards: images that go through together, one per part of the batch.
    """

    def __init__(
        self,
        system: System,
        variables: Variables,
        is_thing: Sequence[bool],
        settings: Settings,
        mesh: Mesh | None = None,
    ) -> None:
        """
        Args:
            system: hashable; compiled code is kept between runners.
            variables: on the mesh already, or anywhere.
            is_thing: K flags.
            settings: how to infer.
            mesh: by default all devices in a row.
        """
        self.mesh = Mesh(np.array(jax.devices()), ("data",)) if mesh is None else mesh
        self.system, self.settings = system, settings
        self.is_thing = tuple(bool(flag) for flag in is_thing)
        self.split = batch_sharding(self.mesh)
        self.shards = self.mesh.size // self.split.shard_shape((self.mesh.size,))[0]
        everywhere = replicated(self.mesh)
        devices = set(self.mesh.devices.flat)

        def place(leaf: Any) -> Array:
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
                return leaf
            return jax.device_put(leaf, everywhere)

        self.variables = jax.tree.map(place, variables)

    def planned(self, size: Size) -> list[View]:
        """The views of an image of `size`."""
        return planned(size, self.settings, self.system.divisible)

    def local_rows(self, count: int) -> list[int]:
        """Which of `count` images of a group this process has to provide."""
        found = self.split.addressable_devices_indices_map((count,)).values()
        return sorted({row for index in found for row in range(count)[index[0]]})

    def run(
        self,
        pictures: Mapping[int, Sequence[np.ndarray]],
        plans: Sequence[Sequence[View]],
    ) -> list[Masks]:
        """What the network says about a group.

        Args:
            pictures: for each of this process's rows, the image as each view shows it.
            plans: the views of every image of the group; all have the same padded sizes.
        """
        said = []
        for number, view in enumerate(plans[0]):
            frames = {row: _filled(shown[number], view.padded) for row, shown in pictures.items()}
            sizes = np.array([plan[number].size for plan in plans], np.int32)
            batch = {
                "image": self.put(frames, len(plans)),
                "image_size": self.put(dict(enumerate(sizes)), len(plans)),
            }
            said.append(_predict(self.system, self.mesh, self.split)(self.variables, batch))
        return said

    def results(
        self, said: Sequence[Masks], plans: Sequence[Sequence[View]], sizes: Sequence[Size]
    ) -> Results:
        """Makes what the settings ask for.

        Args:
            said: of `run`.
            plans: likewise.
            sizes: (height, width) of each image's results.

        Returns:
            Arrays of the size `bucket` gives for the largest side of all.
        """
        room = bucket(tuple(max(size[axis] for size in sizes) for axis in (0, 1)))
        extents = self.put(dict(enumerate(np.array(sizes, np.int32))), len(sizes))
        both = self.settings.resize_masks_first
        taps = {
            first: [
                self._placed([plan[number] for plan in plans], said[number], sizes, room, first)
                for number in range(len(said))
            ]
            for first in {True, both}
        }
        settings = self.settings
        make = _results(
            self.split,
            settings.tasks,
            self.is_thing,
            settings.object_threshold,
            settings.overlap_threshold,
            settings.topk,
            self.system.clips_segments,
        )
        pairs = [(masks.class_logits, masks.mask_logits) for masks in said]
        return make(pairs, taps[True], taps[both], extents)

    def _placed(
        self,
        seen: Sequence[View],
        masks: Masks,
        sizes: Sequence[Size],
        room: Size,
        resize_first: bool,
    ) -> Placements:
        """The taps of one view of every image, stacked, on the devices."""
        grid = masks.mask_logits.shape[1:3]
        every = [
            placements(view, grid, size, room, resize_first) for view, size in zip(seen, sizes)
        ]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *every)
        return jax.tree.map(lambda x: self.put(dict(enumerate(x)), len(x)), stacked)

    def put(self, rows: Mapping[int, np.ndarray], count: int) -> Array:
        """One array per image of the group -> a global array [count, ...]."""
        example = next(iter(rows.values()))

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            return np.stack([rows[row] for row in range(count)[index[0]]])

        return jax.make_array_from_callback(
            (count, *example.shape), self.split, of_device, dtype=example.dtype
        )

    def row(self, tree: Any, row: int) -> Any:
        """Row `row` of global arrays, on the host; one of this process's rows."""

        def one(array: Array) -> np.ndarray:
            for shard in array.addressable_shards:
                begin, end, _ = shard.index[0].indices(array.shape[0])
                if begin <= row < end:
                    return np.asarray(shard.data[row - begin])
            raise ValueError(f"row {row} lies on another process.")

        return jax.tree.map(one, tree)


def _filled(image: np.ndarray, size: Size) -> np.ndarray:
    rows, columns = (whole - part for whole, part in zip(size, image.shape))
    return np.pad(image, ((0, rows), (0, columns), (0, 0)))


@functools.cache
def _predict(
    system: System, mesh: Mesh, split: NamedSharding
) -> Callable[[Variables, dict[str, Array]], Masks]:
    return jax.jit(system.predict, in_shardings=(None, split), out_shardings=split)


@functools.cache
def _results(
    split: NamedSharding,
    tasks: tuple[str, ...],
    is_thing: tuple[bool, ...],
    object_threshold: float,
    overlap_threshold: float,
    topk: int,
    clip: bool,
) -> Callable[..., Results]:
    things = np.array(is_thing)

    def one(
        said: list[tuple[Array, Array]],
        taps: list[Placements],
        semantic_taps: list[Placements],
        extent: Array,
    ) -> Results:
        logits, masks = said[0]
        rows, columns = taps[0].rows, taps[0].columns
        semantic = segments = found = None
        if "semantic" in tasks:
            parts = [Said(*pair, *places) for pair, places in zip(said, semantic_taps)]
            semantic = ops.semantic_views(parts, extent)
        if "panoptic" in tasks:
            segments = ops.panoptic(
                logits,
                masks,
                rows,
                columns,
                extent,
                things,
                object_threshold,
                overlap_threshold,
                clip,
            )
        if "instance" in tasks:
            only = things if "panoptic" in tasks else None  # as the official code does
            found = ops.instances(logits, masks, rows, columns, extent, topk, only)
        return Results(semantic, segments, found)

    return jax.jit(jax.vmap(one), out_shardings=split)
