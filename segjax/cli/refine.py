"""`segjax refine`: makes coarse masks sharp."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segjax import cli
from segjax.cli.predict import SUFFIXES
from segjax.errors import SegjaxError

if TYPE_CHECKING:
    from segjax.inference.mask_files import MaskFile, PanopticTable
    from segjax.inference.refiner import Refiner

MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".pbm")
"""What counts as a mask in a folder."""


class Job(NamedTuple):
    """An image with its coarse mask, and where the sharp one goes."""

    image: Path
    mask: Path
    out: Path


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status: 1 when a mask could not be refined."""
    parser = argparse.ArgumentParser(
        prog="segjax refine",
        usage="segjax refine --workdir=W --image=PHOTO --mask=COARSE --out=FINE [options]",
        description="Sharpens coarse masks of images of any size. A mask of one object (grey)"
        " becomes a grey PNG, 255 where it is certain. Of a map of class numbers (grey or palette"
        " PNG) every class is refined, and of a panoptic PNG every segment; each pixel still has"
        " exactly one, and palette, ids and the JSON beside it are kept. Two folders are matched by"
        " the names of their files; so is BIG's (X_im.jpg with X_seg.png).",
        epilog="Fields of the saved config can be changed, e.g. --config.model.query=band.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="of a training or an import")
    parser.add_argument("--image", required=True, help="a file, or a folder")
    parser.add_argument("--mask", required=True, help="its coarse mask, or a folder of masks")
    parser.add_argument("--out", required=True, help="a .png for one image, else a folder")
    parser.add_argument(
        "--kind",
        default="auto",
        choices=("auto", "binary", "labels", "panoptic"),
        help="what the masks hold: one object, class numbers, or segment ids",
    )
    parser.add_argument(
        "--json", default="", help="of panoptic PNGs; by default the one of the same name"
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        type=int,
        metavar="NUMBER",
        help="a class number or id that isn't refined (its pixels are open to the others)",
    )
    parser.add_argument(
        "--in-box",
        action="store_true",
        help="refine each object in its surroundings alone: better for small ones, and faster",
    )
    parser.add_argument(
        "--max-memory", default="", help="what the device may hold, e.g. 6GiB; by default any"
    )
    parser.add_argument("--draw", action="store_true", help="also draw a close-up, OUT_closeup.png")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    args, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if not text.startswith("--config.")]
    if unknown:
        raise SegjaxError(f"{unknown[0]} is not an option of segjax refine; see --help.")
    jobs = plan(Path(args.image), Path(args.mask), Path(args.out))

    from segjax.inference import refinement  # what is slow to import comes after --help

    refinement.memory(args.max_memory)  # a typing error costs no time
    tables = _Tables(jobs, args)
    refiner = load(args.workdir, args.which, rest)
    faults = 0
    for number, job in enumerate(jobs, 1):
        try:
            _refine(refiner, job, args, tables, f" {number}/{len(jobs)}" if len(jobs) > 1 else "")
        except SegjaxError as error:
            if len(jobs) == 1:
                raise
            faults += 1
            print(f"segjax: error: {error}", file=sys.stderr, flush=True)
    tables.finish()
    done = f"{len(jobs) - faults} of {len(jobs)} masks" if len(jobs) > 1 else "1 mask"
    if faults < len(jobs):
        print(f"{done} refined (step {refiner.step}): {args.out}")
    return 1 if faults else 0


def load(workdir: str, which: str = "best", overrides: Sequence[str] = ()) -> Refiner:
    """The refiner of a workdir.

    Raises:
        SegjaxError: there is none, or it holds a system that labels images.
    """
    from segjax.inference import predictor
    from segjax.inference.refiner import Refiner
    from segjax.runtime import setup

    setup()
    model = predictor.load(workdir, which, overrides)
    if not isinstance(model, Refiner):
        raise SegjaxError(
            f"{workdir}: its system labels images and refines no masks; name a workdir of crm or"
            " cascade_psp."
        )
    return model


