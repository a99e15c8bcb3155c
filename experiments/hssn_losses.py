r"""HSSN's losses against each other (its Table 6), mean ± spread of every level over seeds.

    python experiments/hssn_losses.py --tiny [--seeds=3] [--runs=runs] [--out=table6.json]

CCE, BCE, focal, tree-min (TM), focal tree-min (FTM), and FTM with triplets, on one budget. The same
as `python -m experiments.hssn.table6`, where the details stand. Every finished training is kept
below `--runs`, and the same command goes on from there.
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from experiments.hssn import table6
    from segjax import cli

    sys.exit(cli.run(table6.main, sys.argv[1:]))
