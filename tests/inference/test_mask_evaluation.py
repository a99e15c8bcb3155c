"""Evaluation and prediction of systems that answer with masks, end to end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.data import hierarchies
from segjax.errors import SegjaxError
from segjax.inference import mask_evaluation, mask_runner, result_files
from segjax.inference.mask_predictor import MaskPredictor
from segjax.inference.result_folder import ResultFolder
from segjax.metrics import average_precision, confusion
from segjax.metrics import panoptic as quality
from segjax.structs import Instances, Masks
from tests.inference.toy_inference import label_space

SPACE = dataclasses.replace(label_space(), is_thing=(True, True, False, False, False))
GROUPS = [0, 1, 1, 0, 1]
"""The group of each class, for scores by level."""

GROUPED = dataclasses.replace(
    SPACE,
    groups=("outer", "inner"),
    parents=(*(SPACE.classes + group for group in GROUPS), -1, -1),
)
SETTINGS = dict(
    scale=(96, 48), tasks=("panoptic", "semantic", "instance"), object_threshold=0.5, topk=8
)


@dataclasses.dataclass(frozen=True)
class Painter:
    """A system whose query k holds the pixels whose red is 40 k + 20, and says class k."""

    classes: int = 5
    divisible: int = 32
    clips_segments: bool = True

    def predict(self, variables, batch):
        red = batch["image"][..., 0].astype(jnp.float32)
        covers = tuple(-(-side // 32) * 32 for side in red.shape[1:])
        red = jnp.pad(red, ((0, 0), *((0, c - s) for c, s in zip(covers, red.shape[1:]))))
        masks = 20 - jnp.abs(red[..., None] - (40.0 * jnp.arange(5) + 20))
        logits = jnp.full((1, 5, 6), 0.0).at[0, jnp.arange(5), jnp.arange(5)].set(9.0)
        return Masks(jnp.broadcast_to(logits, (len(red), 5, 6)), masks, covers)


class Painted:
    """Images whose red says the class; every class is one segment."""

    label_space = SPACE

    def __init__(self, sizes):
        self._sizes = np.array(sizes, np.int32)

    def __len__(self):
        return len(self._sizes)

    def sizes(self):
        return self._sizes

    def __getitem__(self, index):
        height, width = self._sizes[index]
        rows = np.arange(height)[:, None] * 2 // height
        columns = np.arange(width)[None] * 2 // width
        labels = rows * 2 + columns
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = 40 * labels + 20
        return {
            "image": image,
            "semantic": labels.astype(np.int16),
            "segments": labels.astype(np.int32),
            "segment_class": np.arange(4, dtype=np.int32),
            "segment_is_crowd": np.zeros(4, bool),
            "name": f"painted/{index:03d}",
        }


SIZES = [(48, 64)] * 3 + [(64, 48), (40, 90), (96, 96)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    writer = ResultFolder(folder, SPACE)
    metrics = mask_evaluation.evaluate(
        *(Painter(), {}, Painted(SIZES), SETTINGS),
        pictures=2,
        take=writer.take,
        hierarchy=hierarchies.of(GROUPED),
    )
    writer.finish()
    return metrics, folder


def test_a_perfect_painter_scores_nearly_everything(outcome):
    metrics, _ = outcome
    assert metrics["PQ"] > 90 and metrics["RQ"] == 100
    assert metrics["mIoU"] > 90
    assert metrics["AP"] > 80
    assert metrics["images"] == len(SIZES)
    assert len(metrics["pictures"]) == 2


def test_written_results_score_the_same(outcome):
    metrics, folder = outcome
    counts, data = quality.Counts.zeros(5), Painted(SIZES)
    for row, ids in result_files.read_panoptic(
        folder / "panoptic.json", SPACE, folder / "panoptic"
    ):
        example = data[int(row["image_id"])]
        found = np.full(8, -1)
        for segment in row["segments_info"]:
            found[segment["id"] - 1] = segment["category_id"]
        shared = np.asarray(quality.intersections(example["segments"], ids, 4, 8))
        counts += quality.from_image(
            shared, example["segment_class"], example["segment_is_crowd"], found, 5
        )
    summary = quality.summary(counts, SPACE.is_thing, SPACE.names)
    assert summary["all"]["PQ"] == pytest.approx(metrics["PQ"], abs=1e-9)
    rows = json.loads((folder / "instances.json").read_text())
    truth = [
        row
        for i in range(len(data))
        for row in average_precision.annotations(
            i,
            data[i]["segments"],
            data[i]["segment_class"],
            data[i]["segment_is_crowd"],
            SPACE,
        )
    ]
    content = average_precision.ground_truth(dict(enumerate(map(tuple, SIZES))), truth, SPACE)
    assert average_precision.evaluate(content, rows)["AP"] == pytest.approx(metrics["AP"])
    assert np.asarray(Image.open(folder / "semantic" / "005.png")).shape == (96, 96)


def test_levels_are_what_merging_the_written_label_maps_gives(outcome):
    """The system itself knows no tree."""
    metrics, folder = outcome
    data, areas = Painted(SIZES), np.zeros((3, 2), np.int64)
    for i in range(len(data)):
        labels = np.asarray(Image.open(folder / "semantic" / f"{i:03d}.png"))
        found, truth = (np.array(GROUPS)[x] for x in (labels, data[i]["semantic"]))
        for k in (0, 1):
            right = (found == k) & (truth == k)
            areas[:, k] += right.sum(), (found == k).sum(), (truth == k).sum()
    expected = confusion.summary(areas, ("outer", "inner"))
    assert metrics["levels"] == [{"level": 2, **expected}]
    assert (metrics["mIoU^1"], metrics["mIoU^2"]) == (metrics["mIoU"], expected["mIoU"])


def test_one_device_and_eight_count_the_same(outcome):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    alone = mask_evaluation.evaluate(Painter(), {}, Painted(SIZES), SETTINGS, mesh=mesh)
    for name in ("PQ", "mIoU", "AP"):
        assert alone[name] == pytest.approx(outcome[0][name], abs=1e-9)


def test_flipping_averages_views_that_agree():
    settings = dict(scale=(96, 48), flip=True, ratios=(1.0, 1.5))
    plain = MaskPredictor(Painter(), {}, SPACE, dict(scale=(96, 48)))
    several = MaskPredictor(Painter(), {}, SPACE, settings)
    image = Painted([(48, 64)])[0]["image"]
    assert (plain(image).labels == several(image).labels).mean() > 0.97


def test_a_prediction_is_written_whole(tmp_path):
    result = MaskPredictor(Painter(), {}, SPACE, SETTINGS)(Painted([(50, 70)])[0]["image"])
    files = result.save(tmp_path / "a.png")
    assert sorted(path.name for path in files) == sorted(path.name for path in tmp_path.iterdir())
    assert result.segment_map.shape == (50, 70)
    assert {segment["class"] for segment in result.segments} == {0, 1, 2, 3}
    assert {row["category_id"] for row in result.instances(0.3)} == {0, 1}


def test_instances_alone_are_drawn_too():
    image = Painted([(50, 70)])[0]["image"]
    result = MaskPredictor(Painter(), {}, SPACE, SETTINGS | dict(tasks=("instance",)))(image)
    assert result.segment_map is None and result.labels is None
    drawn = np.asarray(result.draw(legend=False))
    factor = drawn.shape[0] // 50
    plain = np.repeat(np.repeat(image, factor, 0), factor, 1)
    assert (drawn != plain).any(axis=-1).mean() > 0.2


def test_the_surer_instance_lies_on_top():
    masks = np.zeros((2, 4, 1), np.uint8)
    masks[0, :3], masks[1, 1:] = 0b11110000, 0b11110000  # rows 0-2, rows 1-3 of 4 columns
    found = Instances(
        scores=np.array([0.9, 0.6, 0.2]),
        classes=np.array([1, 0, 1]),
        queries=np.array([0, 1, 1]),
        masks=masks,
        areas=np.array([12, 12, 12]),
        boxes=np.zeros((3, 4), int),
    )
    picture, classes = result_files.painted(found, (4, 4), 0.5)
    assert classes == [1, 0]
    np.testing.assert_array_equal(picture[:, 0], [1, 1, 1, 2])


def test_several_views_are_for_semantic_alone():
    with pytest.raises(SegjaxError, match="tasks"):
        mask_runner.Settings(flip=True, tasks=("panoptic",))


def test_a_dataset_without_segments_is_refused():
    class Plain(Painted):
        def __getitem__(self, index):
            keep = ("image", "semantic", "name")
            return {
                name: value for name, value in super().__getitem__(index).items() if name in keep
            }

    with pytest.raises(SegjaxError, match="no segments"):
        mask_evaluation.evaluate(Painter(), {}, Plain([(48, 64)]), SETTINGS)
