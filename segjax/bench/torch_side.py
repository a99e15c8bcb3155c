"""PyTorch as a side of a contest. Importing this module needs torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from segjax.bench import measure
from segjax.bench.measure import Side
from segjax.errors import SegjaxError


def setup() -> str:
    """Gives PyTorch the threads that XLA has, and float32 products of the same exactness.

    Returns:
        The device that JAX computes on, as PyTorch calls it.

    Raises:
        SegjaxError: JAX computes on a GPU that this PyTorch doesn't see.
    """
    torch.set_num_threads(measure.cores())
    if jax.default_backend() != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise SegjaxError(
            "JAX computes on a GPU that PyTorch doesn't see; install a CUDA build of torch, or set"
            " JAX_PLATFORMS=cpu."
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return "cuda"


def tensor(array: Any, device: str) -> Tensor:
    """The array on the device."""
    return torch.tensor(np.asarray(array), device=device)


def nchw(array: Any, device: str) -> Tensor:
    """[B, H, W, C] -> contiguous [B, C, H, W]."""
    return tensor(array, device).permute(0, 3, 1, 2).contiguous()


def side(function: Callable[[], Any], device: str) -> tuple[Side, Any]:
    """`function` as a side, and what it gives."""

    def run() -> Any:
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    result = run()
    return Side(run, temporary_bytes(run, device)), result


def temporary_bytes(run: Callable[[], Any], device: str) -> int | None:
    """The most that PyTorch held at a time during `run`, less what it held before and what is
    returned."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return torch.cuda.max_memory_allocated() - before - _size(result)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = run()
    events = getattr(profile.profiler, "kineto_results", None)
    if events is None:
        return None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in events.events()
        if event.name() == "[memory]"
    )
    held = np.cumsum([change for _, change in changes] or [0])
    return max(int(held.max()) - _size(result), 0)


def _size(result: Any) -> int:
    tensors = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, Tensor)]
    return sum(leaf.untyped_storage().nbytes() for leaf in tensors)


def faster(
    function: Callable[..., Any], use: Callable[[Callable[..., Any]], Any]
) -> tuple[Callable[..., Any] | None, str]:
    """torch.compile of `function`, which `use` has run once; or None, and why that fails."""
    try:
        program = torch.compile(function)
        use(program)
    except Exception as error:  # whatever the compiler, or the lack of one, raises
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0][:100]}"
    return program, ""
