"""Training examples as a torch Dataset. Importing this module needs torch; nothing of JAX, so that
worker processes start without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data


def start_worker(index: int) -> None:
    """What a worker process does first."""
    cv2.setNumThreads(0)


class Examples(Protocol):
    """Training examples by their number, with the chances given."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Image and labels."""


class Drawn(data.Dataset):
    """Examples whose chances each worker draws from torch's seed."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._rng: np.random.Generator | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._rng is None:
            self._rng = np.random.default_rng(torch.initial_seed() % 2**63)
        return self._examples.example(index, self._rng)


class Augmented:
    """segjax's dataset with segjax's augmentation."""

    def __init__(self, dataset: Sequence[dict[str, Any]], augment: Mapping[str, Any]) -> None:
        self._dataset, self._augment = dataset, dict(augment)

    def __len__(self) -> int:
        return len(self._dataset)

    def example(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """uint8 [h, w, 3] and int16 [h, w]."""
        from segjax.data import transforms

        arrays = transforms.train_example(self._dataset[index], self._augment, rng)
        return torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["semantic"])


class Photographs:
    """A folder's photographs (images/*.jpg, masks/*.png) through mmsegmentation 0.17's training
    pipeline, its operations one after another as they stand there."""

    def __init__(
        self,
        paths: Sequence[Path],
        augment: Mapping[str, Any],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self._paths, self._augment = list(paths), dict(augment)
        self._mean = np.float64(mean).reshape(1, -1)
        self._std_inverse = 1 / np.float64(std).reshape(1, -1)

    def __len__(self) -> int:
        return len(self._paths)

    def example(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """float32 [3, h, w] and int64 [h, w]."""
        path, augment = self._paths[index], self._augment
        crop = tuple(augment["crop"])
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        mask = path.parents[1] / "masks" / f"{path.stem}.png"
        labels = np.array(Image.open(mask))

        ratio = rng.uniform(*augment["ratio"])
        limits = [int(side * ratio) for side in augment["scale"]]
        height, width = labels.shape
        factor = min(max(limits) / max(height, width), min(limits) / min(height, width))
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)

        window = self._crop_window(labels, crop, rng)
        for _ in range(10):
            found, counts = np.unique(labels[window], return_counts=True)
            counts = counts[found != 255]
            if len(counts) > 1 and np.max(counts) / np.sum(counts) < augment["cat_max_ratio"]:
                break
            window = self._crop_window(labels, crop, rng)
        image, labels = image[window], labels[window]

        if rng.random() < augment["flip"]:
            image, labels = np.flip(image, axis=1), np.flip(labels, axis=1).copy()
        if augment["photometric"]:
            image = _distorted(np.ascontiguousarray(image), rng)

        image = image.copy().astype(np.float32)
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
        cv2.subtract(image, self._mean, image)
        cv2.multiply(image, self._std_inverse, image)

        beyond = 0, crop[0] - labels.shape[0], 0, crop[1] - labels.shape[1]
        image = cv2.copyMakeBorder(image, *beyond, cv2.BORDER_CONSTANT, value=0)
        labels = cv2.copyMakeBorder(labels, *beyond, cv2.BORDER_CONSTANT, value=255)
        labels = labels.astype(np.int64)
        labels[labels == 255] = -1
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(image), torch.from_numpy(labels)

    def _crop_window(
        self, labels: np.ndarray, crop: tuple[int, int], rng: np.random.Generator
    ) -> tuple[slice, slice]:
        top, left = (int(rng.integers(max(n - c, 0) + 1)) for n, c in zip(labels.shape, crop))
        return slice(top, top + crop[0]), slice(left, left + crop[1])


def _distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """mmsegmentation's PhotoMetricDistortion of a BGR image."""
    if rng.integers(2):
        image = _convert(image, beta=rng.uniform(-32.0, 32.0))
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
        image = _convert(image, alpha=rng.uniform(0.5, 1.5))
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = _convert(hsv[:, :, 1], alpha=rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not contrast_first and rng.integers(2):
        image = _convert(image, alpha=rng.uniform(0.5, 1.5))
    return image


def _convert(image: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    image = image.astype(np.float32) * alpha + beta
    return np.clip(image, 0, 255).astype(np.uint8)
