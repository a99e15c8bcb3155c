"""`segjax eval`: measures a workdir on its dataset."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

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
    parser.add_argument(
        "--results",
        default="",
        help="folder for result files of the tasks, as COCO's and Cityscapes' tools read them; or"
        " for sharpened masks, as CascadePSP's eval_post.py reads them",
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
    from segjax.inference import draw, evaluation, mask_runner, refinement, report
    from segjax.runtime import setup
    from segjax.training import checkpoints, logs

    setup()
    config = configs.load(workdir / "config.json", overrides)
    dataset = datasets.load(
        config.data.dataset.to_dict(), config.data.eval_split, config.data.data_dir
    )
    system = systems.of_config(config, workdir)
    variables, step, _ = checkpoints.load_variables(workdir, args.which)
    if refinement.is_refiner(system):
        if args.report:
            raise SegjaxError(
                "--report shows class maps; this system sharpens masks, leave --report out."
            )
        return _evaluate_refiner(system, variables, dataset, config, workdir, step, args)
    if mask_runner.answers_with_masks(system):
        if args.report:
            raise SegjaxError(
                "--report shows class maps; this system answers with masks, leave --report out."
            )
        return _evaluate_masks(system, variables, dataset, config, workdir, step, args)
    if args.results:
        raise SegjaxError("--results is for systems of masks; leave it out.")
    begin = time.monotonic()
    metrics = evaluation.evaluate(
        system,
        variables,
        dataset,
        config.eval,
        progress=f"evaluating step {step}",
        pictures=args.pictures,
        details=args.report,
        hierarchy=systems.hierarchy_of(config, workdir) if config.hierarchy.tree else None,
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


def _evaluate_masks(
    system: Any,
    variables: Any,
    dataset: Any,
    config: Any,
    workdir: Path,
    step: int,
    args: argparse.Namespace,
) -> int:
    """`main` for systems that answer with masks."""
    import jax

    from segjax import systems
    from segjax.inference import draw, draw_segments, evaluation, mask_evaluation
    from segjax.inference.result_folder import ResultFolder

    space = dataset.label_space
    folder = ResultFolder(args.results, space) if args.results else None
    begin = time.monotonic()
    metrics = mask_evaluation.evaluate(
        system,
        variables,
        dataset,
        config.eval,
        progress=f"evaluating step {step}",
        pictures=args.pictures,
        take=folder.take if folder else None,
        hierarchy=systems.hierarchy_of(config, workdir) if config.hierarchy.tree else None,
    )
    if folder:
        folder.finish()
    seconds = time.monotonic() - begin
    if jax.process_index() != 0:
        return 0
    for picture in metrics.pop("pictures", ()):
        drawn = draw_segments.side_by_side(
            picture.image, *picture.found, space, truth=picture.truth
        )
        name = re.sub(r"[^\w.-]+", "_", picture.name)
        draw.save(drawn, workdir / "pictures" / f"{name}.png")
    metrics["step"] = step
    evaluation.write_metrics(metrics, workdir / "metrics.json")
    mask_evaluation.print_table(metrics)
    print(f"step {step}, {seconds:.1f} s; see {workdir / 'metrics.json'}")
    return 0


def _evaluate_refiner(
    system: Any,
    variables: Any,
    dataset: Any,
    config: Any,
    workdir: Path,
    step: int,
    args: argparse.Namespace,
) -> int:
    """`main` for systems that sharpen masks."""
    import jax

    from segjax.inference import draw, draw_refinement, evaluation, refinement_evaluation

    take = refinement_evaluation.ResultFolder(args.results).take if args.results else None
    begin = time.monotonic()
    metrics = refinement_evaluation.evaluate(
        system,
        variables,
        dataset,
        config.eval,
        progress=f"evaluating step {step}",
        pictures=args.pictures,
        take=take,
    )
    seconds = time.monotonic() - begin
    if jax.process_index() != 0:
        return 0
    for picture in metrics.pop("pictures", ()):
        drawn = draw_refinement.close_up(
            picture.image, picture.coarse, picture.refined, picture.truth
        )
        name = re.sub(r"[^\w.-]+", "_", picture.name)
        draw.save(drawn, workdir / "pictures" / f"{name}.png")
    metrics["step"] = step
    evaluation.write_metrics(metrics, workdir / "metrics.json")
    refinement_evaluation.print_table(metrics)
    rate = seconds / metrics["images"]
    print(f"step {step}, {seconds:.1f} s, {rate:.2f} s/image; see {workdir / 'metrics.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
