r"""CRM's cost table: parameters and FLOPs of CascadePSP, CRM and CRM*, as the paper counts them.

    python -m experiments.crm.costs

The paper's counter (thop) takes a multiply-add as one FLOP, sees convolutions and linear layers,
and their weights alone as parameters: its batch norms are of a class that it doesn't know, and
CRM's fourth stage, which is in the file and never used, is not counted either. It doesn't say which
image it is; 2536 G are four turns over 1704 x 2560 pixels, and 26518 G one global step and eight
local ones over an image of the same shape, counting biases and adaptive pooling too. Both columns
are given here, from the shapes of our parameters and the strides of the official forms: what runs
here has fewer multiply-adds (see segjax/ops/implicit.py and the pyramid of
segjax/systems/cascade_psp.py).

The time is that of the paper: seconds for all 100 images of BIG, presumably. For times of this
machine see `segjax bench crm`; for schedules that CRM* could be, experiments.crm.figure7 --star.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from experiments import comparison
from experiments.comparison import Row
from segjax import cli, systems
from segjax.structs import Size

IMAGE = (1704, 2560)
"""(height, width) that fits both of the paper's counts."""

LOCAL = (904, 904)
"""What a crop of 900 x 900 is filled up to."""

GLOBAL = (600, 904)
"""IMAGE at a long side of 900, filled up."""

CROPS = 8

CORNERS = 4
"""Cells that the implicit function is asked beside."""

PAPER = {"CascadePSP": (620, 26518, 67.62), "CRM": (425, 2536, 9.27), "CRM*": (259, 1331, 9.27)}
"""Seconds, GFLOPs, million parameters."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(config: str) -> Shapes:
    """The parameters of a config's system by path: "backbone/stem_conv/kernel"."""
    system = systems.build(comparison.load(Row("", config)).model)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    mask = jax.ShapeDtypeStruct((1, 64, 64), jnp.uint8)
    batch = {"image": image, "coarse_mask": mask, "mask": mask}
    variables = jax.eval_shape(lambda b: system.init(jax.random.key(0), b), batch)
    return {"/".join(path): leaf.shape for path, leaf in flatten_dict(variables["params"]).items()}


def parameters(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def counted_parameters(shapes: Shapes) -> int:
    """Those of convolutions and linear layers."""
    return sum(
        math.prod(shape)
        for path, shape in shapes.items()
        if not re.search(r"norm\d?/(scale|bias)$", path)
    )


def _positions(size: Size, stride: int) -> int:
    """Of a map, every halving rounded up."""
    return math.prod(-(-side // stride) for side in size)


def encoder_stride(path: str) -> int:
    """Of the results of a backbone's convolution: 8 from the second stage on, whose first
    bottleneck has the stride in its 3x3 convolution."""
    stage, block, conv = re.match(r"backbone/(?:stem|res(\d)_(\d+))_?/?(\w+)/kernel", path).groups()
    if stage is None:
        return 2
    if stage == "2" or (stage, block, conv) == ("3", "0", "conv1"):
        return 4
    return 8


def _macs(shapes: Shapes, positions: Callable[[str], int], chosen: str) -> int:
    """Multiply-adds of the kernels whose paths match."""
    return sum(
        math.prod(shape) * positions(path)
        for path, shape in shapes.items()
        if path.endswith("kernel") and re.match(chosen, path)
    )


def crm_macs(shapes: Shapes, size: Size, scales: Sequence[float], queries: int) -> int:
    """Multiply-adds of a refinement.

    Args:
        shapes: of `shapes_of`.
        size: (height, width) of the image.
        scales: of the turns.
        queries: pixels asked in every turn.
    """
    strides = {"project_0": 2, "project_1": 4, "project_2": 8, "mix": 2}
    per_query = CORNERS * _macs(shapes, lambda path: 1, "implicit/")
    total = 0
    for scale in scales:
        small = tuple(round(side * scale) for side in size)

        def positions(path: str, small: Size = small) -> int:
            if path.startswith("alignment/"):
                return _positions(small, strides[path.split("/")[1]])
            return _positions(small, encoder_stride(path))

        total += _macs(shapes, positions, "backbone/|alignment/") + per_query * queries
    return total


def cascade_macs(shapes: Shapes, size: Size, passes: Sequence[int]) -> int:
    """Multiply-adds of passes of CascadePSP over an image of `size`, sides multiples of 8.

    The first pass ends at stride 8, the second at 4, the third at 1.
    """
    ends = {1: ("head_8",), 2: ("head_8", "up_1", "head_4")}
    ends[3] = (*ends[2], "up_2", "up_3", "head_1")
    strides = {"head_8": 8, "up_1": 4, "head_4": 4, "up_2": 2, "up_3": 1, "head_1": 1}

    def positions(path: str) -> int:
        part = path.split("/")
        if part[0] == "backbone":
            return _positions(size, encoder_stride(path))
        if part[0] == "psp":
            grid = {f"grid_{i}": n * n for i, n in enumerate((1, 2, 3, 6))}
            return grid.get(part[1], _positions(size, 8))
        return _positions(size, strides[part[0]])

    return sum(
        _macs(shapes, positions, "|".join(f"{name}/" for name in ("backbone", "psp", *ends[k])))
        for k in passes
    )


def figures() -> dict[str, dict[str, Any]]:
    """What the table shows of each row."""
    crm, cascade = shapes_of("crm/big_r50"), shapes_of("cascade_psp/big_r50")
    pixels = math.prod(IMAGE)
    macs = {
        "CascadePSP": cascade_macs(cascade, GLOBAL, (1, 2, 3))
        + CROPS * cascade_macs(cascade, LOCAL, (2, 3)),
        "CRM": crm_macs(crm, IMAGE, (0.125, 0.25, 0.5, 1.0), pixels),
        "CRM*": crm_macs(crm, IMAGE, (1.0,), pixels),
    }
    shapes = {"CascadePSP": cascade, "CRM": crm, "CRM*": crm}
    return {
        name: {
            "macs": macs[name],
            "parameters": parameters(shapes[name]),
            "counted": counted_parameters(shapes[name]),
        }
        for name in PAPER
    }


def main(argv: list[str]) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"CRM, costs; here one image of {IMAGE[0]} x {IMAGE[1]}")
    titles = ("paper\ntime (s)", "paper\nFLOPs", "here\nMACs", "paper\nparams", "here\nas counted")
    for title in ("row", *titles, "here\nall params"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, found in figures().items():
        seconds, flops, count = PAPER[name]
        table.add_row(
            name,
            str(seconds),
            f"{flops}G",
            f"{found['macs'] / 1e9:.1f}G",
            f"{count:.2f}M",
            f"{found['counted'] / 1e6:.2f}M",
            f"{found['parameters'] / 1e6:.3f}M",
        )
    Console().print(table)
    print(
        "CRM* here: one turn at full size with all pixels asked, the nearest that all is known of."
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
