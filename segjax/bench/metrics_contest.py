"""Counting panoptic quality on the device against the plain way on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from segjax.bench.measure import OURS, Contest, Goal, Side, agree, temporary_bytes
from segjax.bench.plain_panoptic import plain_counts
from segjax.metrics import panoptic
from segjax.structs import Size

PLAIN = "numpy"
CLASSES, SEGMENTS, TABLE = 19, 20, 100
"""Of the maps; the tables of the device have TABLE rows, as many as a model has queries."""


def contests(
    sizes: tuple[Size, ...] = ((480, 640), (1024, 2048)),
) -> Iterator[tuple[str, Callable[[], Contest]]]:
    """A row for each size."""
    for height, width in sizes:
        yield (
            f"panoptic quality, {width} x {height}",
            lambda size=(height, width): panoptic_quality(size),
        )


def scene(size: Size, seed: int) -> np.ndarray:
    """int32 [H, W]: about SEGMENTS connected pieces, numbered from 0, -1 between them."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, size, (SEGMENTS, 2))
    down, across = (np.arange(n, dtype=np.float32) for n in size)
    squares = [
        (down[:, None] - y) ** 2 + (across[None] - x) ** 2 for y, x in centres.astype(np.float32)
    ]
    nearest = np.argmin(squares, axis=0).astype(np.int32)
    return np.where(np.min(squares, axis=0) < size[0] ** 2 / 8, nearest, -1)


def panoptic_quality(size: Size) -> Contest:
    """One image: the counts of all classes, from maps that lie where they were made."""
    rng = np.random.default_rng(0)
    truth = scene(size, 1)
    found = np.roll(truth, (size[0] // 40, size[1] // 40), axis=(0, 1)) + 1
    classes = rng.integers(0, CLASSES, TABLE)
    guesses = np.where(rng.random(TABLE) < 0.2, rng.integers(0, CLASSES, TABLE), classes)
    drawn = np.bincount(found.reshape(-1), minlength=TABLE + 1)[1:] > 0
    true_class = np.where(np.arange(TABLE) < SEGMENTS, classes, -1)
    found_class = np.where(drawn, guesses, -1)
    crowd = np.arange(TABLE) % 7 == 3

    maps = jnp.asarray(truth), jnp.asarray(found)
    program = jax.jit(panoptic.intersections, static_argnums=(2, 3))
    program = program.lower(*maps, TABLE, TABLE).compile()

    def ours() -> panoptic.Counts:
        shared = np.asarray(program(*maps))
        return panoptic.from_image(shared, true_class, crowd, found_class, CLASSES)

    area = np.bincount(truth[truth >= 0], minlength=TABLE)
    ids = 7919 * np.arange(1, TABLE + 1)  # as files have them: colours, no small numbers
    table = np.concatenate([[0], ids]).astype(np.uint32)
    true_ids, found_ids = table[truth + 1], table[found]
    true_rows = [
        {
            "id": int(ids[k]),
            "category_id": int(classes[k]),
            "area": int(area[k]),
            "iscrowd": int(crowd[k]),
        }
        for k in range(SEGMENTS)
    ]
    found_rows = [
        {"id": int(ids[k]), "category_id": int(guesses[k])} for k in np.flatnonzero(drawn)
    ]

    def plain() -> np.ndarray:
        return plain_counts(true_ids, true_rows, found_ids, found_rows, range(CLASSES))

    mine, theirs = ours(), plain()
    whole = np.stack([mine.matched, mine.false, mine.missed], axis=-1)
    error = max(
        agree("panoptic quality (IoU)", mine.iou, theirs[:, 0], 1e-12),
        agree("panoptic quality (segments)", whole, theirs[:, 1:].astype(np.int64), 0.0),
    )
    return Contest(
        {OURS: Side(ours, temporary_bytes(program)), PLAIN: Side(plain)},
        errors={PLAIN: error},
        goals={PLAIN: Goal(10.0)},
    )
