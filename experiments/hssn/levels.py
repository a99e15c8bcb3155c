"""What the tables of HSSN share: mIoU of every level of a class tree beside the paper's, and costs
with and without the projection that only training needs."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from experiments import comparison
from experiments.comparison import Claim, Row
from segjax import config, systems
from segjax.data import datasets
from segjax.errors import SegjaxError
from segjax.inference import evaluation
from segjax.inference.measure import evaluate
from segjax.structs import Size
from segjax.systems.hssn import HSSN
from segjax.training import checkpoints

MULTI_SCALE = (
    "--config.eval.flip=True",
    "--config.eval.ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)",
)
"""The released code's."""

METRICS = ("mIoU^1", "mIoU^2", "mIoU^3")
"""Of the tiny rows; the tree of shapescapes has three levels, ^1 are the leaves."""


@dataclasses.dataclass(frozen=True)
class LevelTable:
    """A table of mIoU by level.

    Attributes:
        title: above it.
        figures: what is measured of its rows: "mIoU^2", or "mIoU^2 MS" at several scales.
        rows: its lines.
    """

    title: str
    figures: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Twins:
    """The small trainings of a table.

    Attributes:
        title: above their results.
        rows: what is trained.
        claims: judged on every level.
        budget: changes to all of them, on top of `comparison.TINY`.
    """

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    budget: tuple[str, ...]


def claim(paper: Mapping[str, Mapping[str, str]], better: str, worse: str) -> Claim:
    """That a row is above another, with the paper's gaps.

    Args:
        paper: dataset -> row -> its numbers, "85.27 71.40 40.16".
        better, worse: rows.
    """
    texts = []
    for dataset, numbers in paper.items():
        pairs = zip(numbers[better].split(), numbers[worse].split())
        gaps = " ".join(f"{float(high) - float(low):+.2f}" for high, low in pairs)
        texts.append(f"{gaps} on {dataset}")
    return Claim(better, worse, f"^3 ^2 ^1 {'; '.join(texts)}")


def run(
    doc: str, tables: Sequence[LevelTable], argv: Sequence[str], twins: Twins | None = None
) -> int:
    """The program of a file of tables: prints them, or with --tiny trains the twins.

    Returns:
        The exit code, 0.

    Raises:
        SegjaxError: an option that means nothing here.
    """
    args, overrides = comparison.arguments(doc, argv)
    if not args.tiny:
        print_tables(tables, args)
    elif twins is None:
        raise SegjaxError("--tiny: this table has no small twins; experiments.hssn_losses has.")
    else:
        budget = [*twins.budget, *overrides]
        comparison.run_tiny(twins.title, twins.rows, twins.claims, args, budget, METRICS)
    return 0


def print_tables(tables: Sequence[LevelTable], args: argparse.Namespace) -> None:
    """The paper's numbers beside exact counts and the figures found in `args.runs`; with
    `args.measure` its workdirs are evaluated first."""
    here = ("params", "MACs, mmcv", "MACs, all", "input", "projection")
    for table in tables:
        if args.measure:
            for row in table.rows:
                measure(row, args, table.figures)

        def cells(row: Row, table: LevelTable = table) -> list[str]:
            reached = comparison._reached(row, args.runs, False, table.figures)
            return [*comparison._costs(row, False), _projection_cell(row), reached]

        figures = "\n/ ".join(table.figures)
        comparison._print_beside(table.title, table.rows, (*here, figures), cells)
    print(
        "^1 are the leaves. MACs, mmcv: as the released code's tool counts, without the projection"
        " to the\nembedding, which it runs in evaluation too: add it for the tool's figure. MACs,"
        " all: every\nconvolution and matrix product. mIoU here: of workdirs such as\n"
        f"{args.runs / tables[-1].rows[-1].workdir}\nonce measured with --measure."
    )


def _projection_cell(row: Row) -> str:
    system = systems.of_config(comparison.load(row)) if row.config else None
    if getattr(system, "projection", None) is None:
        return ""
    size = tuple(comparison.load(row, row.counted).eval.scale)[::-1]
    return f"{projection_macs(system, size) / 1e9:.2f}G"


def projection_macs(system: HSSN, size: Size) -> int:
    """Multiply-adds of the embedding of one image of `size`, with biases, batch norm and ReLU as
    mmcv's counter has them; no array is made."""
    batch = {"image": jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)}
    network, projection = system.network, system.projection
    variables = jax.eval_shape(lambda b: network.init(jax.random.key(0), b), batch)
    features = jax.eval_shape(
        lambda *given: network.outputs(*given, None)[0].features, variables, batch
    )
    *grid, channels = features.shape
    width = projection.features or channels
    hidden = width * (channels + 1 + 2 + 1)
    return math.prod(grid) * (hidden + projection.out * (width + 1))


def measure(row: Row, args: argparse.Namespace, figures: Sequence[str]) -> None:
    """Evaluates the workdir of a row under its tree, if it is there, for the table to find."""
    workdir = args.runs / row.workdir
    if not row.config or not (workdir / "config.json").is_file():
        return
    for several in {figure.endswith(comparison.MULTI) for figure in figures}:
        recipe = config.load(workdir / "config.json", MULTI_SCALE if several else ())
        data = recipe.data
        try:
            metrics = evaluate(
                systems.of_config(recipe, workdir),
                checkpoints.load_variables(workdir, "best")[0],
                datasets.load(data.dataset.to_dict(), data.eval_split, data.data_dir),
                recipe.eval,
                progress=str(workdir),
                hierarchy=systems.hierarchy_of(recipe, workdir),
            )
        except SegjaxError as error:
            print(f"{row.name}: {error}", file=sys.stderr)
            continue
        name = "multi_scale.json" if several else "single_scale.json"
        evaluation.write_metrics(metrics, workdir / name)
