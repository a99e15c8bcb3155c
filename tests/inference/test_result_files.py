"""Files of results: what is read back, by other tools too, is what was written."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.bench.plain_panoptic import plain_counts
from segjax.data.labels import LabelSpace, builtin
from segjax.errors import SegjaxError
from segjax.inference import result_files
from segjax.metrics import average_precision, panoptic
from segjax.structs import IGNORE, Instances, Panoptic

SPACE = LabelSpace(
    "toy", ("sky", "cat", "dog"), ((9, 9, 9),) * 3, (False, True, True), ids=(40, 7, 9)
)
SIZE = (12, 20)


def found_map(seed=0, rows=300):
    """A panoptic result whose ids need two colours, in a map larger than the image."""
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 2, 3, rows], (3, 5))
    small.reshape(-1)[:5] = 0, 1, 2, 3, rows
    ids = np.zeros((16, 24), np.int32)
    ids[: SIZE[0], : SIZE[1]] = small.repeat(4, 0).repeat(4, 1)
    classes = np.full(rows, -1, np.int32)
    classes[[0, 1, 2, rows - 1]] = rng.integers(0, 3, 4)
    return Panoptic(jnp.asarray(ids), jnp.asarray(classes), jnp.zeros(rows))


def found_instances(seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 16, 24), bool)
    for mask in masks[:3]:
        top, left = rng.integers(0, 6, 2)
        mask[top : top + 6, left : left + 9] = True
    queries, classes = np.array([2, 0, 1, 2, 3]), np.array([1, 2, 1, 2, 1])
    boxes = np.array([average_precision.box_of(mask) for mask in masks])
    return Instances(
        scores=np.array([0.9, 0.8, 0.7, 0.6, 0.0], np.float32),
        classes=np.where(np.arange(5) == 3, -1, classes),
        queries=queries,
        masks=np.packbits(masks, axis=-1),
        areas=masks.sum((1, 2))[queries],
        boxes=boxes[queries],
    ), masks[:, : SIZE[0], : SIZE[1]]


def written(folder, seeds=(0, 1)):
    found = {seed: found_map(seed) for seed in seeds}
    rows = [
        result_files.panoptic_image(folder / "maps", f"image_{key}", one, SPACE, key, SIZE)
        for key, one in found.items()
    ]
    result_files.panoptic_json(folder / "maps.json", rows, dict.fromkeys(found, SIZE), SPACE)
    return found


def test_panoptic_files_are_read_back(tmp_path):
    found = written(tmp_path)
    read = list(result_files.read_panoptic(tmp_path / "maps.json", SPACE))
    assert len(read) == 2
    for (row, ids), one in zip(read, found.values()):
        expected = np.asarray(one.segment_map)[: SIZE[0], : SIZE[1]]
        np.testing.assert_array_equal(ids, expected)
        for segment in row["segments_info"]:
            label = int(one.segment_class[segment["id"] - 1])
            assert segment["category_id"] == SPACE.ids[label]
            assert segment["isthing"] == SPACE.is_thing[label] and segment["iscrowd"] == 0
            mask = expected == segment["id"]
            x, y, width, height = segment["bbox"]
            assert segment["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps", "maps.json"]
    assert len(list((tmp_path / "maps").iterdir())) == 2, "no leftovers"
    content = json.loads((tmp_path / "maps.json").read_text())
    assert content["images"][1] == dict(id=1, file_name="image_1.png", height=12, width=20)
    assert content["categories"][1] == dict(id=7, name="cat", isthing=1, color=[9, 9, 9])


def test_an_id_is_the_colour_r_256_g_65536_b(tmp_path):
    written(tmp_path)
    colour = np.array(Image.open(tmp_path / "maps" / "image_0.png"))
    assert colour[0, 16].tolist() == [300 - 256, 1, 0]


def test_quality_from_the_files_is_that_of_the_arrays(tmp_path):
    """By the plain definition from files; by our counts from what was on the device."""
    counts, plain = panoptic.Counts.zeros(3), 0
    found = written(tmp_path)
    for row, ids in result_files.read_panoptic(tmp_path / "maps.json", SPACE):
        one = found[row["image_id"]]
        rng = np.random.default_rng(row["image_id"])
        truth = np.roll(np.asarray(one.segment_map)[: SIZE[0], : SIZE[1]], 1, axis=1)
        truth = np.searchsorted([0, 1, 2, 3, 300], truth).astype(np.int32) - 1
        classes = np.asarray(one.segment_class)[[0, 1, 2, 299]]
        classes[0] = rng.integers(3)
        crowd = [False, False, False, True]
        shape = np.zeros((16, 24), np.int32) - 1
        shape[: SIZE[0], : SIZE[1]] = truth
        shared = panoptic.intersections(jnp.asarray(shape), one.segment_map, 4, 300)
        counts += panoptic.from_image(shared, classes, crowd, one.segment_class, 3)
        true = [
            dict(id=k + 1, category_id=SPACE.ids[c], area=int((truth == k).sum()), iscrowd=crowd[k])
            for k, c in enumerate(classes)
        ]
        plain += plain_counts(truth + 1, true, ids, row["segments_info"], SPACE.ids)
    ours = np.stack([counts.iou, counts.matched, counts.false, counts.missed], axis=-1)
    np.testing.assert_allclose(ours, plain, rtol=1e-12)
    assert ours[:, 1].sum() > 2


def edit(path, change):
    content = json.loads(path.read_text())
    change(content["annotations"][0]["segments_info"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows.pop(1), r"image_0\.png: segment 2 is not in maps\.json"),
        (lambda rows: rows.append(dict(rows[0], id=77)), r"segment 77 of maps\.json has no pixel"),
        (lambda rows: rows.append(rows[0]), "two segments of image_0.png have the same id"),
        (lambda rows: rows[0].update(category_id=8), "category_id 8, which is none of toy"),
        (lambda rows: rows[0].pop("id"), "this is not a panoptic JSON"),
    ],
    ids=range(5),
)
def test_panoptic_files_that_do_not_fit_are_named(change, message, tmp_path):
    written(tmp_path)
    edit(tmp_path / "maps.json", change)
    with pytest.raises(SegjaxError, match=message):
        list(result_files.read_panoptic(tmp_path / "maps.json", SPACE))


def test_a_missing_map_or_json_is_named(tmp_path):
    written(tmp_path)
    (tmp_path / "maps" / "image_1.png").unlink()
    with pytest.raises(SegjaxError, match=r"image_1\.png: there is no such file"):
        list(result_files.read_panoptic(tmp_path / "maps.json", SPACE))
    with pytest.raises(SegjaxError, match=r"none\.json: it cannot be read"):
        list(result_files.read_panoptic(tmp_path / "none.json", SPACE))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    written(tmp_path)
    before = (tmp_path / "maps.json").read_bytes()

    def full(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SegjaxError, match="cannot be written"):
        result_files.write_json(tmp_path / "maps.json", [])
    assert (tmp_path / "maps.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_instances_are_written_as_coco_lists_them(tmp_path):
    pytest.importorskip("pycocotools")
    found, masks = found_instances()
    rows = result_files.instances(found, SPACE, 5, SIZE)
    assert [row["category_id"] for row in rows] == [7, 9, 7], "neither dropped nor empty ones"
    for row, query in zip(rows, (2, 0, 1)):
        np.testing.assert_array_equal(
            average_precision.decode(row["segmentation"], SIZE), masks[query]
        )
    result_files.write_json(tmp_path / "results.json", rows)
    assert json.loads((tmp_path / "results.json").read_text()) == rows


def test_average_precision_from_the_json_is_that_of_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    rows, annotations = [], []
    for key in (1, 2, 3):
        found, masks = found_instances(key)
        rows += result_files.instances(found, SPACE, key, SIZE)
        layers = np.where(np.roll(masks[:3], 1, axis=2), np.arange(3)[:, None, None], -1)
        annotations += average_precision.annotations(key, layers, [2, 1, 1], [False] * 3, SPACE)
    truth = average_precision.ground_truth(dict.fromkeys((1, 2, 3), SIZE), annotations, SPACE)
    for name, content in (("truth", {**truth, "info": {}}), ("results", rows)):
        result_files.write_json(tmp_path / f"{name}.json", content)
    ours = average_precision.evaluate(truth, rows)
    known = coco.COCO(str(tmp_path / "truth.json"))
    theirs = evaluation.COCOeval(known, known.loadRes(str(tmp_path / "results.json")), "segm")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    assert ours["AP"] == pytest.approx(100 * theirs.stats[0])
    assert 10 < ours["AP"] < 100


def test_cityscapes_instances_are_lines_that_name_masks(tmp_path):
    space, (found, masks) = builtin("cityscapes"), found_instances()
    found = found.replace(classes=np.where(found.classes < 0, -1, found.classes + 11))
    result_files.cityscapes_instances(tmp_path, "ulm_000000_000019", found, space, SIZE)
    lines = (tmp_path / "ulm_000000_000019_pred.txt").read_text().splitlines()
    assert len(lines) == 3
    for line, query, name, score in zip(lines, (2, 0, 1), ("rider", "car", "rider"), (9, 8, 7)):
        file, label, confidence = line.split(" ")
        assert int(label) == space.ids[space.names.index(name)]
        assert float(confidence) == pytest.approx(score / 10)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / file)) != 0, masks[query])


def test_semantic_maps_hold_the_ids_of_the_dataset(tmp_path):
    labels = np.array([[0, 1, 18, IGNORE]])
    for name, expected in (("cityscapes", [7, 8, 33, 0]), ("ade20k", [1, 2, 19, 0])):
        result_files.semantic(tmp_path / "a.png", labels, builtin(name))
        assert np.array(Image.open(tmp_path / "a.png"))[0].tolist() == expected
    own = LabelSpace("own", ("a", "b"), ((0, 0, 0),) * 2, (False, False))
    result_files.semantic(tmp_path / "b.png", np.array([[1, 0, IGNORE]]), own)
    assert np.array(Image.open(tmp_path / "b.png"))[0].tolist() == [1, 0, 255]
