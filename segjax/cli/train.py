"""`segjax train`: trains a system, or resumes a workdir."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from segjax import cli
from segjax.errors import SegjaxError


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status (143 after SIGTERM, 130 after Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="segjax train",
        description="Trains a system, or resumes a workdir where it was left.",
        epilog="Any field of the config: --config.optimizer.learning_rate=1e-4. All fields with"
        " their meaning: segjax/config.py. --workdir alone resumes with the config in it.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="a config file, e.g. configs/regproxy/ade20k_ti16.py")
    parser.add_argument("--workdir", required=True, help="where everything goes")
    args, overrides = parser.parse_known_args(argv)
    source = args.config or Path(args.workdir) / "config.json"
    if args.config is None and not source.exists():
        raise SegjaxError(
            f"{args.workdir}: there is no config.json in it to resume; name one with --config=FILE."
        )
    from segjax import config as configs  # what is slow to import comes after --help
    from segjax.training import loop, signals

    config = configs.load(source, overrides)
    try:
        loop.train(config, args.workdir)
    except signals.Interrupted as stop:
        return int(stop.code)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
