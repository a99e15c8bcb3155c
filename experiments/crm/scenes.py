r"""Scene parsing refined by CascadePSP: mIoU / mBA of ADE20K's label maps, before and after.

    python -m experiments.crm.scenes --workdir=runs/cascade_psp/package \
        --images=images/validation --truth=annotations/validation --coarse=RESULTS --out=REFINED

RESULTS holds what a network found: label maps named like those of the truth, 0 for void and
1..150. Each is taken apart, refined and put together again by `inference.refinement_pieces`, then
scored by `metrics.boundary.LabelScores`: the procedure of Cheng et al., CVPR 2020, for scenes.
Maps that lie in REFINED already are scored as they are, so a second run goes on where the first one
ended, and other programs' results can be scored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import segjax
from segjax import cli
from segjax.data import images, pairs
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import draw, refinement
from segjax.inference.refinement_pieces import refine_pieces
from segjax.metrics.boundary import LabelScores

CLASSES = 150


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiments.crm.scenes", description="mIoU and mBA of refined label maps."
    )
    parser.add_argument("--workdir", default="", help="of the system that refines")
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--truth", required=True, help="folder of true label maps")
    parser.add_argument("--coarse", required=True, help="folder of the network's label maps")
    parser.add_argument("--out", required=True, help="folder of refined label maps")
    parser.add_argument("--max-memory", default="", help="such as 6GiB")
    args = parser.parse_args(argv)
    folders = [Path(name) for name in (args.truth, args.coarse, args.out)]
    refined = refiner(args.workdir, args.max_memory)
    print(line(score(Path(args.images), *folders, refined)))
    return 0


Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def refiner(workdir: str, max_memory: str = "") -> Refine | None:
    """What makes a refined label map of an image and a coarse one; None without a workdir."""
    if not workdir:
        return None
    loaded = segjax.load(workdir)
    if not refinement.is_refiner(loaded.system):
        raise SegjaxError(f"{workdir}: its system labels images and refines no masks.")
    bytes_ = refinement.memory(max_memory)
    return lambda image, labels: refine_pieces(
        loaded.system, loaded.variables, image, labels, max_memory=bytes_
    )


def score(
    photos: Path, truth: Path, coarse: Path, out: Path, refine: Refine | None
) -> dict[str, float]:
    """Refines the label maps that `out` lacks, and scores all of them.

    Raises:
        SegjaxError: a folder is empty or lacks a file, or a refined map is missing and nothing can
            make it.
    """
    names = sorted(path.name for path in truth.glob("*.png"))
    if not names:
        raise SegjaxError(f"{truth}: there is no label map (*.png).")
    scores = LabelScores(CLASSES)
    for name in track(names, len(names), "Scenes"):
        true, found = (read(folder / name) for folder in (truth, coarse))
        if not (out / name).exists():
            if refine is None:
                raise SegjaxError(f"{out / name} is missing; name a --workdir that can make it.")
            photo = next((p for p in photos.glob(f"{Path(name).stem}.*") if _is_photo(p)), None)
            image = images.read_image(photo or photos / f"{Path(name).stem}.jpg")
            made = refine(image, found.astype(np.int32))
            draw.write(images.encode_png(made.astype(np.uint8)), out / name)
        scores.update(true, found, read(out / name))
    return scores.result()


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in pairs.IMAGE_SUFFIXES


def read(path: Path) -> np.ndarray:
    """A label map int32 [H, W].

    Raises:
        SegjaxError: it is missing, unreadable, or not one of ADE20K's.
    """
    labels = images.read_labels(path)
    if labels.max() > CLASSES:
        raise SegjaxError(
            f"{path}: it holds {labels.max()}; ADE20K's label maps go from 0 (void) to {CLASSES}."
        )
    return labels


def line(found: dict[str, float]) -> str:
    """The figures in one line."""
    shown = [
        f"{title} {found[f'coarse_{name}']:.2f} -> {found[name]:.2f}"
        for title, name in (("mIoU", "miou"), ("mBA", "mba"))
    ]
    return f"{'  '.join(shown)}  ({found['images']} scenes)"


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
