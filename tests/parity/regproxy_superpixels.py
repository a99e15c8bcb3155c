"""The row of RegProxy's pilot experiment; see `tests.parity.regproxy` for the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.ops import dense, superpixels


def eq1_regions(
    args: dict[str, Any], _tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    regions = inputs["regions"][None]
    labels = inputs["labels"].astype(np.int32)[None]
    classes = args["num_classes"]
    shares, _ = superpixels.region_distribution(regions, labels, args["num_regions"], classes)
    majority = superpixels.paint_regions(dense.best_class(shares)[1], regions)
    return {
        "distribution": np.asarray(shares[0]),
        "entropy": np.asarray(superpixels.region_entropy(shares[0])),
        "painted_argmax": np.asarray(majority[0]),
    }


RUNNERS = {"regproxy.eq1_regions": eq1_regions}
