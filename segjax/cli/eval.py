"""`segjax eval`: measures a workdir on its dataset."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from segjax import cli
from segjax.errors import SegjaxError


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="segjax eval",
        description="Measures a trained or imported workdir on its dataset: prints the figures per"
        " class, writes metrics.json, and leaves some pictures in WORKDIR/pictures. --report leaves"
        " one page for the browser, WORKDIR/report.html.",
        epilog="Fields of the saved config can be changed, e.g. --config.eval.flip=True"
        ' --config.eval.ratios="(0.5, 1.0, 1.5)". All fields: segjax/config.py.',
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="of a training or an import")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument("--pictures", default=8, type=int, help="how many examples to draw")
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report.html: classes, confusion matrix, worst and best images, curves, config",
    )
    args, overrides = parser.parse_known_args(argv)
    workdir = Path(args.workdir)
    if not (workdir / "config.json").is_file():
        raise SegjaxError(
            f"{workdir}: there is no config.json in it; name the --workdir of a training or an"
            " import."
        )

    import jax  # what is slow to import comes after --help

    from segjax import config as configs
    from segjax import systems
    from segjax.data import datasets
    from segjax.inference import draw, evaluation, report
    from segjax.runtime import setup
    from segjax.training import checkpoints, logs

    setup()
    config = configs.load(workdir / "config.json", overrides)
    dataset = datasets.load(
        config.data.dataset.to_dict(), config.data.eval_split, config.data.data_dir
    )
    system = systems.build(config.model)
    variables, step, _ = checkpoints.load_variables(workdir, args.which)
    begin = time.monotonic()
    metrics = evaluation.evaluate(
        system,
        variables,
        dataset,
        config.eval,
        progress=f"evaluating step {step}",
        pictures=args.pictures,
        details=args.report,
    )
    seconds = time.monotonic() - begin
    if jax.process_index() != 0:
        return 0
    for picture in metrics.pop("pictures", ()):
        drawn = draw.side_by_side(
            picture.image,
            picture.labels,
            dataset.label_space,
            truth=picture.truth,
            regions=picture.regions,
            centres=picture.centres,
        )
        name = re.sub(r"[^\w.-]+", "_", picture.name)
        draw.save(drawn, workdir / "pictures" / f"{name}.png")
    metrics["step"] = step
    rate = metrics["images"] / seconds
    written = [workdir / "metrics.json"]
    if args.pictures:
        written.append(workdir / "pictures")
    if args.report:
        written.append(workdir / "report.html")
        changes = configs.diff(configs.load(workdir / "config.json"), config)
        facts = [
            ("workdir", f"{workdir}, {args.which} checkpoint"),
            ("speed", f"{seconds:.1f} s, {rate:.1f} images/s"),
            *(("changed", change) for change in changes),
        ]
        report.write(
            written[-1], metrics, dataset.label_space, config, logs.records(workdir), facts
        )
    evaluation.write_metrics(metrics, workdir / "metrics.json")
    evaluation.print_table(metrics)
    where = " and ".join(map(str, written))
    print(f"step {step}, {seconds:.1f} s, {rate:.1f} images/s; see {where}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
