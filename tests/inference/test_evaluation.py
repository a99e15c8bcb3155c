"""Evaluation against the plain way of inferring and counting."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import toy_inference
from jax.sharding import Mesh

from segjax.errors import SegjaxError
from segjax.inference import evaluation
from segjax.inference.runner import Runner, infer_ready
from segjax.inference.windows import Settings
from segjax.metrics import confusion
from segjax.structs import IGNORE

SLIDE = Settings("slide", (90, 45), (32, 32), (24, 20), batch=4)
SIZES = [(45, 60), (30, 90), (45, 61), (90, 33), (45, 45), (20, 20), (100, 110), (45, 60), (44, 60)]
"""Images larger and smaller than the crop in either side, some alike."""


@pytest.fixture(scope="module")
def scenes():
    return toy_inference.Scenes(SIZES)


def plain_areas(scenes, settings):
    areas = np.zeros((3, toy_inference.CLASSES), np.int64)
    for example in scenes.examples:
        predicted = toy_inference.plain_probabilities(
            toy_inference.Toy(), toy_inference.variables(), example["image"], settings
        ).argmax(-1)
        semantic = example["semantic"]
        for k in range(toy_inference.CLASSES):
            areas[0, k] += ((predicted == k) & (semantic == k)).sum()
            areas[1, k] += ((predicted == k) & (semantic != IGNORE)).sum()
            areas[2, k] += (semantic == k).sum()
    return areas


def mesh(*shape):
    names = ("data", "tensor")[: len(shape)]
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names)


def evaluate(scenes, settings, where=None, **options):
    scenes.read.clear()
    return evaluation.evaluate(
        toy_inference.Toy(), toy_inference.variables(), scenes, settings, where, **options
    )


@pytest.fixture(scope="module")
def sliding(scenes):
    names = scenes.label_space.names
    return {**confusion.summary(plain_areas(scenes, SLIDE), names), "images": len(SIZES)}


@pytest.mark.parametrize("shape", [(1,), (8,), (2, 2)], ids=str)
def test_every_image_counts_once_on_any_devices(scenes, sliding, shape):
    """Nine images: the batches of a bucket are padded, on 1 and on 8 devices, and on a mesh that
    also has an axis for tensors."""
    assert evaluate(scenes, SLIDE, mesh(*shape)) == sliding
    assert sorted(scenes.read) == list(range(len(SIZES)))


def test_multi_scale_and_flip_average_as_the_plain_way_does():
    settings = Settings("slide", (90, 45), (32, 32), (24, 20), (0.5, 1.5), True, batch=4)
    few = toy_inference.Scenes(SIZES[:2])
    expected = confusion.summary(plain_areas(few, settings), few.label_space.names)
    assert evaluate(few, settings, mesh(1)) == {**expected, "images": 2}


@pytest.mark.parametrize(
    "settings",
    [
        Settings("whole", (90, 45), (32, 32), batch=2),
        Settings("whole", (80, 40), (32, 32), batch=2, pad_windows=False),
        Settings("slide", (40, 20), (24, 24), (20, 20), batch=2, pad_windows=False),
    ],
    ids=["whole", "whole, as it is", "windows left small"],
)
def test_whole_images_and_windows_left_small(settings):
    few = toy_inference.Scenes(SIZES[:2])
    expected = confusion.summary(plain_areas(few, settings), few.label_space.names)
    assert evaluate(few, settings, mesh(1)) == {**expected, "images": 2}


def test_little_memory_takes_fewer_images_at_once_and_changes_nothing(scenes, sliding, monkeypatch):
    monkeypatch.setattr("segjax.inference.runner.SCORE_BYTES", 1)
    runner = Runner(toy_inference.Toy(), toy_inference.variables(), SLIDE, mesh(1))
    assert {group.count for group in evaluation.plan_groups(scenes.sizes(), runner)} == {1}
    assert evaluate(scenes, SLIDE, mesh(1)) == sliding


def test_few_images_of_a_kind_do_not_fill_a_large_batch():
    settings = dataclasses.replace(SLIDE, batch=16)
    runner = Runner(toy_inference.Toy(), toy_inference.variables(), settings, mesh(2))
    sizes = np.array([(45, 60)] * 19 + [(90, 33)])
    groups = evaluation.plan_groups(sizes, runner)
    assert sorted((group.count, len(group.images)) for group in groups) == [
        (2, 1),
        (4, 3),
        (16, 16),
    ]
    assert sorted(number for group in groups for number in group.images) == list(range(20))


def test_the_settings_of_a_config_work_as_well(scenes, sliding):
    fields = dict(mode="slide", scale=[90, 45], crop=(32, 32), stride=(24, 20), every=7, batch=4)
    assert evaluate(scenes, fields, mesh(1)) == sliding


def test_a_second_evaluation_compiles_nothing(caplog):
    few, settings = toy_inference.Scenes([(20, 28)]), Settings("slide", (28, 28), (28, 28), (9, 9))

    def compilations():
        caplog.clear()
        with jax.log_compiles():
            evaluate(few, settings, mesh(1))
        return [record for record in caplog.records if "Compiling" in record.getMessage()]

    assert compilations()
    assert not compilations()


def test_pictures_show_images_of_the_dataset_with_what_was_predicted(scenes):
    metrics = evaluate(scenes, SLIDE, pictures=3)
    pictures = {picture.name: picture for picture in metrics["pictures"]}
    assert set(pictures) == {"scene 0", "scene 4", "scene 8"}
    for number in (0, 4, 8):
        example, picture = scenes.examples[number], pictures[f"scene {number}"]
        np.testing.assert_array_equal(picture.image, example["image"])
        np.testing.assert_array_equal(picture.truth, example["semantic"])
        probabilities = toy_inference.plain_probabilities(
            toy_inference.Toy(), toy_inference.variables(), example["image"], SLIDE
        )
        assert (picture.labels == probabilities.argmax(-1)).mean() > 0.999
        assert picture.regions.shape == picture.labels.shape


def test_metrics_are_written_as_json_without_nan(tmp_path, sliding):
    metrics = {**sliding, "mIoU": float("nan"), "pictures": [object()]}
    evaluation.write_metrics(metrics, tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["mIoU"] is None and "pictures" not in written
    assert written["classes"][0]["IoU"] == sliding["classes"][0]["IoU"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_progress_says_how_much_is_done(scenes, monkeypatch, capsys):
    monkeypatch.setattr("segjax.data.progress.QUIET_SECONDS", 0.0)
    evaluate(scenes, SLIDE, progress="evaluating")
    assert "evaluating: 1/" in capsys.readouterr().err


def test_faults_are_named(scenes):
    with pytest.raises(SegjaxError, match="the evaluation split is empty"):
        evaluate(toy_inference.Scenes([]), SLIDE)
    with pytest.raises(SegjaxError, match=r"config.model.classes is 5, but toy has 7 classes"):
        evaluate(toy_inference.Scenes([(9, 9)], classes=7), SLIDE)
    wrong = toy_inference.Scenes([(45, 60)])
    wrong.examples[0]["semantic"] = wrong.examples[0]["semantic"][1:]
    with pytest.raises(SegjaxError, match=r"scene 0: .*\(44, 60\).*prepare the dataset anew"):
        evaluate(wrong, SLIDE, mesh(1))

    class Broken(toy_inference.Scenes):
        def __getitem__(self, index):
            raise SegjaxError(f"scene {index}: the image is truncated.")

    with pytest.raises(SegjaxError, match="scene 0: the image is truncated"):
        evaluate(Broken([(45, 60)]), SLIDE, mesh(1))


def test_one_window_is_the_whole_image():
    image = toy_inference.Scenes([(32, 32)]).examples[0]["image"].astype(np.float32) / 255
    slide, whole = (
        infer_ready(
            toy_inference.Toy(),
            toy_inference.variables(),
            [image],
            [False],
            (50, 41),
            Settings(mode, crop=(32, 32), stride=(32, 32)),
            "scores",
        )
        for mode in ("slide", "whole")
    )
    assert slide.shape == (50, 41, toy_inference.CLASSES)
    np.testing.assert_array_equal(slide, whole)


def test_ready_copies_average_as_the_plain_way_does():
    example = toy_inference.Scenes([(30, 45)]).examples[0]["image"]
    settings = Settings("slide", (45, 30), (24, 24), (16, 16), (1.0,), True)
    images, mirrored = [example, example[:, ::-1]], [False, True]
    ours = infer_ready(
        toy_inference.Toy(),
        toy_inference.variables(),
        images,
        mirrored,
        (30, 45),
        settings,
        "scores",
    )
    plain = toy_inference.plain_probabilities(
        toy_inference.Toy(), toy_inference.variables(), example, settings
    )
    assert np.linalg.norm(ours - plain) / np.linalg.norm(plain) < 1e-5
