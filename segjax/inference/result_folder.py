"""The results of an evaluation as a folder that the official tools of COCO and Cityscapes read.

panoptic/NAME.png, panoptic.json     COCO's panoptic format
instances.json                       COCO's instance results
instances/NAME_pred.txt, ...         cityscapesscripts' instance results (Cityscapes alone)
semantic/NAME.png                    the dataset's own ids (Cityscapes: label ids)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.inference import result_files
from segjax.inference.mask_runner import Results
from segjax.structs import Size


class ResultFolder:
    """Takes results image by image; the JSON files appear in `finish`."""

    def __init__(self, folder: str | PathLike[str], space: LabelSpace) -> None:
        if jax.process_count() > 1:
            raise SegjaxError("--results: several processes can't share a folder; run it on one.")
        self.folder, self.space = Path(folder), space
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._sizes: dict[str | int, Size] = {}

    def take(self, name: str, example: Mapping[str, Any], results: Results) -> None:
        """Writes what is one file per image."""
        size = example["image"].shape[:2]
        stem = re.sub(r"[^\w.-]+", "_", name.rpartition("/")[2])
        image_id = int(stem) if stem.isdecimal() else stem  # COCO's ids are numbers
        self._sizes[image_id] = size
        if results.panoptic is not None:
            row = result_files.panoptic_image(
                self.folder / "panoptic", stem, results.panoptic, self.space, image_id, size
            )
            self._panoptic.append(row)
        if results.instances is not None:
            found = results.instances
            self._instances += result_files.instances(found, self.space, image_id, size)
            if self.space.name.startswith("cityscapes"):
                result_files.cityscapes_instances(
                    self.folder / "instances", stem, found, self.space, size
                )
        if results.semantic is not None:
            labels = results.semantic[: size[0], : size[1]]
            result_files.semantic(self.folder / "semantic" / f"{stem}.png", labels, self.space)

    def finish(self) -> None:
        """Writes the JSON files."""
        if self._panoptic:
            result_files.panoptic_json(
                self.folder / "panoptic.json", self._panoptic, self._sizes, self.space
            )
        if self._instances:
            result_files.write_json(self.folder / "instances.json", self._instances)
