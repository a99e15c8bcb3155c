r"""All pixels asked, or those around the boundary alone: what the second saves and changes.

    python -m experiments.crm.queries --workdir=W photo.jpg,coarse.png big.jpg,big.png

Each photograph is refined with `query="all"` and with `query="band"`, once to compile and then by
turns. Printed are the seconds of both, and of the masks of "band" the IoU and mBA with those of
"all" as truth: 100 where nothing differs. On a set with exact masks, figure7 --star has both ways.

results/queries.json: the small CRM of configs/crm/shapescapes_tiny.py. Of 8 megapixels "band" takes
a fifth of the time, of 0.3 it takes more. On that config's own scenes IoU is 79.6 instead of 77.7,
mBA 80.5 either way: what lies far from the coarse boundary can't be spoilt. That model has seen no
photograph and leaves holes in objects there: of those IoU and mBA mean little, and only the seconds
carry over to other weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import segjax
from segjax import cli
from segjax.errors import SegjaxError
from segjax.inference import draw
from segjax.metrics.boundary import Scores

WAYS = ("all", "band")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="experiments.crm.queries", description="Ways to ask, on photographs."
    )
    parser.add_argument("--workdir", required=True, help="of a CRM")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    parser.add_argument("--out", default="", help="write the figures to this JSON file")
    parser.add_argument("photographs", nargs="+", help="IMAGE,MASK")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise SegjaxError(f"--repeats={args.repeats}: take 1 or more.")
    pairs = [tuple(pair.split(",")) for pair in args.photographs]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise SegjaxError(f"{','.join(wrong[0])}: name an image and its mask, IMAGE,MASK.")
    rows = [compared(args.workdir, *pair, args.repeats) for pair in pairs]
    for row in rows:
        print(
            f"{row['image']}: {row['seconds']['all']:.2f} s -> {row['seconds']['band']:.2f} s"
            f" ({row['gain']:.2f}x)  IoU {row['IoU']:.2f}  mBA {row['mBA']:.2f}"
        )
    if args.out:
        draw.write((json.dumps(rows, indent=1) + "\n").encode(), args.out)
    return 0


def compared(workdir: str, image: str, mask: str, repeats: int) -> dict[str, Any]:
    """Both ways on one photograph."""
    refiners = {
        way: segjax.load(workdir, overrides=[f"--config.model.query={way}"]) for way in WAYS
    }
    masks = {way: refiner(image, mask).mask for way, refiner in refiners.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, refiner in refiners.items():
            start = time.perf_counter()
            refiner(image, mask)
            seconds[way].append(time.perf_counter() - start)
    medians = {way: round(statistics.median(values), 4) for way, values in seconds.items()}
    found = Scores().update(masks["all"], masks["all"], masks["band"])
    return {
        "image": image.rpartition("/")[2],
        "size": list(masks["all"].shape),
        "seconds": medians,
        "gain": round(medians["all"] / medians["band"], 3),
        "IoU": round(found["iou"], 3),
        "mBA": round(found["mba"], 3),
    }


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
