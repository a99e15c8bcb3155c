"""`segjax bench`: how fast segjax is here, beside PyTorch."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from segjax import cli
from segjax.errors import SegjaxError

BENCHMARKS = ("regproxy", "ops")
SIZES = ("ti", "s", "b", "l")


def main(argv: list[str]) -> int:
    """Runs a benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="segjax bench",
        description="Times segjax and PyTorch by turns, after comparing their results. regproxy:"
        " forward pass, training step, whole prediction, painting, loader. ops: every op of"
        " segjax.ops against its plain form and PyTorch's.",
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--sizes", default="ti,s,b", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--side", type=int, default=512, help="pixels of the square image")
    parser.add_argument("--batch", type=int, default=1, help="images, forward and in a step")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument("--workers", type=int, default=2, help="processes of the loaders")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it work at all")
    parser.add_argument("--out", default="", help="write the report to this JSON file")
    args = parser.parse_args(argv)
    sizes = tuple(args.sizes.split(","))
    _check(args, sizes)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory too
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler would report start and stop

    from segjax.bench import measure, ops, regproxy, torch_side  # slow to import: after --help
    from segjax.runtime import setup

    setup()
    device = torch_side.setup()
    side, classes, rounds = (64, 12, 2) if args.quick else (args.side, 150, args.repeats)
    if args.what == "ops":
        narrow = dict(width=32, heads=2) if args.quick else {}
        contests = ops.contests(ops.Shapes(side, classes, device=device, **narrow))
    else:
        contests = regproxy.contests(
            regproxy.Options(
                sizes=("tiny",) if args.quick else sizes,
                side=side,
                batch=args.batch,
                classes=classes,
                workers=args.workers,
                photos=(4, 2, 2) if args.quick else (24, 8, 6),
                compile=not (args.quick or args.no_compile),
                device=device,
            )
        )
    chosen = [(name, make) for name, make in contests if args.only in name]
    if not chosen:
        raise SegjaxError(f"--only={args.only}: there is no such row; see the table without it.")
    settings = {"side": side, "batch": args.batch, "classes": classes, "rounds": rounds}
    measure.publish(args.what, settings, measure.measure_all(chosen, rounds), args.out)
    return 0


def _check(args: argparse.Namespace, sizes: tuple[str, ...]) -> None:
    for size in sizes:
        if size not in SIZES:
            raise SegjaxError(f"--sizes: there is no '{size}'; take some of {','.join(SIZES)}.")
    if args.side < 64 or args.side % 16:
        raise SegjaxError(f"--side={args.side}: take a multiple of 16, 64 or more.")
    for name, least in (("batch", 1), ("repeats", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise SegjaxError(f"--{name}={getattr(args, name)}: take {least} or more.")
    if importlib.util.find_spec("torch") is None:
        raise SegjaxError(
            "segjax bench measures beside PyTorch, which is not installed; run"
            " pip install 'segjax[torch]'."
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
