"""Evaluation of any system, by what it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from segjax.data.hierarchies import Hierarchy
from segjax.inference import (
    evaluation,
    mask_evaluation,
    mask_runner,
    refinement,
    refinement_evaluation,
)
from segjax.inference.evaluation import Dataset, Metrics
from segjax.structs import System, Variables


def evaluate(
    system: System,
    variables: Variables,
    dataset: Dataset,
    settings: Mapping[str, Any],
    mesh: Mesh | None = None,
    progress: str | None = None,
    hierarchy: Hierarchy | None = None,
) -> Metrics:
    """The figures of `evaluation.evaluate`, `mask_evaluation.evaluate` or
    `refinement_evaluation.evaluate`."""
    shared = (system, variables, dataset, settings)
    if refinement.is_refiner(system):
        return refinement_evaluation.evaluate(*shared, mesh=mesh, progress=progress)
    if mask_runner.answers_with_masks(system):
        return mask_evaluation.evaluate(*shared, mesh=mesh, progress=progress, hierarchy=hierarchy)
    return evaluation.evaluate(*shared, mesh=mesh, progress=progress, hierarchy=hierarchy)
