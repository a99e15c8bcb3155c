"""`segjax bench`: how fast segjax is here, beside PyTorch."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from segjax import cli
from segjax.errors import SegjaxError

BENCHMARKS = ("regproxy", "mask2former", "hssn", "crm", "ops")
SIZES = ("ti", "s", "b", "l")


def main(argv: list[str]) -> int:
    """Runs a benchmark; returns the exit status, 1 if a row could not be measured."""
    parser = argparse.ArgumentParser(
        prog="segjax bench",
        description="Times segjax and PyTorch by turns, after comparing their results. regproxy:"
        " forward pass, training step, whole prediction, painting, loader. mask2former: forward"
        " pass, training step, matching, deformable sampling, results, beside transformers. hssn:"
        " tree losses, DeepLabV3+, OCRNet. crm: whole refinements by CRM and CascadePSP, boundary"
        " accuracy. ops: every op of segjax.ops against its plain form and"
        " PyTorch's.",
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

    # Slow to import: after --help.
    from segjax.bench import (
        crm,
        hssn,
        mask2former,
        measure,
        metrics_contest,
        ops,
        ops_sets,
        regproxy,
        torch_mask2former,
        torch_side,
    )
    from segjax.runtime import setup

    setup()
    device = torch_side.setup()
    classes = {"mask2former": 133, "hssn": 19}.get(args.what, 150)
    side, classes, rounds = (64, 12, 2) if args.quick else (args.side, classes, args.repeats)
    if args.what == "ops":
        narrow = dict(width=32, heads=2) if args.quick else {}
        shapes = ops.Shapes(side, classes, device=device, **narrow)
        contests = [
            *ops.contests(shapes),
            *ops_sets.contests(shapes),
            *metrics_contest.contests(),
        ]
    elif args.what == "crm":
        tiny = dict(size=(72, 100), small=(72, 100), side=80, large=(300, 450), tiny=True)
        tiny = tiny if args.quick else {}
        contests = crm.contests(crm.Options(device=device, **tiny))
    elif args.what == "hssn":
        tiny = dict(labels=(32, 64), tiny=True) if args.quick else {}
        contests = hssn.contests(
            hssn.Options(
                image=(side // 2, side),
                batch=args.batch,
                classes=classes,
                compile=not (args.quick or args.no_compile),
                device=device,
                **tiny,
            )
        )
    elif args.what == "mask2former":
        torch_mask2former.transformers()
        tiny = dict(shape=mask2former.TINY, targets=3, room=5, size=(60, 80)) if args.quick else {}
        contests = mask2former.contests(
            mask2former.Options(
                side=side,
                batch=args.batch,
                classes=classes,
                compile=not (args.quick or args.no_compile),
                device=device,
                **tiny,
            )
        )
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
    rows = measure.measure_all(chosen, rounds)
    measure.publish(args.what, settings, rows, args.out)
    return 0 if all(row["sides"] for row in rows) else 1


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
