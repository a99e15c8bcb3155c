"""A system that sharpens masks, as something to call.

refiner = segjax.load("W")
result = refiner("big.jpg", "coarse.png", max_memory="6GiB")
result.save("fine.png")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from PIL import Image

from segjax.data import images
from segjax.inference import draw, draw_refinement, mask_files, predictor, refinement
from segjax.inference.refinement import Progress
from segjax.metrics import boundary
from segjax.metrics.average_precision import box_of, unpack
from segjax.structs import Instances, Panoptic, System, Variables

if TYPE_CHECKING:
    from segjax.inference.mask_predictor import MaskResult
    from segjax.inference.predictor import Picture

    Found = TypeVar("Found", predictor.Result, MaskResult)


class Refiner:
    """Sharpens masks of pictures of any size.

    Three options are common to its methods: `in_box` refines every object in its surroundings alone
    (see `refinement.refine_in_box`), `max_memory` bounds what the device holds (bytes, or text such
    as "6GiB"), and `progress` is called with (done, total).

    Attributes:
        system, variables: what refines.
        step: of the checkpoint.
    """

    def __init__(self, system: System, variables: Variables, step: int = 0) -> None:
        self.system, self.step = system, step
        self.variables = jax.device_put(variables, jax.local_devices()[0])

    def __call__(
        self,
        picture: Picture,
        mask: Picture,
        *,
        in_box: bool = False,
        max_memory: str | int | None = None,
        progress: Progress | None = None,
    ) -> RefinedMask:
        """Sharpens the mask of one object.

        Args:
            picture: a path, bytes, a PIL image, or an array as of `Predictor`.
            mask: the same of a grey mask, or an array that `refinement.as_grey` takes.

        Raises:
            SegjaxError: either can't be read, the mask is ambiguous, or their sizes differ.
        """
        image, grey = predictor.as_rgb(picture), _grey_of(mask)
        refines = refinement.refine_in_box if in_box else refinement.refine
        probability = refines(
            self.system,
            self.variables,
            image,
            grey,
            max_memory=refinement.memory(max_memory),
            progress=progress,
        )
        return RefinedMask(image, grey, probability)

    def labels(
        self,
        picture: Picture,
        labels: np.ndarray,
        *,
        skip: Collection[int] = (),
        in_box: bool = False,
        max_memory: str | int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Sharpens a map int [H, W] of classes or of segment ids; see `refinement.refine_labels`.

        Args:
            picture: as of a call.
            labels: any numbers; as a file, `mask_files.read(path).values`.
            skip: values that are not refined.
        """
        return refinement.refine_labels(
            self.system,
            self.variables,
            predictor.as_rgb(picture),
            labels,
            skip=skip,
            in_box=in_box,
            max_memory=refinement.memory(max_memory),
            progress=progress,
        )

    def sharpened(
        self,
        result: Found,
        *,
        in_box: bool = False,
        max_memory: str | int | None = None,
        progress: Progress | None = None,
    ) -> Found:
        """What another system found in a picture, with sharp borders.

        Class maps and panoptic segments are refined as maps. Segments that lose all of their pixels
        are gone, the others are numbered anew in the same order. Instances may overlap: each one's
        mask is refined by itself and holds the pixels above one half.

        Args:
            result: of a `Predictor` or a `MaskPredictor`.
        """

        def refined(labels: np.ndarray, done: int, of: int) -> np.ndarray:
            return self.labels(
                result.image,
                labels,
                in_box=in_box,
                max_memory=max_memory,
                progress=refinement.part_of(progress, done * 1000, 1000, of * 1000),
            )

        if isinstance(result, predictor.Result):
            return dataclasses.replace(result, labels=refined(result.labels, 0, 1))
        found = result._results
        parts = sum(part is not None for part in found)
        done = 0
        if found.semantic is not None:
            found = found._replace(semantic=refined(result.labels, done, parts))
            done += 1
        if found.panoptic is not None:
            ids = refined(result.segment_map, done, parts)
            found = found._replace(panoptic=_renumbered(found.panoptic, ids))
            done += 1
        if found.instances is not None:
            refines = refinement.refine_in_box if in_box else refinement.refine
            share = refinement.part_of(progress, done * 1000, 1000, parts * 1000)

            def one(mask: np.ndarray, progress: Progress | None) -> np.ndarray:
                memory = refinement.memory(max_memory)
                return refines(
                    self.system,
                    self.variables,
                    result.image,
                    mask,
                    max_memory=memory,
                    progress=progress,
                )

            sharp = _each_instance(found.instances, result.image.shape[:2], one, share)
            found = found._replace(instances=sharp)
        return dataclasses.replace(result, _results=found)


