"""`segjax import`: turns a published checkpoint into a workdir that eval and predict take."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from segjax import cli
from segjax.errors import SegjaxError


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="segjax import",
        description="Turns a published checkpoint into a workdir: checkpoint, config, label space.",
        epilog="Any field of the config: --config.model.classes=20. For a pretrained backbone to "
        "train from, set config.init instead.",
        allow_abbrev=False,
    )
    parser.add_argument("--layout", required=True, help="whose file it is, e.g. regproxy")
    parser.add_argument("--checkpoint", required=True, help="the file, or a folder of .safetensors")
    parser.add_argument("--config", required=True, help="a config file that describes the model")
    parser.add_argument("--workdir", required=True, help="a new folder to write")
    args, overrides = parser.parse_known_args(argv)
    workdir = Path(args.workdir).absolute()
    _check_free(workdir)

    import jax  # what is slow to import comes after --help
    import jax.numpy as jnp

    from segjax import config as configs
    from segjax import importers, systems
    from segjax.data import datasets
    from segjax.importers import hf_names
    from segjax.training import checkpoints

    config = configs.load(args.config, overrides)
    system = systems.of_config(config)
    space = datasets.label_space(config.data.dataset.to_dict())
    if space.classes != system.classes:
        raise SegjaxError(
            f"config.model.classes: {system.classes}, but {space.name} has {space.classes} classes;"
            " set config.data.dataset to what the checkpoint was trained on."
        )
    if args.layout == "transformers":
        space = hf_names.label_space(args.checkpoint, space)
    image = jax.ShapeDtypeStruct((1, *config.augment.crop, 3), jnp.uint8)
    expected = jax.eval_shape(lambda batch: system.init(jax.random.key(0), batch), {"image": image})
    tensors = importers.read(args.checkpoint)
    heads = systems.heads(config.model, config.augment.crop)
    variables = importers.to_variables(args.layout, tensors, expected, args.checkpoint, heads)

    # Written beside and moved into place, so that a workdir is whole or absent.
    part = workdir.with_name(f".{workdir.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        meta = {"layout": args.layout, "checkpoint": Path(args.checkpoint).name}
        checkpoints.save_variables(part, variables, step=0, meta=meta)
        configs.save(config, part / "config.json")
        space.save(part / "label_space.json")
        systems.keep_hierarchy(config, part)
        if workdir.exists():
            workdir.rmdir()
        part.rename(workdir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    print(f"{workdir}: {len(tensors)} tensors, {count:,} parameters.")
    return 0


def _check_free(workdir: Path) -> None:
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise SegjaxError(
            f"{workdir}: it exists and is not an empty folder; name a new one with --workdir."
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
