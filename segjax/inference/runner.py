"""Runs a system over the windows of planned images, and assembles what it says.

Images go through in groups whose plans have the same windows. Each device takes its share of the
images, runs all their windows through one compiled shape, and assembles its images by itself; no
scores travel between devices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.inference.windows import (
    Copy,
    Settings,
    blocks,
    cut,
    join_regions,
    output_size,
    plan_ready,
    rescale,
    token_centres,
)
from segjax.metrics import confusion
from segjax.ops import assembly
from segjax.structs import Array, Semantic, Size, System, Variables
from segjax.training.sharding import batch_sharding, replicated

STRIP_BYTES = 2**28
"""Full-resolution class scores that are on the device at a time when somebody asks for them."""

SCORE_BYTES = 2**29
"""Low-resolution scores that a device may hold at a time before it takes fewer images at once."""

Plan = list[Copy]


class Windows(NamedTuple):
    """The windows of one image, by shape.

    Attributes:
        images: for each distinct window shape, uint8 (or normalised float) [n, h, w, 3].
        extents: for each, int32 [n, 2].
    """

    images: list[np.ndarray]
    extents: list[np.ndarray]


class Scores(NamedTuple):
    """What the system said about a group, on the devices.

    Attributes:
        calls: for each window shape, the results of its calls: float32 [B * per_call, h, w, K].
        regions: the same of region maps, int32 [B * per_call, h, w]; empty without regions.
    """

    calls: list[list[Array]]
    regions: list[list[Array]]


def shapes(plan: Plan) -> list[Size]:
    """The distinct window shapes of a plan, in order."""
    return list(dict.fromkeys(copy.window for copy in plan))


def layout(plan: Plan) -> tuple[tuple[int, int, tuple[int, int]], ...]:
    """For each copy (index of its window shape, its first window among those, its grid)."""
    order, counts, places = shapes(plan), {}, []
    for copy in plan:
        shape = order.index(copy.window)
        first = counts.get(shape, 0)
        places.append((shape, first, copy.grid))
        counts[shape] = first + copy.windows
    return tuple(places)


def original_size(plan: Plan) -> Size:
    """(height, width) of the image as it came."""
    return plan[0].rows.original, plan[0].columns.original


def plainest(plan: Plan) -> Copy:
    """The copy that is least changed: whose regions are shown."""
    plain = [copy for copy in plan if not copy.mirrored]
    return min(plain, key=lambda copy: abs(math.log(copy.rows.inner / copy.rows.original)))


def windows_of(image: np.ndarray, plan: Plan) -> Windows:
    """Rescales an image [H, W, 3] for every copy and cuts it."""
    return join_cuts([cut(rescale(image, copy), copy) for copy in plan], plan)


def join_cuts(cuts: Sequence[tuple[np.ndarray, np.ndarray]], plan: Plan) -> Windows:
    """`Windows` from what `cut` gave for every copy of the plan."""
    found = Windows([], [])
    for shape in shapes(plan):
        same = [parts for parts, copy in zip(cuts, plan) if copy.window == shape]
        found.images.append(np.concatenate([images for images, _ in same]))
        found.extents.append(np.concatenate([extents for _, extents in same]))
    return found


def infer_ready(
    system: System,
    variables: Variables,
    images: Sequence[np.ndarray],
    mirrored: Sequence[bool],
    original: Size,
    settings: Settings | Mapping[str, Any],
    what: str = "labels",
) -> np.ndarray:
    """Infers from test-time copies that are rescaled, normalised and mirrored already.

    Args:
        system: what predicts.
        variables: its variables.
        images: float [h, w, 3] each (or uint8, not normalised).
        mirrored: whether each is mirrored; its result is mirrored back.
        original: (height, width) of the result.
        settings: how windows are laid; `scale`, `ratios` and `flip` don't matter.
        what: "labels"; "scores", logits of one copy, mean probabilities of several; or
            "probabilities".

    Returns:
        int16 [H, W] labels, or float32 [H, W, K].
    """
    settings = Settings.of(settings)
    plan = plan_ready(original, [image.shape[:2] for image in images], mirrored, settings)
    runner = Runner(system, variables, settings, one_device())
    cuts = [cut(np.asarray(image), copy) for image, copy in zip(images, plan)]
    scores = runner.run({0: join_cuts(cuts, plan)}, plan, 1)
    return (
        runner.one_labels(scores, plan)
        if what == "labels"
        else runner.one_scores(scores, plan, what)
    )


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return Mesh(np.array(jax.local_devices()[:1]), ("data",))


class Runner:
    """A system with its variables on a mesh.

    Attributes:
        mesh: the devices; the batch is split over its axes "data" and "fsdp".
        shards: parts that a batch is split into.
    """

    def __init__(
        self,
        system: System,
        variables: Variables,
        settings: Settings,
        mesh: Mesh | None = None,
        regions: bool = False,
    ) -> None:
        """
        Args:
            system: hashable, as all systems are; compiled code is kept between runners.
            variables: on the mesh already, or anywhere, then put on every device.
            settings: how to infer.
            mesh: by default all devices in a row.
            regions: keep the region maps too.
        """
        self.mesh = Mesh(np.array(jax.devices()), ("data",)) if mesh is None else mesh
        self.system, self.settings = system, settings
        self._split = batch_sharding(self.mesh)
        self.shards = self.mesh.size // self._split.shard_shape((self.mesh.size,))[0]
        self.variables = jax.tree.map(self._place, variables)
        self._regions = regions
        self._predict = _compiled_predict(system, self.mesh, regions)

    def _place(self, leaf: Any) -> Array:
        devices = set(self.mesh.devices.flat)
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        return jax.device_put(leaf, replicated(self.mesh))

    def cells(self, window: Size) -> tuple[int, int, int]:
        """(h, w, K) of the scores of a window of (height, width)."""
        return self._said(window).scores.shape[1:]

    def covers(self, window: Size) -> Size:
        """(height, width) in pixels that the scores of a window stand for."""
        return self._said(window).covers or window

    def _said(self, window: Size) -> Semantic:
        """Shapes of what the system says about a window."""
        return _said(self.system, window, jax.tree.structure(self.variables), self._leaves)

    @functools.cached_property
    def _leaves(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        leaves = jax.tree.leaves(self.variables)
        return tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)

    def group_size(self, plan: Plan, images: int) -> int:
        """Rows for the next group out of `images` images with this plan, over all devices.

        As many as `batch` and memory allow; for a few images fewer, so that the rest is not blown
        up.
        """
        batch = -(-self.settings.batch // self.shards)
        size = sum(4 * copy.windows * math.prod(self.cells(copy.window)) for copy in plan)
        affordable = max(SCORE_BYTES // size, 1)
        sizes = [n for n in range(1, batch + 1) if batch % n == 0 and n <= affordable]
        enough = [n for n in sizes if n * self.shards >= images]
        return min(enough, default=sizes[-1]) * self.shards

    def local_rows(self, count: int) -> list[int]:
        """Which of `count` images of a group this process has to provide."""
        return _rows(self._split, count)

    def run(self, rows: Mapping[int, Windows], plan: Plan, count: int) -> Scores:
        """Runs the system on all windows of a group.

        Args:
            rows: for each of `local_rows(count)`, its windows. All have the shapes of `plan`.
            plan: of any image of the group.
            count: images in the group, over all processes; a multiple of `shards`.
        """
        result = Scores([], [])
        batch = -(-self.settings.batch // self.shards) * self.shards
        for shape in range(len(shapes(plan))):
            total = sum(copy.windows for copy in plan if copy.window == shapes(plan)[shape])
            # A few windows of few images are not blown up to the full batch.
            per_call = min(max(batch // count, 1), 2 ** (total - 1).bit_length())
            calls, regions = [], []
            for first in range(0, total, per_call):
                image, extent = (
                    self._put_windows(rows, field, shape, first, per_call, count)
                    for field in ("images", "extents")
                )
                scores, region = self._predict(self.variables, image, extent)
                calls.append(scores)
                regions.append(region)
            result.calls.append(calls)
            if self._regions and regions[0] is not None:
                result.regions.append(regions)
        return result

    def _put_windows(
        self,
        rows: Mapping[int, Windows],
        field: str,
        shape: int,
        first: int,
        per_call: int,
        count: int,
    ) -> Array:
        """Windows first .. first+per_call of every image, on the devices; zeros after the last."""

        def of_image(row: int) -> np.ndarray:
            part = getattr(rows[row], field)[shape][first : first + per_call]
            missing = per_call - len(part)
            return np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) if missing else part

        example = getattr(next(iter(rows.values())), field)[shape]

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            begin, end, _ = index[0].indices(count * per_call)
            images = range(begin // per_call, end // per_call)
            return np.concatenate([of_image(row) for row in images])

        global_shape = (count * per_call, *example.shape[1:])
        return jax.make_array_from_callback(
            global_shape, self._split, of_device, dtype=example.dtype
        )

    def put(self, rows: Mapping[int, np.ndarray], count: int) -> Array:
        """One array per image of the group -> a global array [count, ...]."""
        example = next(iter(rows.values()))

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            return np.stack([rows[row] for row in range(count)[index[0]]])

        return jax.make_array_from_callback(
            (count, *example.shape), self._split, of_device, dtype=example.dtype
        )

    def assembly_inputs(
        self, plans: Mapping[int, Plan], size: Size, count: int
    ) -> list[tuple[assembly.Blocks, assembly.Blocks]]:
        """For each copy its row and column blocks [count, ...] on the devices.

        Args:
            plans: for each of the group's images, also those of other processes (block widths must
                agree), its plan.
            size: (height, width) of the output.
            count: images in the group.
        """
        inputs = []
        for number in range(len(plans[0])):
            window = plans[0][number].window
            cells, covers = self.cells(window)[:2], self.covers(window)
            axes = zip(*(blocks(plans[row][number], cells, size, covers) for row in range(count)))
            inputs.append(tuple(self._put_blocks(assembly.stack(axis), count) for axis in axes))
        return inputs

    def _put_blocks(self, axis: assembly.Blocks, count: int) -> assembly.Blocks:
        return jax.tree.map(lambda x: self.put(dict(enumerate(x)), count), axis)

    # A single image, on a mesh of one device.

    def one_labels(self, scores: Scores, plan: Plan) -> np.ndarray:
        """int16 [H, W], the class of every pixel of the only image of a group."""
        height, width = original_size(plan)
        inputs = self.assembly_inputs({0: plan}, output_size((height, width)), 1)
        labels = self._assemble("labels", plan)(scores.calls, inputs)
        return np.asarray(labels[0])[:height, :width]

    def one_scores(
        self, scores: Scores, plan: Plan, what: str, dtype: str = "float32"
    ) -> np.ndarray:
        """[H, W, K] for the only image of a group; strips of it are made one after another.

        Args:
            scores: of the group.
            plan: of the image.
            what: "scores" or "probabilities", or "nodes" of a system with a decision of its own;
                see `ops.assembly`.
            dtype: of the result.
        """
        height, width = original_size(plan)
        padded = output_size((height, width))
        inputs = self.assembly_inputs({0: plan}, padded, 1)
        tiles = padded[0] // assembly.ROW_TILE
        said = self._said(plan[0].window)
        channels = said.scores.shape[-1] if what == "nodes" else self.system.classes
        strip = 4 * assembly.ROW_TILE * padded[1] * channels
        most = max(STRIP_BYTES // strip, 1)
        step = max(n for n in range(1, min(tiles, most) + 1) if tiles % n == 0)
        assemble = self._assemble(what, plan)
        result = np.empty((height, width, channels), dtype)
        for first in range(0, tiles, step):
            part = [
                (jax.tree.map(lambda x: x[:, first : first + step], rows), columns)  # noqa: B023
                for rows, columns in inputs
            ]
            top = first * assembly.ROW_TILE
            if top < height:
                strip = np.asarray(assemble(scores.calls, part)[0])
                result[top : top + len(strip)] = strip[: height - top, :width]
        return result

    def count_areas(
        self, total: Array, scores: Scores, inputs: list, plan: Plan, semantic: Array
    ) -> tuple[Array, Array]:
        """The totals with the group's areas added, and its labels."""
        return self._assemble("areas", plan)(scores.calls, inputs, total, semantic)

    def count_pairs(self, total: Array, labels: Array, semantic: Array) -> tuple[Array, Array]:
        """The confusion matrices with the group's added, and the areas of each image.

        Args:
            total: of `zero_pairs`, or of the group before.
            labels: int16 [B, H, W] of `count_areas`.
            semantic: int16 [B, H, W].

        Returns:
            uint32 [shards, 2, K, K] and int32 [B, 3, K].
        """
        return _compiled_pairs(self.mesh, self._split)(total, labels, semantic)

    def zero_areas(self) -> Array:
        """Totals for `count_areas`: uint32 [shards, 2, 3, K], each device has its own."""
        return self._zeros(3, self.system.classes)

    def zero_pairs(self) -> Array:
        """Totals for `count_pairs`: uint32 [shards, 2, K, K], rows truth, columns prediction."""
        return self._zeros(self.system.classes, self.system.classes)

    def _zeros(self, rows: int, columns: int) -> Array:
        shape = (self.shards, 2, rows, columns)
        return jax.make_array_from_callback(
            shape,
            self._split,
            lambda index: np.zeros((len(range(self.shards)[index[0]]), *shape[1:]), np.uint32),
            dtype=np.uint32,
        )

    def fetch(self, array: Array) -> np.ndarray:
        """A global array in full, on every process."""
        return np.asarray(_replicate(self.mesh)(array))

    def row(self, array: Array, row: int) -> np.ndarray:
        """Row `row` of a global array; one of this process's rows."""
        for shard in array.addressable_shards:
            begin, end, _ = shard.index[0].indices(array.shape[0])
            if begin <= row < end:
                return np.asarray(shard.data[row - begin])
        raise ValueError(f"row {row} lies on another process.")

    def region_map(self, scores: Scores, plan: Plan, row: int, count: int) -> np.ndarray | None:
        """The regions of image `row` of a group at the image's own size, int32 [H, W].

        See `windows.join_regions` for their numbers. None without regions.
        """
        if not scores.regions:
            return None
        copy = plainest(plan)
        shape, first, _ = layout(plan)[plan.index(copy)]
        parts = scores.regions[shape]
        per_call = parts[0].shape[0] // count
        found = [
            self.row(parts[k // per_call], row * per_call + k % per_call)
            for k in range(first, first + copy.windows)
        ]
        return join_regions(np.stack(found), copy)

    def token_centres(self, plan: Plan) -> np.ndarray | None:
        """(y, x) of the tokens behind `region_map`, float32 [N, 2]; None where unknown."""
        region = getattr(getattr(self.system, "module", None), "region", None)
        if region is None:
            return None
        copy = plainest(plan)
        h, w, _ = self.cells(copy.window)
        return token_centres(copy, (h // region[0], w // region[1]))

    def _assemble(self, what: str, plan: Plan) -> Callable[..., Any]:
        decision = self._said(plan[0].window).decision
        return _compiled_assembly(what, self.mesh, self._split, layout(plan), decision)


# --------------------------------------------------------------------------------------------------
# Compiled code, kept as long as system and mesh are the same


@functools.lru_cache(maxsize=16)
def _compiled_predict(system: System, mesh: Mesh, regions: bool) -> Callable[..., Any]:
    def predict(variables: Variables, image: Array, extent: Array) -> tuple[Array, Array | None]:
        said = system.predict(variables, {"image": image, "image_size": extent})
        return said.scores.astype(jnp.float32), said.regions if regions else None

    return jax.jit(predict, out_shardings=batch_sharding(mesh))


@functools.lru_cache(maxsize=256)
def _said(
    system: System, window: Size, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Semantic:
    batch = {
        "image": jax.ShapeDtypeStruct((1, *window, 3), jnp.uint8),
        "image_size": jax.ShapeDtypeStruct((1, 2), jnp.int32),
    }
    return jax.eval_shape(system.predict, jax.tree.unflatten(tree, leaves), batch)


@functools.lru_cache(maxsize=256)
def _compiled_assembly(
    what: str,
    mesh: Mesh,
    split: NamedSharding,
    places: tuple,
    decision: assembly.Decision | None,
) -> Callable[..., Any]:
    def copies(calls: list[list[Array]], inputs: list) -> list[assembly.Copy]:
        images = inputs[0][0].indices.shape[0]  # of this device
        windows = [
            jnp.concatenate([part.reshape(images, -1, *part.shape[1:]) for part in parts], axis=1)
            for parts in calls
        ]
        return [
            assembly.Copy(
                assembly.join_windows(windows[shape][:, first : first + grid[0] * grid[1]], grid),
                rows,
                columns,
            )
            for (shape, first, grid), (rows, columns) in zip(places, inputs)
        ]

    def labels(calls: list, inputs: list) -> Array:
        return assembly.labels(copies(calls, inputs), decision).astype(jnp.int16)

    def class_scores(calls: list, inputs: list) -> Array:
        return getattr(assembly, what)(copies(calls, inputs), decision)

    def areas(calls: list, inputs: list, total: Array, semantic: Array) -> tuple[Array, Array]:
        found = labels(calls, inputs)
        counted = confusion.image_areas(found, semantic, total.shape[-1])
        return confusion.add(total[0], counted)[None], found

    function = {"labels": labels, "areas": areas}.get(what, class_scores)
    # Each device by itself. Over other axes of the mesh the same is computed everywhere.
    by_device = jax.shard_map(
        function, mesh=mesh, in_specs=split.spec, out_specs=split.spec, check_vma=False
    )
    return jax.jit(by_device)


@functools.lru_cache(maxsize=16)
def _compiled_pairs(mesh: Mesh, split: NamedSharding) -> Callable[..., tuple[Array, Array]]:
    def count(total: Array, labels: Array, semantic: Array) -> tuple[Array, Array]:
        pairs = confusion.image_pairs(labels, semantic, total.shape[-1])
        return confusion.add(total[0], pairs)[None], confusion.pair_areas(pairs)

    by_device = jax.shard_map(
        count, mesh=mesh, in_specs=split.spec, out_specs=split.spec, check_vma=False
    )
    return jax.jit(by_device)


@functools.lru_cache(maxsize=16)
def _replicate(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _rows(split: NamedSharding, count: int) -> list[int]:
    parts = split.addressable_devices_indices_map((count,)).values()
    return sorted({row for (part,) in parts for row in range(count)[part]})
