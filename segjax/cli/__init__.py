"""The command line: `segjax train | eval | predict | refine | import | info | data | bench`.

Thin.
"""

from __future__ import annotations

import importlib
import sys

from segjax.errors import SegjaxError

COMMANDS = {
    "train": ("segjax.cli.train", "train a system, or resume a workdir"),
    "eval": ("segjax.cli.eval", "evaluate a workdir"),
    "predict": ("segjax.cli.predict", "label photographs"),
    "refine": ("segjax.cli.refine", "make coarse masks sharp"),
    "import": ("segjax.cli.import_", "turn a published checkpoint into a workdir"),
    "info": ("segjax.cli.info", "parameters, multiply-adds and memory of a config"),
    "data": ("segjax.cli.data", "check, prepare or show a dataset"),
    "bench": ("segjax.cli.bench", "measure speed and memory beside PyTorch"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `segjax COMMAND ...`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: segjax COMMAND [options]      (segjax COMMAND --help tells its options)\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:<9} {text}")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(
            f"segjax: error: no command '{argv[0]}'; there are {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    return run(module.main, argv[1:])


def run(command, argv: list[str]) -> int:  # noqa: ANN001
    """Runs one command's main; a SegjaxError becomes its sentence on stderr and status 1."""
    try:
        return command(argv)
    except SegjaxError as error:
        print(f"segjax: error: {error}", file=sys.stderr)
        return 1
