r"""The main job in minutes: a small RegProxy learns shapescapes on two CPU cores.

    python experiments/quickstart.py [--workdir=runs/quickstart]

Measures the untrained model, trains the linear-head ViT and RegProxy on the same budget (same
backbone, data, steps, seed), evaluates both on held-back scenes, and draws image | truth |
prediction | learned regions.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import jax

from segjax import cli, config, systems
from segjax.data import datasets
from segjax.inference import draw, evaluation, predictor
from segjax.runtime import setup
from segjax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/quickstart", type=pathlib.Path)
    parser.add_argument("--pictures", default=6, type=int, help="how many scenes to draw")
    args, overrides = parser.parse_known_args(argv)
    setup()
    started = time.time()

    recipe = {
        name: config.load(str(ROOT / "configs" / name / "shapescapes_tiny.py"), overrides)
        for name in ("linear_vit", "regproxy")
    }
    scenes = held_back_scenes(recipe["regproxy"])
    miou = {"untrained RegProxy": untrained(recipe["regproxy"], scenes)}
    miou["linear-head ViT"] = loop.train(recipe["linear_vit"], args.workdir / "linear_vit")["mIoU"]
    miou["RegProxy"] = loop.train(recipe["regproxy"], args.workdir / "regproxy")["mIoU"]

    draw_scenes(args.workdir / "regproxy", args.workdir / "pictures", scenes, args.pictures)
    seconds = time.time() - started
    metrics = {"mIoU": miou, "seconds": round(seconds, 1)}
    (args.workdir / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print("".join(f"\n{name:>20}  {value:6.2f} mIoU" for name, value in miou.items()))
    print(
        f"\nRegProxy reached {miou['RegProxy']:.2f} mIoU in {seconds:.0f} s; pictures, "
        f"metrics.json and checkpoints lie in {args.workdir}."
    )
    return 0


def held_back_scenes(recipe: config.ConfigDict) -> datasets.Dataset:
    data = recipe.data
    return datasets.load(data.dataset, data.eval_split, data.data_dir)


def untrained(recipe: config.ConfigDict, scenes: datasets.Dataset) -> float:
    """mIoU of the initial parameters."""
    system = systems.build(recipe.model)
    image = jax.numpy.zeros((1, *recipe.augment.crop, 3), "uint8")
    variables = jax.jit(system.init)(jax.random.key(recipe.seed), {"image": image})
    return evaluation.evaluate(system, variables, scenes, recipe.eval)["mIoU"]


def draw_scenes(
    workdir: pathlib.Path, out: pathlib.Path, scenes: datasets.Dataset, count: int
) -> None:
    model = predictor.load(workdir)
    out.mkdir(parents=True, exist_ok=True)
    for i in range(min(count, len(scenes))):
        scene = scenes[i]
        result = model(scene["image"])
        draw.panels(result, truth=scene["semantic"]).save(out / f"scene_{i}.png")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
