"""Objects of shapescapes for refinement: a scene, the mask of one thing in it, and a coarse one.

Nothing is downloaded; see `segjax.data.scenes` for what is painted. A training example is a window
of a small scene (`coarse_size`, nearer or farther by `zoom`), with the exact mask alone, as coarse
ones are drawn anew each time. A validation example is a whole large scene (`validation_size`), and
its coarse mask is fixed: the exact mask is made small, perturbed (see `segjax.data.perturb`) and
enlarged again, so its boundary is as coarse as that of a network that works on small scenes.

The perturbation moves boundaries by pixels, so the smaller a mask is, the more it suffers. In
scenes of 128 pixels a coarse mask has an IoU of 0.57 with the exact one on average, in those of 192
0.67, of 256 0.73; those of published networks have 0.72 to 0.90 on BIG.
"""

from __future__ import annotations

from os import PathLike

import cv2
import numpy as np

from segjax.data import images, perturb, prepared, refinement, scenes
from segjax.data.datasets import shapescapes
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Record, Source
from segjax.errors import SegjaxError

GENERATOR = 2
"""Counts changes to what is made here; part of the key of prepared copies."""

LEAST = 0.02
"""Share of the scene that an object covers at least, where there is such a thing."""


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    size: tuple[int, int] = (128, 128),
    validation_size: tuple[int, int] = (1024, 1024),
    coarse_size: tuple[int, int] = (256, 256),
    zoom: tuple[float, float] = (0.5, 2.0),
    stuff: float = 0.3,
    train: int = 1000,
    validation: int = 20,
    iou_target: tuple[float, float] = (0.8, 1.0),
    seed: int = 0,
) -> Dataset:
    """Loads a split, painting it on first use.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        size: (height, width) of training examples; no larger than the smallest training scene.
        validation_size: (height, width) of validation scenes.
        coarse_size: (height, width) of what coarse masks are made at, and of training scenes.
        zoom: a training scene is larger than that by a factor from this range, as photographs show
            things from near and far; any octave is as likely as another.
        stuff: the share of training examples that may show the ground, the sky and the like too, so
            that label maps can be refined. Validation examples show things alone.
        train: number of training scenes.
        validation: number of validation scenes.
        iou_target: the range that the perturbation's target of each coarse mask is drawn from.
        seed: another one gives other scenes.
    """
    options = dict(
        size=size,
        validation_size=validation_size,
        coarse_size=coarse_size,
        zoom=zoom,
        stuff=stuff,
        train=train,
        validation=validation,
        iou_target=iou_target,
        seed=seed,
    )
    return prepared.prepare(source(split, data_dir, **options), data_dir)


