r"""How much memory a large photograph takes: 5000 x 3300 pixels, four turns, the published widths.

    python -m experiments.crm.memory                             # under 6GiB
    python -m experiments.crm.memory --max-memory=6GiB,10GiB --out=memory.json

Every bound gets a process of its own, whose peak of resident memory, weights, programs and Python
included, is printed beside the bound; so is how far the result is from that of the first bound.
Weights are random (or of a workdir): neither time nor memory depends on them. This needs the extra
of the benchmarks, pip install 'segjax[torch]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from segjax import cli
from segjax.errors import SegjaxError
from segjax.inference import draw, refinement


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiments.crm.memory", description="Peak memory of refining a large photograph."
    )
    parser.add_argument("--size", default="5000x3300", help="width x height in pixels")
    parser.add_argument("--max-memory", default="6GiB", help="bounds, separated by commas; 0: none")
    parser.add_argument("--workdir", default="", help="of a CRM; random weights without it")
    parser.add_argument("--tiny", action="store_true", help="a small network")
    parser.add_argument("--out", default="", help="write the figures to this JSON file")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    width, height = (int(side) for side in args.size.split("x"))
    if args.child:
        alone((height, width), args.max_memory, args.workdir, args.tiny, Path(args.child))
        return 0
    if importlib.util.find_spec("torch") is None:
        raise SegjaxError(
            "the photograph comes with the benchmarks, which need torch; run pip install"
            " 'segjax[torch]'."
        )
    rows = measured(args)
    for row in rows:
        far = f", {row['difference']:.1e} from the first" if row is not rows[0] else ""
        print(
            f"{args.size}, --max-memory={row['max_memory']}: {row['peak_bytes'] / 2**30:.2f} GiB"
            f" at most, {row['seconds']:.0f} s{far}"
        )
    if args.out:
        report = {"size": args.size, "tiny": args.tiny, "rows": rows}
        draw.write((json.dumps(report, indent=1) + "\n").encode(), args.out)
    return 0


def measured(args: argparse.Namespace) -> list[dict]:
    """A row per bound."""
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        for bound in args.max_memory.split(","):
            found = Path(folder) / "found.npz"
            given = [f"--size={args.size}", f"--max-memory={bound}", f"--workdir={args.workdir}"]
            given += ["--tiny"] * args.tiny + [f"--child={found}"]
            command = [sys.executable, "-m", "experiments.crm.memory", *given]
            if subprocess.run(command, check=False).returncode:
                raise SegjaxError(f"--max-memory={bound}: the refinement failed, see above.")
            with np.load(found) as file:
                result = file["probability"]
                row = {"max_memory": bound, "peak_bytes": int(file["peak"])}
                row["seconds"] = round(float(file["seconds"]), 1)
            first = result if first is None else first
            rows.append(row | {"difference": float(np.abs(result - first).max())})
    return rows


def alone(size: tuple[int, int], bound: str, workdir: str, tiny: bool, out: Path) -> None:
    """Refines once and writes the result, seconds (compilation included) and the peak in bytes."""
    import segjax
    from segjax.bench import crm
    from segjax.data.progress import meter
    from segjax.runtime import setup

    setup()
    if workdir:
        loaded = segjax.load(workdir)
        system, variables = loaded.system, loaded.variables
    else:
        system, variables = crm.crm_pair(tiny)
    start = time.monotonic()
    with meter(f"refining under {bound}") as progress:
        probability = refinement.refine(
            system,
            variables,
            crm.photograph(size),
            crm.coarse_mask(size),
            max_memory=refinement.memory(bound),
            progress=progress,
        )
    peak, seconds = crm.resident("VmHWM"), time.monotonic() - start
    np.savez(out, probability=probability, seconds=seconds, peak=peak)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