def plan(image: Path, mask: Path, out: Path) -> list[Job]:
    """Which masks there are, with their images, and where each one's result goes.

    Folders are searched to the bottom, and the tree of the masks is kept below `out`. A mask
    belongs to the image of the same name but for the ending, and X_seg to X_im in a folder that has
    such images. Images without a mask are left alone.

    Raises:
        SegjaxError: one of the two is a folder and the other a file, there is no mask, a mask has
            no image, or `out` is no place for the results.
    """
    if image.is_dir() != mask.is_dir():
        raise SegjaxError(
            f"--image={image} and --mask={mask}: give two files or two folders"
            f" ({image if image.is_dir() else mask} is a folder)."
        )
    if not image.is_dir():
        if out.is_dir() or not out.suffix:
            out = out / f"{mask.stem}.png"
        from segjax.inference.mask_files import check_name

        check_name(out)
        return [Job(image, mask, out)]
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise SegjaxError(f"--out={out} names a file for a folder of images; name a folder.")
    images = {path.relative_to(image): path for path in _files(image, SUFFIXES, out)}
    masks = {path.relative_to(mask): path for path in _files(mask, MASKS, out)}
    big = any(name.stem.endswith("_im") for name in images)
    if big:
        images = {n: p for n, p in images.items() if n.stem.endswith("_im")}
        masks = {n: p for n, p in masks.items() if n.stem.endswith("_seg")}
    elif image.resolve() == mask.resolve():
        images = {n: p for n, p in images.items() if n.suffix.lower() != ".png"}
        masks = {n: p for n, p in masks.items() if n not in images}
    if not masks:
        raise SegjaxError(f"{mask}: there are no masks in this folder ({', '.join(MASKS)}).")

    def key(name: Path) -> Path:
        stem = name.stem.removesuffix("_im").removesuffix("_seg") if big else name.stem
        return name.with_name(stem)

    found: dict[Path, Path] = {}
    for name, path in images.items():
        if key(name) in found:
            raise SegjaxError(
                f"{path} and {found[key(name)].name} have the same name; which of them a mask"
                " belongs to is unclear, so move one away."
            )
        found[key(name)] = path
    jobs, taken = [], set()
    for name, path in masks.items():
        if key(name) not in found:
            raise SegjaxError(
                f"{path}: {image} has no image of the same name, {key(name)}.jpg or the like; move"
                " the mask away, or name it like its image."
            )
        if key(name) in taken:
            raise SegjaxError(f"{path}: there is another mask of this name; move one away.")
        taken.add(key(name))
        jobs.append(Job(found[key(name)], path, out / name.with_suffix(".png")))
    return jobs


def _files(folder: Path, suffixes: Sequence[str], out: Path) -> list[Path]:
    """What lies in a folder at any depth, but for hidden files and earlier results."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (out.is_dir() and path.resolve().is_relative_to(out.resolve()))
    ]


def _refine(
    refiner: Refiner, job: Job, args: argparse.Namespace, tables: _Tables, number: str
) -> None:
    """Refines one mask and writes it, and what belongs to it."""
    import numpy as np

    from segjax.data.images import read_image
    from segjax.data.progress import meter
    from segjax.inference import draw, draw_refinement, mask_files
    from segjax.metrics import boundary

    image = read_image(job.image)
    coarse = mask_files.read(job.mask, args.kind)
    row = tables.row(job, coarse)
    with meter(f"refining {job.mask.name}{number}") as progress:
        options = dict(in_box=args.in_box, max_memory=args.max_memory, progress=progress)
        if coarse.kind == "binary":
            refined = refiner(image, coarse.values, **options).mask
            views = tuple(map(boundary.foreground, (coarse.values, refined)))
        else:
            refined = refiner.labels(image, coarse.values, skip=args.skip, **options)
            views = coarse.values, refined
    mask_files.write(job.out, refined, coarse)
    tables.take(job, row, refined)
    if args.draw:
        path = job.out.with_name(f"{job.out.stem}_closeup.png")
        draw.save(draw_refinement.close_up(image, *views), path)
    if coarse.kind != "binary":
        lost = sorted(set(np.unique(coarse.values).tolist()) - set(np.unique(refined).tolist()))
        if lost:
            what = "segment" if coarse.kind == "panoptic" else "class"
            print(f"{job.mask.name}: {what} {', '.join(map(str, lost))} has no pixel left.")


class _Tables:
    """The JSON of panoptic PNGs: one beside each PNG, or one beside the folder."""

    def __init__(self, jobs: Sequence[Job], args: argparse.Namespace) -> None:
        from segjax.inference.mask_files import PanopticTable

        self._whole: PanopticTable | None = None
        self._rows: list[tuple[dict, str]] = []
        self._out = Path(args.out)
        self._named = bool(args.json)
        self._single = not Path(args.mask).is_dir()
        beside = Path(args.mask).with_suffix(".json")
        path = Path(args.json) if args.json else beside
        if args.json or (not self._single and path.is_file()):
            self._whole = PanopticTable(path)

    def row(self, job: Job, coarse: MaskFile) -> tuple[PanopticTable, dict] | None:
        """The table and the row that a mask has, checked against it."""
        from segjax.inference.mask_files import PanopticTable

        if coarse.kind != "panoptic":
            if self._named:
                raise SegjaxError(f"--json is for panoptic PNGs; {job.mask} is none.")
            return None
        table, beside = self._whole, job.mask.with_suffix(".json")
        if table is None and beside.is_file():
            table = PanopticTable(beside)
        return None if table is None else (table, table.row(job.mask.name, coarse.values))

    def take(self, job: Job, row: tuple[PanopticTable, dict] | None, refined) -> None:  # noqa: ANN001
        """Writes the JSON beside a refined PNG, or keeps its row for the JSON of all."""
        from segjax.inference.mask_files import refined_row

        if row is None:
            return
        table, old = row
        new = refined_row(old, refined)
        if table is self._whole and not self._single:
            self._rows.append((new, job.out.name))
            return
        table.write(job.out.with_suffix(".json"), [new], {new["file_name"]: job.out.name})

    def finish(self) -> None:
        """Writes the JSON of all."""
        if self._whole is not None and self._rows:
            rows = [row for row, _ in self._rows]
            names = {row["file_name"]: name for row, name in self._rows}
            self._whole.write(self._out.with_name(f"{self._out.name}.json"), rows, names)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
