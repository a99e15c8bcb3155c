"""`segjax predict`: labels photographs."""

from __future__ import annotations

import argparse
import collections
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segjax import cli
from segjax.errors import SegjaxError

if TYPE_CHECKING:
    import numpy as np

    from segjax.inference.predictor import Result

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""What counts as an image in a folder. A file that is named is always tried."""


class Job(NamedTuple):
    """A picture, and where the results go: `out` is the overlay, the others stand beside it."""

    source: Path
    out: Path

    @property
    def labels(self) -> Path:
        """The palette PNG."""
        return self.out.with_name(f"{self.out.stem}_labels.png")

    @property
    def scores(self) -> Path:
        """The class scores."""
        return self.out.with_name(f"{self.out.stem}_scores.npz")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status: 1 when a file could not be labelled."""
    parser = argparse.ArgumentParser(
        prog="segjax predict",
        usage="segjax predict --workdir=W --image=PHOTO [PHOTO or FOLDER ...] --out=OUT [options]",
        description="Labels photographs of any size and format. For each it writes an overlay with"
        " a legend (OUT), a palette PNG of class numbers (OUT_labels.png), and on request the class"
        " scores. Systems that answer with masks also write what config.eval.tasks asks for:"
        " OUT_panoptic.png and .json (COCO panoptic), OUT_instances.json (COCO results). Systems"
        " under a class tree write both pictures for each further level too (OUT_level2.png, ...)."
        " With --refine everything is sharpened before it is written.",
        epilog="Fields of the saved config can be changed, e.g. --config.eval.flip=True.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="of a training or an import")
    parser.add_argument(
        "--image", action="append", default=[], help="a file or a folder; more may follow"
    )
    parser.add_argument("--out", required=True, help="a .png or .jpg for one image, else a folder")
    parser.add_argument(
        "--scores", action="store_true", help="also write class probabilities as float16 .npz"
    )
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument(
        "--refine", default="", metavar="W2", help="workdir of a system that makes masks sharp"
    )
    parser.add_argument(
        "--in-box",
        action="store_true",
        help="with --refine: each object in its surroundings alone, see segjax refine",
    )
    parser.add_argument(
        "--max-memory", default="", help="with --refine: what the device may hold, e.g. 6GiB"
    )
    args, rest = parser.parse_known_args(argv)
    overrides = [text for text in rest if text.startswith("--config.")]
    sources = args.image + [text for text in rest if text not in overrides]
    unknown = [text for text in sources if text.startswith("-")]
    if unknown:
        raise SegjaxError(f"{unknown[0]} is not an option of segjax predict; see --help.")
    if args.scores and args.refine:
        raise SegjaxError("--scores are not refined; leave out --scores or --refine.")
    if (args.in_box or args.max_memory) and not args.refine:
        raise SegjaxError("--in-box and --max-memory are for --refine=W2; name its workdir.")
    jobs = plan(sources, args.out)

    from segjax.cli import refine
    from segjax.data.progress import meter, track  # what is slow to import comes after --help
    from segjax.inference import predictor, refinement
    from segjax.runtime import setup

    setup()
    memory = refinement.memory(args.max_memory)
    model = predictor.load(args.workdir, args.which, overrides)
    if hasattr(model, "sharpened"):
        raise SegjaxError(
            f"{args.workdir}: its system refines masks; use segjax refine, or name it as --refine"
            " and a system that labels images as --workdir."
        )
    if args.scores and not hasattr(model, "_run"):
        raise SegjaxError("--scores: this system answers with masks; leave --scores out.")
    refiner = refine.load(args.refine) if args.refine else None
    faults = 0
    with futures.ThreadPoolExecutor(2) as pool:
        writes: collections.deque[futures.Future[None]] = collections.deque()
        pictures = _read_ahead(jobs, pool)
        if refiner is None:
            pictures = track(pictures, len(jobs), "labelling")
        for number, (job, image) in enumerate(pictures, 1):
            try:
                if isinstance(image, SegjaxError):
                    raise image
                result = model(image)
                if refiner is not None:
                    with meter(f"refining {job.source.name} {number}/{len(jobs)}") as progress:
                        result = refiner.sharpened(
                            result, in_box=args.in_box, max_memory=memory, progress=progress
                        )
            except SegjaxError as error:
                faults += 1
                print(f"segjax: error: {error}", file=sys.stderr, flush=True)
                continue
            while len(writes) >= 2:
                writes.popleft().result()
            writes.append(pool.submit(_write, result, job, args.scores))
        for write in writes:
            write.result()
    done = f"{len(jobs) - faults} of {len(jobs)} images" if len(jobs) > 1 else "1 image"
    if faults < len(jobs):
        print(f"{done} labelled (step {model.step}): {args.out}")
    return 1 if faults else 0


def plan(sources: Sequence[str], out: str) -> list[Job]:
    """Which pictures there are, and where each one's results go.

    Folders are searched to the bottom, and their tree is kept below `out`.

    Raises:
        SegjaxError: nothing is named or found, or one output file for several pictures.
    """
    if not sources:
        raise SegjaxError("no image is named; give --image=FILE_OR_FOLDER.")
    target = Path(out)
    single = target.suffix.lower() in SUFFIXES and not target.is_dir()
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        if not source.is_dir():
            found.setdefault(source, Path(source.name))
            continue
        inside = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(source).parts)
            and not (target.is_dir() and path.resolve().is_relative_to(target.resolve()))
        ]
        if not inside:
            raise SegjaxError(f"{source}: there are no images in this folder.")
        for path in inside:
            found.setdefault(path, path.relative_to(source))
    if single:
        if len(found) > 1:
            raise SegjaxError(
                f"--out={out} names one file for {len(found)} images; name a folder instead."
            )
        return [Job(path, target) for path in found]
    stems = collections.Counter(name.with_suffix("") for name in set(found.values()))
    taken: set[Path] = set()
    jobs = []
    for path, name in found.items():
        stem = name.with_suffix("")
        if stems[stem] > 1:  # a.jpg beside a.png
            stem = name.with_name(f"{name.stem}_{name.suffix[1:]}")
        unique, number = stem, 2
        while unique in taken:  # files of one name from several folders
            unique, number = stem.with_name(f"{stem.name}_{number}"), number + 1
        taken.add(unique)
        jobs.append(Job(path, target / unique.parent / f"{unique.name}.png"))
    return jobs


