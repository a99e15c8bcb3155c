"""`segjax info`: what a config makes and what it costs, from shapes alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from segjax import cli


def main(argv: list[str]) -> int:
    """Prints the report of one config; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="segjax info",
        description="Parameters, multiply-adds, memory and the complete config. Runs nothing.",
        epilog="Any field of the config: --config.model.classes=20.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a config file, or a workdir's config.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, overrides = parser.parse_known_args(argv)

    from segjax import analysis, systems  # what is slow to import comes after --help
    from segjax import config as configs

    config = configs.load(args.config, overrides)
    cost = analysis.of_config(config)
    activations = analysis.activation_bytes(systems.of_config(config), config.augment.crop)
    if args.json:
        report = dataclasses.asdict(cost) | {
            "activation_bytes_estimate": activations,
            "macs_total": cost.macs * cost.windows,
            "macs_mmcv_total": cost.macs_mmcv * cost.windows,
            "config": config.to_dict(),
        }
        print(json.dumps(report, indent=2))
        return 0
    for name, value, text in _lines(cost, activations):
        print(f"{name:<18} {value:>16}  {text}".rstrip())
    print("\nconfig")
    _print_tree(config.to_dict(), "  ")
    return 0


def _lines(cost: Any, activations: int) -> list[tuple[str, str, str]]:
    height, width = cost.size
    lines = [
        ("input", f"{height} x {width}", "pixels of one forward pass"),
        ("parameters", f"{cost.parameters:,}", f"{_bytes(cost.parameter_bytes)}"),
        ("macs", _giga(cost.macs), "all convolutions and matrix products, attention included"),
        ("macs (mmcv)", _giga(cost.macs_mmcv), "as the papers of 2021-22 count: no attention"),
        (
            "activations",
            _bytes(activations),
            "ESTIMATE for one training image, before the compiler saves any",
        ),
    ]
    if cost.windows > 1:
        n = cost.windows
        lines += [
            ("windows", f"{n}", "of an image that fills config.eval.scale"),
            ("macs x windows", _giga(cost.macs * n), ""),
            ("mmcv x windows", _giga(cost.macs_mmcv * n), ""),
        ]
    return lines


def _giga(count: int) -> str:
    return f"{count / 1e9:.4g} G"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _print_tree(tree: dict[str, Any], indent: str) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_tree(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value!r}")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
