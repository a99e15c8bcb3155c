"""A trained system as something to call on photographs.

model = segjax.load("W")
result = model("photo.jpg")
result.draw().save("photo_seg.png")
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image, ImageOps

from segjax.data import hierarchies
from segjax.data.hierarchies import Hierarchy
from segjax.data.images import read_image
from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.inference import draw, mask_runner, refinement, windows
from segjax.inference.runner import Plan, Runner, Scores, one_device, windows_of
from segjax.inference.windows import Settings
from segjax.structs import System, Variables

if TYPE_CHECKING:
    from segjax.inference.mask_predictor import MaskPredictor
    from segjax.inference.refiner import Refiner

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def load(
    workdir: str | os.PathLike[str], which: str = "best", overrides: Sequence[str] = ()
) -> Predictor | MaskPredictor | Refiner:
    """The model of a workdir that training or importing made.

    Args:
        workdir: needs config.json, label_space.json and a checkpoint, and nothing else (a system
            that sharpens masks not even the second).
        which: "best" or "last"; where there is only one, that one.
        overrides: changes to the saved config, e.g. ["--config.eval.flip=True"].

    Returns:
        A `Predictor`; a `MaskPredictor` for a system that answers with masks; a `Refiner` for one
        that sharpens them.

    Raises:
        SegjaxError: something is missing in the workdir or damaged.
    """
    from segjax import config as configs
    from segjax import systems
    from segjax.training import checkpoints

    workdir = Path(workdir)
    if not (workdir / "config.json").is_file():
        raise SegjaxError(
            f"{workdir}: there is no config.json in it; name the --workdir of a training or an"
            " import."
        )
    config = configs.load(workdir / "config.json", overrides)
    system = systems.of_config(config, workdir)
    if refinement.is_refiner(system):
        from segjax.inference.refiner import Refiner

        variables, step, _ = checkpoints.load_variables(workdir, which)
        return Refiner(system, variables, step)
    space = LabelSpace.load(workdir / "label_space.json")
    if space.classes != system.classes:
        raise SegjaxError(
            f"{workdir}: label_space.json has {space.classes} classes, but config.model.classes is"
            f" {system.classes}; restore the file that was written with the checkpoint."
        )
    variables, step, _ = checkpoints.load_variables(workdir, which)
    if mask_runner.answers_with_masks(system):
        from segjax.inference.mask_predictor import MaskPredictor

        return MaskPredictor(system, variables, space, config.eval, step)
    hierarchy = systems.hierarchy_of(config, workdir) if config.hierarchy.tree else None
    return Predictor(system, variables, space, config.eval, step, hierarchy)


class Predictor:
    """Labels pictures of any size and format.

    Attributes:
        label_space: what the class numbers mean.
        settings: how it infers.
        step: of the checkpoint.
        hierarchy: the class tree that it was trained with, or None.
    """

    def __init__(
        self,
        system: System,
        variables: Variables,
        label_space: LabelSpace,
        settings: Settings | Mapping[str, Any],
        step: int = 0,
        hierarchy: Hierarchy | None = None,
    ) -> None:
        self.label_space, self.settings, self.step = label_space, Settings.of(settings), step
        self.hierarchy = hierarchy
        self._runner = Runner(system, variables, self.settings, one_device(), regions=True)

    def __call__(self, picture: Picture) -> Result:
        """Labels a picture.

        Args:
            picture: a path, the bytes of a file, a PIL image, or an array: uint8 [H, W, 3] RGB,
                [H, W, 4], or [H, W]. Rotation by EXIF, transparency and 16 bits are treated as
                `read_image` does.

        Raises:
            SegjaxError: it can't be read, or is no picture.
        """
        image = as_rgb(picture)
        plan = windows.plan(image.shape[:2], self.settings)
        with _enough_memory(image):
            scores = self._run(image, plan)
            found = self._runner.one_labels(scores, plan)
        labels = found.astype(np.uint8 if self.label_space.classes <= 256 else np.int32)
        return Result(image, labels, self.label_space, self, plan, Scores([], scores.regions))

    def _run(self, image: np.ndarray, plan: Plan) -> Scores:
        return self._runner.run({0: windows_of(image, plan)}, plan, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What a model says about a picture.

    Attributes:
        image: uint8 [H, W, 3], as a viewer shows it.
        labels: [H, W] class numbers, uint8 (int32 with more than 256 classes).
        label_space: their meaning.
    """

    image: np.ndarray
    labels: np.ndarray
    label_space: LabelSpace
    _predictor: Predictor = dataclasses.field(repr=False)
    _plan: Plan = dataclasses.field(repr=False)
    _scores: Scores = dataclasses.field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        return self.label_space.names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The class colours."""
        return self.label_space.palette

    def draw(self, alpha: float = 0.6, legend: bool = True) -> Image.Image:
        """The colours of the classes over the image, and a legend; see `draw.drawn`."""
        return draw.drawn(self, alpha, legend)

    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Writes the labels as a palette PNG: pixel values are class numbers."""
        draw.save(draw.label_image(self.labels, self.palette), path)

    def scores(self, dtype: str = "float32") -> np.ndarray:
        """Class probabilities [H, W, K], computed anew. float16 takes half the memory."""
        runner = self._predictor._runner
        with _enough_memory(self.image):
            scores = self._predictor._run(self.image, self._plan)
            return runner.one_scores(scores, self._plan, "probabilities", dtype)

    def levels(self) -> list[Result]:
        """The same picture labelled on each level of the model's class tree, the leaves first; this
        one alone without a tree. Levels never contradict each other."""
        tree = self._predictor.hierarchy
        if tree is None:
            return [self]
        results = [self]
        for level in range(1, len(tree.levels)):
            space = hierarchies.level_space(tree, self.label_space, level)
            labels = tree.ancestors[:, level].astype(self.labels.dtype)[self.labels]
            results.append(dataclasses.replace(self, labels=labels, label_space=space))
        return results

    def node_scores(self, dtype: str = "float32") -> np.ndarray:
        """[H, W, V] scores of all nodes of the class tree, level by level, computed anew: a class
        never scores above the one it belongs to.

        Raises:
            SegjaxError: the model has no tree.
        """
        if self._predictor.hierarchy is None:
            raise SegjaxError("this model was trained without a class tree; it has no node scores.")
        with _enough_memory(self.image):
            scores = self._predictor._run(self.image, self._plan)
            return self._predictor._runner.one_scores(scores, self._plan, "nodes", dtype)

    def regions(self) -> np.ndarray | None:
        """int32 [H, W], which learned region a pixel belongs to; None for systems without any."""
        return self._region_map

    @functools.cached_property
    def _region_map(self) -> np.ndarray | None:
        return self._predictor._runner.region_map(self._scores, self._plan, 0, 1)

    def token_centres(self) -> np.ndarray | None:
        """float32 [N, 2], (y, x) of the tokens that the regions belong to; None without any."""
        return self._predictor._runner.token_centres(self._plan) if self._scores.regions else None


