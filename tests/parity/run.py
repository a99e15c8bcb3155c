"""Runs golden cases wherever they lie: `python -m tests.parity.run PATH...` (files or folders).

A line per case: name, what, worst relative error, tolerance, and ok, FAIL or "no runner". Exits
with 1 on a miss.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from tests.parity import (
    crm,
    crm_cascade,
    crm_data,
    hssn,
    hssn_data,
    hssn_losses,
    hssn_networks,
    mask2former,
    mask2former_data,
    mask2former_ops,
    mask2former_results,
    regproxy,
    regproxy_decoders,
    regproxy_segmenter,
    regproxy_superpixels,
)
from tests.parity.weights import Case, cases

Runner = Callable[[dict, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], dict]

RUNNERS: dict[str, Runner] = {
    **hssn.RUNNERS,
    **hssn_data.RUNNERS,
    **hssn_losses.RUNNERS,
    **regproxy.RUNNERS,
    **regproxy_decoders.RUNNERS,
    **regproxy_segmenter.RUNNERS,
    **regproxy_superpixels.RUNNERS,
    **mask2former.RUNNERS,
    **mask2former_data.RUNNERS,
    **mask2former_ops.RUNNERS,
    **mask2former_results.RUNNERS,
    **hssn_networks.RUNNERS,
    **crm.RUNNERS,
    **crm_cascade.RUNNERS,
    **crm_data.RUNNERS,
}
# (what, output) -> error of ours against stored, where the rule of the method is not the relative
# error.
JUDGES: dict[tuple[str, str], Callable[[Case, np.ndarray, np.ndarray], float]] = {
    **regproxy.JUDGES,
    **mask2former.JUDGES,
    **mask2former_data.JUDGES,
    **mask2former_results.JUDGES,
    **hssn.JUDGES,
    **hssn_networks.JUDGES,
    **crm.JUDGES,
    **crm_cascade.JUDGES,
    **crm_data.JUDGES,
}


def errors(case: Case) -> dict[str, float]:
    """The error of each judged output; infinite where it is absent or has another shape.

    Raises:
        KeyError: nothing runs cases of this kind.
    """
    runner = RUNNERS[case.what]
    # Accelerators otherwise multiply float32 matrices in less than float32.
    with jax.default_matmul_precision("highest"):
        outputs = runner(case.args, case.tensors(), case.inputs())
    return {
        name: output_error(case, name, outputs, case.expected()[name])
        for name in case.meta["outputs"]
    }


def output_error(
    case: Case, name: str, outputs: Mapping[str, np.ndarray], theirs: np.ndarray
) -> float:
    if name not in outputs:
        return np.inf
    try:
        ours = case.stored_part(name, np.asarray(outputs[name]))
    except ValueError:
        return np.inf
    if ours.shape != theirs.shape:
        return np.inf
    # Of "grad/NAME" the part before the slash says how it is judged.
    judge = JUDGES.get((case.what, name)) or JUDGES.get((case.what, name.partition("/")[0]))
    if judge is not None:
        return judge(case, ours, theirs)
    if theirs.size == 0 or not theirs.any() or name in case.meta.get("zero_outputs", ()):
        return absolute(ours)
    if theirs.dtype == bool:
        return exact(case, ours, theirs)
    return relative_error(ours, theirs)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """||ours - theirs|| / ||theirs||, infinite where either is not a number."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.linalg.norm((ours - theirs).ravel()) / np.linalg.norm(theirs.ravel())
    return float(error) if np.isfinite(error) else np.inf


def absolute(ours: np.ndarray) -> float:
    """0 where nothing passes 1e-6, else infinite: what equal means where all is zero or empty."""
    return 0.0 if np.all(np.abs(np.asarray(ours, np.float64)) <= 1e-6) else np.inf


def exact(case: Case, ours: np.ndarray, theirs: np.ndarray) -> float:
    return 0.0 if np.array_equal(ours, theirs) else np.inf


def main(paths: Sequence[str]) -> int:
    found = cases(paths)
    for path in paths:
        if not cases([path]):
            print(f"{path}: no golden case here; name files or folders of them", file=sys.stderr)
            return 2
    if not found:
        print(__doc__, file=sys.stderr)
        return 2
    width = max(len(case.name) for case in found)
    missed = False
    for case in found:
        start = f"{case.name:<{width}}  {case.what:<30}"
        if case.what not in RUNNERS:
            print(f"{start}  {'-':>9}  {case.tolerance:>7.0e}  no runner", flush=True)
            continue
        try:
            found_errors = errors(case)
        except Exception:  # one broken case must not hide the others
            traceback.print_exc()
            found_errors = {"": np.inf}
        worst = max(found_errors, key=found_errors.get)
        ok = found_errors[worst] <= case.tolerance
        missed |= not ok
        where = "" if ok else f"  ({worst or 'raised'})"
        print(
            f"{start}  {found_errors[worst]:>9.2e}  {case.tolerance:>7.0e}  "
            f"{'ok' if ok else 'FAIL'}{where}",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
