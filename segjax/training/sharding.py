"""How batch, parameters and optimizer state lie on the devices.

`config.mesh.axes` names the axes of the device mesh, e.g. (("data", -1), ("tensor", 2)). The batch
is split over the axes "data" and "fsdp" (those there are). `config.mesh.rules` gives each parameter
a tactic; the first regex found in its path counts:

    replicate      every device holds it whole
    fsdp           its longest dimension that can be is split over "fsdp", or "data" where there is
                   no "fsdp"; what can't be split is replicated
    tensor:<dim>   dimension <dim> is split over "tensor"

Adam's moments and the moving average lie as their parameter does. Results do not depend on any of
this, up to the order of float additions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.errors import SegjaxError
from segjax.training.optimizer import map_by_path

PyTree = Any
BATCH_AXES = ("data", "fsdp")


def make_mesh(axes: Sequence[tuple[str, int]], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh.axes` over all devices.

    Raises:
        SegjaxError: the axes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    try:
        names, sizes = [str(name) for name, _ in axes], [int(size) for _, size in axes]
    except (TypeError, ValueError):
        raise SegjaxError(
            f"config.mesh.axes: {axes!r} is not of the form (('data', -1), ('tensor', 2))."
        ) from None
    unknown = [name for name in names if name not in (*BATCH_AXES, "tensor")]
    if unknown or len(set(names)) != len(names) or sizes.count(-1) > 1 or 0 in sizes:
        raise SegjaxError(
            f"config.mesh.axes: {tuple(axes)!r} must name each of data, fsdp and tensor at most"
            " once, with at most one size of -1."
        )
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise SegjaxError(
            f"config.mesh.axes: {tuple(axes)!r} needs {'a multiple of ' * (-1 in sizes)}{known}"
            f" devices, and there are {len(devices)}."
        )
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    return Mesh(mesh_utils.create_device_mesh(sizes, devices), names)


def check_batch(mesh: Mesh, batch: int, accumulate: int = 1) -> None:
    """Raises a SegjaxError when the mesh can't split the batch, or a slice of it, evenly."""
    shards = math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))
    if batch % shards:
        raise SegjaxError(
            f"config.data.batch is {batch}, which the {shards} parts that the mesh splits a batch"
            f" into do not divide; take a multiple of {shards}."
        )
    if batch % (shards * accumulate):
        raise SegjaxError(
            f"config.accumulate: slices of {batch}/{accumulate} images can't be split over the"
            f" {shards} parts of the mesh; lower it, or take a batch that is a multiple of"
            f" {shards * accumulate}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension over "data" and "fsdp"."""
    axes = _batch_axes(mesh)
    return NamedSharding(mesh, PartitionSpec(axes if axes else None))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def process_rows(mesh: Mesh, batch: int) -> tuple[int, int]:
    """(index, count): this process feeds part `index` of `count` equal parts of the batch.

    Processes that share their rows (tensor parallelism over hosts) have the same index.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    rows = sorted({row for (part,) in slices for row in range(batch)[part]})
    if rows[-1] - rows[0] + 1 != len(rows) or rows[0] % len(rows):
        raise SegjaxError(
            "config.mesh.axes: this order gives a process scattered rows of the batch; name data"
            " and fsdp before tensor."
        )
    return rows[0] // len(rows), batch // len(rows)


def parameter_shardings(params: PyTree, mesh: Mesh, rules: Sequence[tuple[str, str]]) -> PyTree:
    """A NamedSharding for each parameter.

    Args:
        params: tree of arrays or ShapeDtypeStructs.
        mesh: the devices.
        rules: `config.mesh.rules`.

    Raises:
        SegjaxError: a tactic that isn't one, or doesn't fit a parameter.
    """

    def choose(path: str, leaf: Any) -> NamedSharding:
        for pattern, tactic in rules:
            if re.search(pattern, path):
                return NamedSharding(mesh, _spec(path, leaf.shape, mesh, str(tactic)))
        return replicated(mesh)

    return map_by_path(choose, params)


def _spec(path: str, shape: Sequence[int], mesh: Mesh, tactic: str) -> PartitionSpec:
    name, _, dimension = tactic.partition(":")
    if tactic == "replicate":
        return PartitionSpec()
    if tactic == "fsdp":
        axis = "fsdp" if "fsdp" in mesh.shape else "data"
        size = mesh.shape.get(axis, 1)
        fitting = [i for i in range(len(shape)) if shape[i] % size == 0]
        if size == 1 or not fitting:
            return PartitionSpec()
        longest = max(fitting, key=lambda i: shape[i])
        return PartitionSpec(*[axis if i == longest else None for i in range(longest + 1)])
    if name == "tensor" and re.fullmatch(r"-?\d+", dimension):
        if "tensor" not in mesh.shape:
            raise SegjaxError(
                f"config.mesh.rules: '{tactic}' needs an axis 'tensor' in config.mesh.axes."
            )
        dim, size = int(dimension), mesh.shape["tensor"]
        if not -len(shape) <= dim < len(shape) or shape[dim] % size:
            raise SegjaxError(
                f"config.mesh.rules: '{tactic}' can't split {path} of shape {tuple(shape)} over"
                f" the {size} devices of the axis 'tensor'."
            )
        dim %= len(shape)
        return PartitionSpec(*["tensor" if i == dim else None for i in range(dim + 1)])
    raise SegjaxError(
        f"config.mesh.rules: '{tactic}' is not a tactic; take replicate, fsdp or tensor:<dim>."
    )


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def global_batch(local: dict[str, np.ndarray], mesh: Mesh, batch: int) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices: arrays of the whole batch, split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array, (batch, *array.shape[1:]))
        for name, array in local.items()
    }
