"""A trained system that answers with masks, as something to call on photographs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segjax.data.labels import LabelSpace
from segjax.inference import draw, draw_segments, mask_runner, result_files
from segjax.inference.mask_runner import MaskRunner, Results, Settings
from segjax.inference.predictor import Picture, _enough_memory, as_rgb
from segjax.inference.runner import one_device
from segjax.structs import Instances, Panoptic, Size, System, Variables

SURE = 0.5
"""Score from which an instance is drawn."""


class MaskPredictor:
    """Segments pictures of any size and format.

    Attributes:
        label_space: what the class numbers mean.
        settings: how it infers, and which of semantic, panoptic and instance it makes.
        step: of the checkpoint.
    """

    def __init__(
        self,
        system: System,
        variables: Variables,
        label_space: LabelSpace,
        settings: Settings | Mapping[str, Any],
        step: int = 0,
    ) -> None:
        self.label_space, self.settings, self.step = label_space, Settings.of(settings), step
        self._runner = MaskRunner(
            system, variables, label_space.is_thing, self.settings, one_device()
        )

    def __call__(self, picture: Picture) -> MaskResult:
        """Segments a picture: a path, bytes, a PIL image, or an array as of `Predictor`.

        Raises:
            SegjaxError: it can't be read, or is no picture.
        """
        image = as_rgb(picture)
        plan = self._runner.planned(image.shape[:2])
        with _enough_memory(image):
            said = self._runner.run(
                {0: [mask_runner.view_of(image, view) for view in plan]}, [plan]
            )
            made = self._runner.results(said, [plan], [image.shape[:2]])
            results = self._runner.row(made, 0)
        return MaskResult(image, self.label_space, results)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskResult:
    """What a model says about a picture.

    Attributes:
        image: uint8 [H, W, 3], as a viewer shows it.
        label_space: the classes.
    """

    image: np.ndarray
    label_space: LabelSpace
    _results: Results = dataclasses.field(repr=False)

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def labels(self) -> np.ndarray | None:
        """int [H, W] class numbers; None if config.eval.tasks has no "semantic"."""
        found = self._results.semantic
        height, width = self.size
        return None if found is None else np.asarray(found)[:height, :width]

    @property
    def segment_map(self) -> np.ndarray | None:
        """int32 [H, W], 0 for no segment, else 1 + its place in `segments`; None if
        config.eval.tasks has no "panoptic"."""
        found = self._results.panoptic
        height, width = self.size
        return None if found is None else np.asarray(found.segment_map)[:height, :width]

    @property
    def segments(self) -> list[dict[str, Any]]:
        """For each segment its id (its value in `segment_map`), class, name, isthing and score."""
        found: Panoptic | None = self._results.panoptic
        if found is None:
            return []
        space = self.label_space
        return [
            {
                "id": number,
                "class": int(label),
                "name": space.names[label],
                "isthing": space.is_thing[label],
                "score": float(score),
            }
            for number, (label, score) in enumerate(
                zip(found.segment_class, found.segment_score), 1
            )
            if label >= 0
        ]

    def instances(self, least: float = 0.0) -> list[dict[str, Any]]:
        """Instances as COCO's results list them (category_id, segmentation as run lengths, score,
        bbox), those with a score of at least `least`; none if config.eval.tasks has no
        "instance"."""
        found: Instances | None = self._results.instances
        if found is None:
            return []
        rows = result_files.instances(found, self.label_space, 0, self.size)
        return [row for row in rows if row["score"] >= least]

    def draw(self, alpha: float = 0.6, legend: bool = True) -> Image.Image:
        """Segments with borders and names over the image if there are any, else the classes, else
        the instances of which the model is sure (SURE)."""
        if self.segment_map is not None:
            segments, classes = self.segment_map, [row["class"] for row in self.segments]
        elif self.labels is not None:
            return draw.drawn(self, alpha, legend)
        elif self._results.instances is not None:
            segments, classes = result_files.painted(self._results.instances, self.size, SURE)
        else:
            return Image.fromarray(self.image)
        factor = -(-360 // max(self.size))
        image, segments = (draw.enlarged(x, factor) for x in (self.image, segments))
        return Image.fromarray(
            draw_segments.segment_overlay(
                image, segments, classes, self.label_space, alpha, names=legend
            )
        )

    def save(self, out: str | os.PathLike[str]) -> list[Path]:
        """Writes all there is beside `out`, a picture's path, and returns the files.

        `out` itself is the drawing; out_labels.png the class numbers; out_panoptic.png and .json
        the segments in COCO's panoptic format; out_instances.json COCO's instance results.
        """
        out = Path(out)
        draw.save(self.draw(), out)
        files = [out]
        if self.labels is not None:
            files.append(out.with_name(f"{out.stem}_labels.png"))
            draw.save(draw.label_image(self.labels, self.label_space.palette), files[-1])
        if self._results.panoptic is not None:
            name = f"{out.stem}_panoptic"
            row = result_files.panoptic_image(
                out.parent, name, self._results.panoptic, self.label_space, out.stem, self.size
            )
            path = out.with_name(f"{name}.json")
            sizes = {out.stem: self.size}
            result_files.panoptic_json(path, [row], sizes, self.label_space)
            files += [out.with_name(f"{name}.png"), path]
        if self._results.instances is not None:
            files.append(out.with_name(f"{out.stem}_instances.json"))
            rows = [{**row, "image_id": out.stem} for row in self.instances()]
            result_files.write_json(files[-1], rows)
        return files
