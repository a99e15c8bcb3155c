"""Evaluation against the plain way of inferring and counting."""

import dataclasses
import json
import weakref

import jax
import numpy as np
import pytest
import toy_inference
from jax.sharding import Mesh

from segjax.data import hierarchies
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


def pairs_of(picture):
    """The confusion matrix of a picture, by counting."""
    matrix = np.zeros((toy_inference.CLASSES, toy_inference.CLASSES), np.int64)
    known = picture.truth != IGNORE
    np.add.at(matrix, (picture.truth[known], picture.labels[known]), 1)
    return matrix


@pytest.mark.parametrize("shape", [(1,), (8,), (2, 2)], ids=str)
def test_details_are_what_counting_the_pictures_gives_on_any_devices(scenes, sliding, shape):
    """All images are pictures here. The last groups are filled up with images that don't count."""
    metrics = evaluate(scenes, SLIDE, mesh(*shape), pictures=99, details=True, extremes=2)
    details = metrics.pop("details")
    pictures = {picture.name: picture for picture in metrics.pop("pictures")}
    assert metrics == sliding
    matrices = [pairs_of(pictures[f"scene {i}"]) for i in range(len(SIZES))]
    assert details.pairs.dtype == np.int64
    np.testing.assert_array_equal(details.pairs, sum(matrices))
    for image, matrix in enumerate(matrices):
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        present = matrix.sum(1) > 0
        expected = (matrix.diagonal()[present] / union[present]).mean()
        assert details.iou[image] == pytest.approx(expected, rel=1e-12)
        right = matrix.trace() / matrix.sum()
        assert details.accuracy[image] == pytest.approx(right, rel=1e-12)
    order = np.argsort(details.iou)
    assert details.seen == len(SIZES)
    for found, images in ((details.worst, order[:2]), (details.best, order[::-1][:2])):
        assert [judged.picture.name for judged in found] == [f"scene {i}" for i in images]
        for judged, image in zip(found, images):
            assert judged.iou == details.iou[image]
            assert judged.accuracy == details.accuracy[image]
            expected = pictures[judged.picture.name]
            for field in ("image", "truth", "labels"):
                one, other = (getattr(p, field) for p in (judged.picture, expected))
                np.testing.assert_array_equal(one, other)


def test_the_matrix_sums_to_the_areas(scenes):
    metrics = evaluate(scenes, SLIDE, mesh(8), details=True)
    pairs = metrics["details"].pairs
    np.testing.assert_array_equal(pairs.sum(1), [row["labelled"] for row in metrics["classes"]])
    np.testing.assert_array_equal(pairs.sum(0), [row["predicted"] for row in metrics["classes"]])
    assert metrics["aAcc"] == round(100 * pairs.trace() / pairs.sum(), 2)


def test_no_image_is_among_the_worst_and_among_the_best(scenes):
    details = evaluate(scenes, SLIDE, mesh(1), details=True, extremes=99)["details"]
    names = [judged.picture.name for judged in (*details.worst, *reversed(details.best))]
    assert names == [f"scene {i}" for i in np.argsort(details.iou)]
    assert (len(details.worst), len(details.best)) == (5, 4)
    none = evaluate(scenes, SLIDE, mesh(1), details=True, extremes=0)["details"]
    assert none.worst == none.best == []


def test_an_image_without_labels_is_neither_good_nor_bad():
    few = toy_inference.Scenes([(45, 60), (30, 40), (45, 60)])
    few.examples[1]["semantic"][:] = IGNORE
    details = evaluate(few, SLIDE, mesh(1), details=True)["details"]
    np.testing.assert_array_equal(np.isnan(details.iou), [False, True, False])
    np.testing.assert_array_equal(np.isnan(details.accuracy), [False, True, False])
    shown = {judged.picture.name for judged in (*details.worst, *details.best)}
    assert details.seen == 2 and shown == {"scene 0", "scene 2"}