@dataclasses.dataclass(frozen=True, eq=False)
class RefinedMask:
    """A mask before and after.

    Attributes:
        image: uint8 [H, W, 3], as a viewer shows it.
        coarse: uint8 [H, W], the mask that was given, 255 where the object is.
        probability: float32 [H, W] that a pixel is the object's.
    """

    image: np.ndarray
    coarse: np.ndarray
    probability: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """uint8 [H, W], the probability times 255, cut to an integer as in the official files."""
        return boundary.grey(self.probability)

    def draw(self) -> Image.Image:
        """The image, and where the masks differ most, both masks in close-up."""
        masks = (boundary.foreground(grey) for grey in (self.coarse, self.mask))
        return draw_refinement.close_up(self.image, *masks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `mask` as a grey PNG, whole or not at all."""
        mask_files.check_name(path)
        draw.write(images.encode_png(self.mask), path)


def _grey_of(mask: Any) -> np.ndarray:
    """`as_grey` of whatever a mask comes as."""
    if isinstance(mask, str | os.PathLike):
        return mask_files.read(mask, "binary").values
    if isinstance(mask, Image.Image):
        flat = mask if mask.mode in ("L", "1", "P", "I;16") else mask.convert("L")
        return refinement.as_grey(np.array(flat))
    if isinstance(mask, bytes):
        return refinement.as_grey(images.read_labels(mask, "the mask"))
    return refinement.as_grey(mask)


def _renumbered(found: Panoptic, ids: np.ndarray) -> Panoptic:
    """The segments that `ids` int [H, W] still has, numbered without gaps."""
    classes, scores = np.asarray(found.segment_class), np.asarray(found.segment_score)
    kept = [number for number in np.unique(ids).tolist() if number > 0]
    numbers = np.zeros(len(classes) + 1, np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    places = np.array(kept, int) - 1
    table, sure = np.full(len(classes), -1, np.int32), np.zeros(len(classes), np.float32)
    table[: len(kept)], sure[: len(kept)] = classes[places], scores[places]
    return Panoptic(numbers[ids], table, sure)


def _each_instance(
    found: Instances,
    size: tuple[int, int],
    refine: Callable[[np.ndarray, Progress | None], np.ndarray],
    progress: Progress | None,
) -> Instances:
    """The instances with every mask that one of them uses refined, and areas and boxes anew."""
    height, width = size
    classes, queries, areas = (
        np.asarray(column).copy() for column in (found.classes, found.queries, found.areas)
    )
    masks, boxes = np.asarray(found.masks).copy(), np.asarray(found.boxes).copy()
    used = [int(q) for q in np.unique(queries[(classes >= 0) & (areas > 0)])]
    for done, query in enumerate(used):
        coarse = unpack(masks[query], width)[:height]
        share = refinement.part_of(progress, done * 1000, 1000, len(used) * 1000)
        sharp = refine(coarse, share) > 0.5
        bits = np.packbits(sharp, axis=-1)
        masks[query] = 0
        masks[query, :height, : bits.shape[1]] = bits
        mine = queries == query
        areas[mine], boxes[mine] = sharp.sum(), box_of(sharp)
    return found.replace(classes=classes, queries=queries, masks=masks, areas=areas, boxes=boxes)
