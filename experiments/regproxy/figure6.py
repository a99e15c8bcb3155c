r"""RegProxy's Figure 6, from any workdir: how pure the learned regions are and how they look.

    pip install matplotlib
    python -m experiments.regproxy.figure6 --workdir=W [--images=50] [--out=W/figure6]

Left, the entropy (natural logarithm) of the classes within a region, as a kernel density estimate;
regions of a single class (entropy 0) are left out, as in the paper, and their share is given in
the legend. The learned regions (every pixel with the token it belongs to most) are compared with
squares and with SLIC superpixels of about the same number. Right, the regions, each in the mean
colour of its pixels, with a dot at its proxy token.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax import cli, config
from segjax.data import datasets
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.inference import draw, predictor
from segjax.ops import superpixels
from segjax.runtime import setup

KINDS = ("learned", "squares", "SLIC")


class Entropies(NamedTuple):
    """Attributes:
    values: per kind of region the entropies of all regions that have labelled pixels.
    pictures: uint8 [H, W, 3], the learned regions of the first images.
    """

    values: dict[str, np.ndarray]
    pictures: list[np.ndarray]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--images", default=50, type=int, help="of the evaluation split")
    parser.add_argument("--pictures", default=4, type=int, help="how many of them to draw")
    parser.add_argument("--out", type=pathlib.Path, help="a folder, by default WORKDIR/figure6")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        raise SegjaxError("the figure needs matplotlib: pip install matplotlib.")
    setup()
    out = args.out or args.workdir / "figure6"
    found = collect(args.workdir, args.images, args.pictures)
    out.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(found.pictures):
        draw.save(draw.Image.fromarray(picture), out / f"regions_{number}.png")
    summary = {kind: summarised(values) for kind, values in found.values.items()}
    (out / "entropies.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot(found, out / "figure6.png")
    for kind, numbers in summary.items():
        print(
            f"{kind:>8}: {numbers['regions']} regions, {numbers['pure_percent']:.1f} % of one"
            f" class, mean entropy of the rest {numbers['mean_of_the_rest']:.3f}"
        )
    print(f"{out / 'figure6.png'}, and the regions one by one beside it")
    return 0


def collect(workdir: pathlib.Path, images: int, pictures: int) -> Entropies:
    """Runs the model of a workdir on the first images of its evaluation split.

    Raises:
        SegjaxError: the system learns no regions.
    """
    model = predictor.load(workdir)
    recipe = config.read(workdir / "config.json")
    data = recipe.data
    dataset = datasets.load(data.dataset.to_dict(), data.eval_split, data.data_dir)
    classes = dataset.label_space.classes
    values: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    drawn = []
    count = min(images, len(dataset))
    for number in track(range(count), count, "regions"):
        example = dataset[number]
        image, truth = example["image"], example["semantic"]
        result = model(image)
        learned, centres = result.regions(), result.token_centres()
        if centres is None:
            raise SegjaxError(
                f"{workdir}: {recipe.model.system} learns no regions; take a workdir of regproxy."
            )
        maps = (learned, *alike(image, len(np.unique(learned))))
        for kind, regions in zip(KINDS, maps):
            values[kind].append(entropies(regions, truth, classes))
        if number < pictures:
            factor = max(round(384 / max(image.shape[:2])), 1)
            drawn.append(draw.regions_picture(image, learned, centres, factor=factor))
    return Entropies({kind: np.concatenate(parts) for kind, parts in values.items()}, drawn)


def alike(image: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """About `count` squares, and as many superpixels: two int [H, W]."""
    height, width = image.shape[:2]
    side = (height * width / count) ** 0.5
    grid = (max(round(height / side), 1), max(round(width / side), 1))
    squares = superpixels.square_regions((height, width), grid)
    return np.asarray(squares), np.asarray(_slic(image[None], grid))[0]


_slic = jax.jit(superpixels.slic, static_argnums=1)


def entropies(regions: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Entropy of the classes in each region that has labelled pixels: float [R]."""
    _, numbers = np.unique(regions, return_inverse=True)
    numbers = numbers.reshape(regions.shape)
    distribution, labelled = superpixels.region_distribution(
        jnp.asarray(numbers)[None], jnp.asarray(truth)[None], int(numbers.max()) + 1, classes
    )
    found = np.asarray(superpixels.region_entropy(distribution))[0]
    return found[np.asarray(labelled)[0] > 0]


def summarised(values: np.ndarray) -> dict[str, Any]:
    mixed = values[values > 0]
    return {
        "regions": len(values),
        "pure_percent": 100.0 * (1 - len(mixed) / max(len(values), 1)),
        "mean_of_the_rest": float(mixed.mean()) if len(mixed) else 0.0,
    }


def plot(found: Entropies, path: pathlib.Path) -> None:
    """The whole figure as one PNG."""
    from matplotlib.figure import Figure
    from scipy.stats import gaussian_kde  # comes with jax

    columns = -(-len(found.pictures) // 2)
    figure = Figure(figsize=(5.5 + 2.6 * columns, 5.2), layout="constrained")
    parts = figure.subfigures(1, 2, width_ratios=(5.5, max(2.6 * columns, 0.1)))
    axes = parts[0].subplots()
    highest = max(values.max(initial=0.0) for values in found.values.values())
    at = np.linspace(0, 1.05 * highest, 256)
    for kind, values in found.values.items():
        mixed = values[values > 0]
        pure = 100.0 * (1 - len(mixed) / max(len(values), 1))
        if len(np.unique(mixed)) < 2:
            continue
        axes.plot(at, gaussian_kde(mixed)(at), label=f"{kind} ({pure:.0f} % of one class)", lw=2)
    axes.set_xlabel("entropy of the classes in a region")
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    if columns:
        grid = parts[1].subplots(min(len(found.pictures), 2), columns, squeeze=False)
        for cell in grid.flat:
            cell.axis("off")
        for cell, picture in zip(grid.flat, found.pictures):
            cell.imshow(picture)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