def label_space(**options: object) -> LabelSpace:
    """Background and object."""
    return refinement.LABEL_SPACE


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    size: tuple[int, int] = (128, 128),
    validation_size: tuple[int, int] = (1024, 1024),
    coarse_size: tuple[int, int] = (256, 256),
    zoom: tuple[float, float] = (0.5, 2.0),
    stuff: float = 0.3,
    train: int = 1000,
    validation: int = 20,
    iou_target: tuple[float, float] = (0.8, 1.0),
    seed: int = 0,
) -> Source:
    """The scenes of a split, painted as they are read. Options as in `load`."""
    if split not in shapescapes.SPLITS:
        raise SegjaxError(f"shapescapes_masks has the splits train and validation, not '{split}'.")
    count = {"train": train, "validation": validation}[split]
    if count < 1:
        raise SegjaxError(f"config.data.dataset.{split} is {count}; ask for at least one scene.")
    sizes = {"size": size, "validation_size": validation_size, "coarse_size": coarse_size}
    for name, value in sizes.items():
        if len(value) != 2 or min(value) < 16:
            raise SegjaxError(
                f"config.data.dataset.{name} is {value}; give (height, width) of 16 pixels or more."
            )
    if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
        raise SegjaxError(
            f"config.data.dataset.zoom is {zoom}; give two positive factors, the smaller one first."
        )
    if not 0 <= stuff <= 1:
        raise SegjaxError(f"config.data.dataset.stuff is {stuff}; give a share, 0..1.")
    smallest = tuple(int(side * zoom[0]) for side in coarse_size)
    if size[0] > smallest[0] or size[1] > smallest[1]:
        raise SegjaxError(
            f"config.data.dataset.size is {size}, but training examples are cut out of scenes of"
            f" {smallest} and more, config.data.dataset.coarse_size times zoom; make it no larger."
        )
    if len(iou_target) != 2 or not 0 <= iou_target[0] <= iou_target[1] <= 1:
        raise SegjaxError(
            f"config.data.dataset.iou_target is {iou_target}; give two numbers of 0..1, the smaller"
            " one first."
        )
    small, large, rough = (tuple(int(side) for side in value) for value in sizes.values())
    coarse = split == "validation"

    def read(index: int) -> Record:
        rng = np.random.default_rng([seed, shapescapes.SPLITS.index(split), index, 1])
        if coarse:
            scene = shapescapes.scene_at(split, index, large, seed)
            mask = object_mask(scene, rng)
            made = coarse_mask(mask, rough, iou_target, rng)
            return refinement.record(images.encode_png(scene.image), mask, made)
        factor = float(np.exp(rng.uniform(*np.log(zoom))))
        near = tuple(int(side * factor) for side in rough)
        scene = shapescapes.scene_at(split, index, near, seed)
        mask = object_mask(scene, rng, bool(rng.random() < stuff))
        window = around(mask, small, rng)
        return refinement.record(images.encode_png(scene.image[window]), mask[window], None)

    facts = (large, rough, tuple(iou_target)) if coarse else (small, rough, tuple(zoom), stuff)
    return Source(
        dataset="shapescapes_masks",
        split=split,
        label_space=label_space(),
        key=prepared.key_of(GENERATOR, shapescapes.GENERATOR, *facts, count, seed),
        segments=False,
        names=lambda: [f"{split}/{index:06d}" for index in range(count)],
        read=read,
        masks=refinement.MASKS if coarse else refinement.MASKS[:1],
    )


def object_mask(scene: scenes.Scene, rng: np.random.Generator, stuff: bool = False) -> np.ndarray:
    """One thing of a scene (or of its stuff too), any of those that are not too small; else the
    largest segment.

    Returns:
        uint8 [H, W], 0 or 255.
    """
    areas = np.bincount(scene.segments.ravel(), minlength=len(scene.segment_class))
    is_thing = (scene.segment_class >= scenes.STUFF) & ~scene.segment_is_crowd
    things = np.flatnonzero((is_thing | stuff) & (areas >= LEAST * scene.segments.size))
    chosen = rng.choice(things) if len(things) else areas.argmax()
    return np.where(scene.segments == chosen, np.uint8(255), np.uint8(0))


def around(
    mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice]:
    """A window of `size` in [H, W] that has the object's middle in its middle half, if it can;
    along a side where the object is longer than the window, one of its pixels."""
    window = []
    pixel = np.unravel_index(rng.choice(np.flatnonzero(mask)), mask.shape)
    for axis, side in enumerate(size):
        filled = np.flatnonzero(mask.any(axis=1 - axis))
        first, end = filled[0], filled[-1] + 1
        middle = (first + end) / 2 if end - first <= side else pixel[axis]
        start = int(np.clip(middle - rng.uniform(0.25, 0.75) * side, 0, mask.shape[axis] - side))
        window.append(slice(start, start + side))
    return tuple(window)


def coarse_mask(
    mask: np.ndarray,
    size: tuple[int, int],
    iou_target: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """The mask as if it had been made at another size.

    Args:
        mask: uint8 [H, W], 0 or 255.
        size: (height, width) at which it is perturbed.
        iou_target: the range of the perturbation's target.
        rng: the source of all draws.

    Returns:
        uint8 [H, W], 0 or 255.
    """
    small = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    small = np.where(small > refinement.THRESHOLD, np.uint8(255), np.uint8(0))
    small = perturb.perturb(small, rng.uniform(*iou_target), perturb.GeneratorDraws(rng))
    whole = cv2.resize(small, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.where(whole > refinement.THRESHOLD, np.uint8(255), np.uint8(0))
