"""Batches from photographs on disk: segjax's loader against PyTorch's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils import data

from segjax import config as configs
from segjax.bench import torch_loader
from segjax.bench.measure import OURS, Contest, Goal, Side, agree
from segjax.data import images, loader, scenes, transforms
from segjax.data.datasets import folder, shapescapes
from segjax.data.prepared import Dataset
from segjax.structs import IGNORE
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD

AHEAD = 8
"""Batches for each worker that may be finished or begun when a turn starts, on either side."""


def loading(side: int, workers: int, photos: int, batch: int, batches: int) -> Contest:
    """ADE20K's training batches, endlessly, with as many workers on each side.

    Against two Datasets: mmsegmentation's operations on the files of a folder, and segjax's
    augmentation of segjax's prepared dataset.

    Args:
        side: of the crops; photographs are as large, and 4/3 as wide.
        workers: processes of each loader.
        photos: how many there are.
        batch: images of a batch.
        batches: of a run.
    """
    scratch = tempfile.TemporaryDirectory(prefix="segjax_bench_")
    root = Path(scratch.name)
    write_photographs(root, (side, side * 4 // 3), photos)
    dataset = folder.load("train", root / "prepared", root=str(root), held_back=0.0)
    augment = configs.defaults().augment
    augment.scale, augment.crop = (4 * side, side), (side, side)
    augment = augment.to_dict()
    paths = sorted((root / "images").iterdir())
    plain = torch_loader.Photographs(paths, augment, IMAGENET_MEAN, IMAGENET_STD)
    error = max(difference(dataset, plain, augment, seed) for seed in range(4))

    ours = loader.train_batches(dataset, augment, batch, workers=workers)
    same = torch_loader.Augmented(dataset, augment)
    ahead = AHEAD * max(workers, 1)
    sides = {
        OURS: side_of(ours, batches, ahead),
        "torch": side_of(torch_batches(plain, batch, workers), batches, ahead),
        "torch, our transforms": side_of(torch_batches(same, batch, workers), batches, ahead),
    }

    def close() -> None:
        ours.close()
        scratch.cleanup()

    return Contest(
        sides,
        {"torch": error},
        goals={"torch": Goal(2.0)},
        images=batch * batches,
        close=close,
    )


def write_photographs(root: Path, size: tuple[int, int], count: int) -> None:
    """JPEG photographs and PNG masks of shapescapes, as `datasets.folder` reads them."""
    for name in ("images", "masks"):
        (root / name).mkdir()
    (root / "names.txt").write_text("\n".join(shapescapes.label_space().names) + "\n")
    for index in range(count):
        scene = scenes.paint_scene(size, np.random.default_rng(index))
        bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(root / "images" / f"{index:03}.jpg"), bgr)
        mask = np.where(scene.semantic == IGNORE, 255, scene.semantic).astype(np.uint8)
        (root / "masks" / f"{index:03}.png").write_bytes(images.encode_png(mask))


def difference(
    dataset: Dataset, plain: torch_loader.Photographs, augment: dict[str, Any], seed: int
) -> float:
    """How far apart both sides' examples are where the same chances are drawn."""
    index = seed % len(dataset)
    ours = transforms.train_example(dataset[index], augment, np.random.default_rng(seed))
    image, labels = plain.example(index, np.random.default_rng(seed))
    pixels = (ours["image"] - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    rows, columns = ours["image_size"]
    pixels[rows:] = pixels[:, columns:] = 0.0
    return max(
        agree("loader, image", pixels, image.numpy().transpose(1, 2, 0), 1e-5),
        agree("loader, labels", ours["semantic"].astype(np.int64), labels.numpy(), 0.0),
    )


def torch_batches(examples: torch_loader.Examples, batch: int, workers: int) -> Any:
    """Endless batches of a DataLoader. Workers are spawned: JAX has threads, which no fork
    survives."""
    dataset = torch_loader.Drawn(examples)
    return iter(
        data.DataLoader(
            dataset,
            batch,
            sampler=data.RandomSampler(dataset, replacement=True, num_samples=2**40),
            num_workers=workers,
            worker_init_fn=torch_loader.start_worker,
            multiprocessing_context="spawn" if workers else None,
        )
    )


def side_of(batches: Any, count: int, ahead: int) -> Side:
    """A run takes `count` batches. Before it, those are taken that were made while others had
    their turn, after enough time for the others to fall silent."""
    seconds = [0.5]  # for a batch, at the last look

    def take(number: int) -> Callable[[], None]:
        def run() -> None:
            start = time.perf_counter()
            for _ in range(number):
                next(batches)
            seconds.append((time.perf_counter() - start) / number)

        return run

    def settle() -> None:
        time.sleep(min(2 * ahead * seconds[-1], 5.0))
        for _ in range(ahead):
            next(batches)

    return Side(take(count), before=settle)