@contextlib.contextmanager
def _enough_memory(image: np.ndarray) -> Iterator[None]:
    """A full device in one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SegjaxError(
            f"the device has not enough memory for a picture of {image.shape[1]} x"
            f" {image.shape[0]}; lower config.eval.batch or config.eval.scale."
        ) from error


def as_rgb(picture: Picture) -> np.ndarray:
    """uint8 [H, W, 3] of whatever `Predictor` takes."""
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
            image = picture
        else:
            image = _read(_from_array(picture))
    elif isinstance(picture, Image.Image):
        image = _read(picture)
    elif isinstance(picture, str | os.PathLike | bytes):
        image = read_image(picture)
    else:
        raise SegjaxError(
            f"a picture is a path, bytes, a PIL image or an array, not {type(picture).__name__}."
        )
    if not image.size:
        raise SegjaxError(f"the picture is empty: its shape is {picture.shape}.")
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    grey = flat.ndim == 2 and flat.dtype in (np.uint8, np.uint16, np.bool_)
    if not (grey or (flat.dtype == np.uint8 and flat.ndim == 3 and flat.shape[2] in (2, 4))):
        raise SegjaxError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture; give uint8"
            " [H, W, 3] RGB with values 0..255."
        )
    return Image.fromarray(flat) if flat.size else Image.new("RGB", (0, 0))


def _read(picture: Image.Image) -> np.ndarray:
    """A PIL image as `read_image` reads files: plain RGB directly, all else by way of a file."""
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode == "RGB" and "transparency" not in picture.info:
            return np.array(picture)
        data = io.BytesIO()
        if picture.mode in ("1", "L", "LA", "P", "RGBA", "I", "I;16", "RGB"):
            picture.save(data, "PNG", compress_level=1)
        else:
            picture.save(data, "TIFF")
    except (OSError, SyntaxError, ValueError) as error:
        name = getattr(picture, "filename", "") or "the PIL image"
        raise SegjaxError(f"{name}: it cannot be read ({error}).") from None
    return read_image(data.getvalue(), "the PIL image")
