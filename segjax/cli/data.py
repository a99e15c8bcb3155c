"""segjax data check | prepare | show: looks at a dataset before it is trained on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from segjax.data import check, datasets, hierarchies
from segjax.data.hierarchies import Hierarchy
from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError


def main(argv: list[str]) -> int:
    """Runs `segjax data ...`; returns the exit status: 1 when there are faults."""
    arguments, overrides = _parser().parse_known_args(argv)
    if arguments.command == "check" and arguments.folder:
        if overrides:
            raise SegjaxError(f"segjax data check --folder knows no {overrides[0]}.")
        dataset = {"name": "folder", "root": arguments.folder, "names": arguments.names}
        return _check(dataset, ("train", "validation"), "", None, arguments.tree)
    if not arguments.config:
        raise SegjaxError("segjax data needs --config=FILE (or, for check, --folder=ROOT).")

    from segjax import config as configs  # what is slow to import comes after --help

    config = configs.load(arguments.config, overrides)
    dataset = config.data.dataset.to_dict()
    splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
    if arguments.command == "check":
        classes = config.model.get("classes")
        return _check(dataset, splits, config.data.data_dir, classes, arguments.tree)
    if arguments.command == "prepare":
        for split in splits:
            ready = datasets.load(dataset, split, config.data.data_dir)
            print(f"{split}: {len(ready)} examples, prepared in {ready.path}")
        return 0
    return _show(config, arguments.out, arguments.count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segjax data",
        description="Looks at the dataset of a config before anything is trained on it.",
        epilog="Any field of the config: --config.data.dataset.root=MY/PHOTOS.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("check", "names every fault and counts the classes; exits with 1 if there are faults"),
        ("prepare", "writes the prepared copies that training reads"),
        ("show", "draws augmented training examples with their labels"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--config", default="", help="a config file")
        if name == "check":
            command.add_argument(
                "--folder", default="", help="instead: a folder of images/, masks/"
            )
            command.add_argument("--names", default="", help="its file of class names (names.txt)")
            command.add_argument(
                "--tree", default="", help="a class tree to check as well: a JSON file"
            )
        if name == "show":
            command.add_argument("--out", default="sheet.png", help="the picture to write")
            command.add_argument("--count", type=int, default=16, help="number of examples")
    return parser


def _check(
    dataset: dict[str, Any],
    splits: Iterable[str],
    data_dir: str,
    classes: int | None,
    tree: str,
) -> int:
    faults = []
    space = datasets.label_space(dataset)
    try:
        hierarchy = _hierarchy(tree, space)
    except SegjaxError as error:
        hierarchy = None
        faults.append(str(error))
    for split in splits:
        try:
            report = check.check(datasets.source(dataset, split, data_dir))
        except SegjaxError as error:
            faults.append(str(error))
            continue
        _print(report)
        if hierarchy is not None:
            _print_levels(report, hierarchy)
        faults += report.faults
    if classes is not None and classes != space.classes:
        faults.append(
            f"config.model.classes is {classes}, but {space.name} has {space.classes} classes; set"
            f" --config.model.classes={space.classes}."
        )
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(faults)} fault{'s' * (len(faults) > 1)}." if faults else "No faults.")
    return 1 if faults else 0


def _hierarchy(tree: str, space: LabelSpace) -> Hierarchy:
    """The tree that is named, or the label space's own."""
    hierarchy = hierarchies.load(tree) if tree else hierarchies.of(space)
    hierarchies.check_leaves(hierarchy, space)
    return hierarchy


def _print(report: check.Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    total = max(int(report.pixels.sum()), 1)
    print(f"{report.label_space.name} {report.split}: {_summary(report)}")
    table = Table()
    table.add_column("", justify="right")
    table.add_column("class")
    table.add_column("pixels", justify="right")
    table.add_column("share", justify="right")
    table.add_column("images", justify="right")
    for label, name in enumerate(report.label_space.names):
        pixels = int(report.pixels[label])
        share = f"{100 * pixels / total:.2f} %" if pixels else "never seen"
        table.add_row(str(label), escape(name), f"{pixels:,}", share, f"{report.images[label]:,}")
    everything = total + report.ignored
    table.add_row(
        "", "(ignored)", f"{report.ignored:,}", f"{100 * report.ignored / everything:.2f} %", ""
    )
    Console().print(table)
    for hint in check.hints(report):
        print(f"note: {report.split}: {hint}")


def _print_levels(report: check.Report, hierarchy: Hierarchy) -> None:
    """The classes of each level above the leaves, and which leaves have no pixel."""
    total = max(int(report.pixels.sum()), 1)
    counted = zip(hierarchy.levels, check.level_pixels(report, hierarchy))
    for number, (names, pixels) in list(enumerate(counted, start=1))[1:]:
        shares = ", ".join(f"{name} {100 * n / total:.2f} %" for name, n in zip(names, pixels))
        print(f"level {number}, {len(names)} classes: {shares}")
    if len(hierarchy.levels) > 1 and report.never_seen:
        print(
            f"note: {report.split}: {len(report.never_seen)} of {hierarchy.sizes[0]} leaves of the"
            f" tree have no pixel: {', '.join(report.never_seen)}."
        )


def _summary(report: check.Report) -> str:
    text = f"{report.examples} examples"
    if report.sizes:
        (h, w), (greatest_h, greatest_w) = report.sizes
        text += f", {w} x {h} to {greatest_w} x {greatest_h} pixels"
    return text


def _show(config: Any, out: str, count: int) -> int:
    from segjax.data import loader, refinement, sheet

    dataset = datasets.load(
        config.data.dataset.to_dict(), config.data.train_split, config.data.data_dir
    )
    batches = loader.train_batches(dataset, config.augment.to_dict(), count, seed=config.seed)
    try:
        batch, names = next(batches)
    finally:
        batches.close()
    labels, coarse = batch.get("semantic"), None
    if "mask" in batch:  # a dataset for refinement: the exact and the coarse mask
        masks = (batch[name] > refinement.THRESHOLD for name in refinement.MASKS)
        labels, coarse = (mask.astype(np.int16) for mask in masks)
    space = dataset.label_space
    picture = sheet.contact_sheet(batch["image"], labels, names, space, coarse=coarse)
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise SegjaxError(f"{out}: the picture cannot be written ({error}).") from None
    print(f"{count} augmented examples of {config.data.train_split}: {out}")
    return 0


if __name__ == "__main__":
    from segjax.cli import run

    sys.exit(run(main, sys.argv[1:]))