def test_pictures_that_are_no_longer_extreme_are_let_go(monkeypatch):
    """Each image is better than the one before, so each is the best for a moment."""
    settings = dataclasses.replace(SLIDE, batch=1)
    many = toy_inference.Scenes([(32, 32)] * 8)
    iou = evaluate(many, settings, mesh(1), details=True)["details"].iou
    many.examples = [many.examples[i] for i in np.argsort(iou)]
    made, held = [], []

    class Pixels(np.ndarray):
        """An array that a weak reference may point at."""

    plain = evaluation._picture

    def watched(*args):
        held.append(sum(ref() is not None for ref in made))
        picture = plain(*args)
        image = picture.image.copy().view(Pixels)
        made.append(weakref.ref(image))
        return picture._replace(image=image)

    monkeypatch.setattr(evaluation, "_picture", watched)
    details = evaluate(many, settings, mesh(1), details=True, extremes=1)["details"]
    assert [judged.picture.name for judged in details.best] == [many.examples[-1]["name"]]
    assert len(made) == 8 and max(held) <= 2


# Levels of a class tree


GROUPS = [0, 1, 1, 0, 1]
"""The group of each class."""


@pytest.fixture(scope="module")
def grouped():
    """Two scenes whose classes 0 and 3 are one group, the others another."""
    few = toy_inference.Scenes(SIZES[:2])
    parents = (*(toy_inference.CLASSES + group for group in GROUPS), -1, -1)
    few.label_space = dataclasses.replace(
        few.label_space, groups=("outer", "inner"), parents=parents
    )
    return few


@pytest.mark.parametrize("shape", [(1,), (8,)], ids=str)
def test_levels_are_what_replacing_the_labels_of_every_pixel_gives(grouped, shape):
    metrics = evaluate(grouped, SLIDE, mesh(*shape), pictures=9)
    areas = np.zeros((3, 2), np.int64)
    for picture in metrics["pictures"]:
        known = picture.truth != IGNORE
        found, truth = (np.array(GROUPS)[x[known]] for x in (picture.labels, picture.truth))
        for k in (0, 1):
            right = (found == k) & (truth == k)
            areas[:, k] += right.sum(), (found == k).sum(), (truth == k).sum()
    expected = confusion.summary(areas, ("outer", "inner"))
    assert metrics["levels"] == [{"level": 2, **expected}]
    assert metrics["mIoU^2"] == expected["mIoU"] != metrics["mIoU"]
    assert metrics["mIoU^1"] == metrics["mIoU"]


def test_a_tree_adds_figures_and_changes_none(grouped):
    flat = toy_inference.Scenes(SIZES[:2])
    with_tree, without = (evaluate(scenes, SLIDE, mesh(1)) for scenes in (grouped, flat))
    assert set(with_tree) - set(without) == {"mIoU^1", "mIoU^2", "levels"}
    assert {name: with_tree[name] for name in without} == without
    given = evaluate(flat, SLIDE, mesh(1), hierarchy=hierarchies.of(grouped.label_space))
    assert given == with_tree


def test_levels_and_details_share_a_matrix(grouped):
    metrics = evaluate(grouped, SLIDE, mesh(1), details=True)
    pairs, top = metrics["details"].pairs, np.array(GROUPS) == 0
    outer = metrics["levels"][0]["classes"][0]
    assert outer["labelled"] == pairs[top].sum() and outer["predicted"] == pairs[:, top].sum()
    assert outer["IoU"] == round(
        100 * pairs[top][:, top].sum() / (pairs[top].sum() + pairs[~top][:, top].sum()), 2
    )


def test_the_printed_figures_have_a_table_and_a_mean_per_level(grouped, capsys):
    metrics = evaluate(grouped, SLIDE, mesh(1))
    evaluation.print_table(metrics)
    out = capsys.readouterr().out
    assert "level 2" in out and "outer" in out and "class 4" in out
    assert f"mIoU {metrics['mIoU']:.2f}  mIoU^2 {metrics['mIoU^2']:.2f}  mAcc" in out


def test_a_tree_of_other_classes_is_named(grouped):
    with pytest.raises(SegjaxError, match="class tree shapescapes does not fit the label space"):
        evaluate(grouped, SLIDE, mesh(1), hierarchy=hierarchies.load("shapescapes"))


# Reports


def test_metrics_are_written_as_json_without_nan(tmp_path, sliding):
    metrics = {**sliding, "mIoU": float("nan"), "pictures": [object()], "details": object()}
    evaluation.write_metrics(metrics, tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["mIoU"] is None and not {"pictures", "details"} & set(written)
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