def _read_ahead(
    jobs: Sequence[Job], pool: futures.Executor
) -> Iterator[tuple[Job, np.ndarray | SegjaxError]]:
    """The pictures in order, or why one can't be read."""
    ahead: collections.deque[futures.Future[np.ndarray | SegjaxError]] = collections.deque()
    for index, job in enumerate(jobs):
        for later in jobs[index + len(ahead) : index + 2]:
            ahead.append(pool.submit(_read, later.source))
        yield job, ahead.popleft().result()


def _read(path: Path) -> np.ndarray | SegjaxError:
    from segjax.data.images import read_image

    try:
        return read_image(path)
    except SegjaxError as error:
        return error


def _write(result: Result, job: Job, scores: bool) -> None:
    from segjax.inference import draw

    if hasattr(result, "segment_map"):
        result.save(job.out)
        return
    draw.save(result.draw(), job.out)
    result.save_labels(job.labels)
    for number, level in enumerate(result.levels()[1:], start=2):
        base = job.out.with_name(f"{job.out.stem}_level{number}{job.out.suffix}")
        draw.save(level.draw(), base)
        level.save_labels(Job(job.source, base).labels)
    if scores:
        import numpy as np

        data = io.BytesIO()
        np.savez(data, scores=result.scores("float16"), names=np.array(result.names))
        draw.write(data.getbuffer(), os.fspath(job.scores))


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
