"""segjax data check | prepare | show: looks at a dataset before it is trained on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from segjax.data import check, datasets
from segjax.errors import SegjaxError


def main(argv: list[str]) -> int:
    """Runs `segjax data ...`; returns the exit status: 1 when there are faults."""
    arguments, overrides = _parser().parse_known_args(argv)
    if arguments.command == "check" and arguments.folder:
        if overrides:
            raise SegjaxError(f"segjax data check --folder knows no {overrides[0]}.")
        dataset = {"name": "folder", "root": arguments.folder, "names": arguments.names}
        return _check(dataset, ("train", "validation"), "", None)
    if not arguments.config:
        raise SegjaxError("segjax data needs --config=FILE (or, for check, --folder=ROOT).")

    from segjax import config as configs  # what is slow to import comes after --help

    config = configs.load(arguments.config, overrides)
    dataset = config.data.dataset.to_dict()
    splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
    if arguments.command == "check":
        return _check(dataset, splits, config.data.data_dir, config.model.get("classes"))
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
        if name == "show":
            command.add_argument("--out", default="sheet.png", help="the picture to write")
            command.add_argument("--count", type=int, default=16, help="number of examples")
    return parser


def _check(
    dataset: dict[str, Any], splits: Iterable[str], data_dir: str, classes: int | None
) -> int:
    faults = []
    for split in splits:
        try:
            report = check.check(datasets.source(dataset, split, data_dir))
        except SegjaxError as error:
            faults.append(str(error))
            continue
        _print(report)
        faults += report.faults
    space = datasets.label_space(dataset)
    if classes is not None and classes != space.classes:
        faults.append(
            f"config.model.classes is {classes}, but {space.name} has {space.classes} classes; set"
            f" --config.model.classes={space.classes}."
        )
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(faults)} fault{'s' * (len(faults) > 1)}." if faults else "No faults.")
    return 1 if faults else 0


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


def _summary(report: check.Report) -> str:
    text = f"{report.examples} examples"
    if report.sizes:
        (h, w), (greatest_h, greatest_w) = report.sizes
        text += f", {w} x {h} to {greatest_w} x {greatest_h} pixels"
    return text


def _show(config: Any, out: str, count: int) -> int:
    from segjax.data import loader, sheet

    dataset = datasets.load(
        config.data.dataset.to_dict(), config.data.train_split, config.data.data_dir
    )
    batches = loader.train_batches(dataset, config.augment.to_dict(), count, seed=config.seed)
    try:
        batch, names = next(batches)
    finally:
        batches.close()
    picture = sheet.contact_sheet(batch["image"], batch["semantic"], names, dataset.label_space)
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise SegjaxError(f"{out}: the picture cannot be written ({error}).") from None
    print(f"{count} augmented examples of {config.data.train_split}: {out}")
    return 0


if __name__ == "__main__":
    from segjax.cli import run

    sys.exit(run(main, sys.argv[1:]))
