"""Average precision against pycocotools and by hand."""

import json
import sys

import numpy as np
import pytest

from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.metrics import average_precision as ap

mask_tools = pytest.importorskip("pycocotools.mask")

SPACE = LabelSpace(
    "toy", ("sky", "cat", "dog"), ((0, 0, 0),) * 3, (False, True, True), ids=(40, 7, 9)
)
SIZE = (40, 50)


def block(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def truth():
    """Image 5 with two cats and a dog, image 6 with a crowd of dogs; sky behind them."""
    first = np.full(SIZE, 0)
    for k, mask in enumerate((block(0, 0, 10, 10), block(20, 0, 10, 10), block(0, 25, 20, 20)), 1):
        first[mask] = k
    second = np.where(block(5, 5, 20, 20), 0, -1)
    rows = ap.annotations(5, first, [0, 1, 1, 2], [False] * 4, SPACE)
    rows += ap.annotations(6, second, [2, -1], [True, False], SPACE)
    return ap.ground_truth({5: SIZE, 6: SIZE}, rows, SPACE)


def result(mask, image_id=5, category_id=7, score=0.5):
    rle = ap.encode(mask)
    return dict(image_id=image_id, category_id=category_id, segmentation=rle, score=score)


def test_run_lengths_are_coco_s_and_hold_the_mask():
    mask = np.random.default_rng(0).random((13, 21)) < 0.4
    rle = ap.encode(mask)
    assert rle["size"] == [13, 21] and isinstance(rle["counts"], str)
    assert mask_tools.area(rle) == mask.sum()
    np.testing.assert_array_equal(ap.decode(rle), mask)
    plain = dict(size=[2, 2], counts=[1, 2, 1])
    np.testing.assert_array_equal(ap.decode(plain), [[False, True], [True, False]])
    np.testing.assert_array_equal(ap.unpack(np.packbits(mask, axis=-1), 21), mask)


def test_annotations_hold_things_alone_with_area_and_box():
    rows = truth()["annotations"]
    assert [row["category_id"] for row in rows] == [7, 7, 9, 9]
    assert [row["id"] for row in rows] == [1, 2, 3, 4]
    assert [row["iscrowd"] for row in rows] == [0, 0, 0, 1]
    assert rows[1]["area"] == 100 and rows[1]["bbox"] == [0, 20, 10, 10]
    assert [row["id"] for row in truth()["categories"]] == [7, 9]


def test_instances_in_layers_may_overlap_and_files_may_state_their_areas():
    layers = np.stack([np.where(block(0, 0, 9, 9), 0, -1), np.where(block(3, 3, 9, 9), 1, -1)])
    rows = ap.annotations(1, layers, [1, 2], [False, False], SPACE, segment_area=[80.5, 81])
    assert [ap.decode(row["segmentation"]).sum() for row in rows] == [81, 81]
    assert [row["area"] for row in rows] == [80.5, 81.0]


def test_perfect_results_have_100_percent_and_none_have_0():
    content = truth()
    results = [
        result(ap.decode(row["segmentation"]), row["image_id"], row["category_id"])
        for row in content["annotations"]
    ]
    found = ap.evaluate(content, results)
    assert found["AP"] == found["AP50"] == found["APs"] == pytest.approx(100)
    assert np.isnan(found["APl"])
    assert [row["name"] for row in found["classes"]] == ["cat", "dog"]
    nothing = ap.evaluate(content, [])
    assert nothing["AP"] == 0.0 and nothing["classes"][0]["AP"] == 0.0


def test_a_mask_with_an_iou_of_0_8_counts_up_to_that_threshold():
    """One of two cats is found, at 7 of 10 thresholds; of 101 recalls 51 are reached."""
    found = ap.evaluate(truth(), [result(block(0, 0, 10, 8))])
    assert found["classes"][0]["AP"] == pytest.approx(100 * 0.7 * 51 / 101)
    assert found["classes"][1]["AP"] == 0.0


def test_results_are_evaluated_as_pycocotools_does_from_files(tmp_path, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    results = [
        result(
            block(*rng.integers(0, 22, 2), *rng.integers(8, 22, 2)),
            int(rng.choice([5, 6])),
            int(rng.choice([7, 9])),
            float(rng.random()),
        )
        for _ in range(20)
    ] + [result(block(1, 0, 10, 10), score=0.9), result(block(0, 24, 20, 20), 5, 9, 0.95)]
    files = {"truth.json": {**truth(), "info": {}}, "results.json": results}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours = ap.evaluate(tmp_path / "truth.json", str(tmp_path / "results.json"))
    assert not capsys.readouterr().out
    known = COCO(str(tmp_path / "truth.json"))
    theirs = COCOeval(known, known.loadRes(str(tmp_path / "results.json")), "segm")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    expected = np.where(theirs.stats[:6] < 0, np.nan, 100 * theirs.stats[:6])
    np.testing.assert_allclose([ours[name] for name in ap.STATISTICS], expected)
    assert 5 < ours["AP"] < 95


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image_id=8), "results: result 1: image_id 8 is not in the ground truth"),
        (dict(category_id=40), "result 1: category_id 40"),
        (dict(segmentation=ap.encode(np.ones((4, 6), bool))), "result 1: its mask is 6 x 4 pixels"),
        (dict(score=None), "result 1: it lacks"),
    ],
    ids=str,
)
def test_results_that_do_not_fit_are_named(change, message):
    good = result(block(0, 0, 3, 3))
    with pytest.raises(SegjaxError, match=message):
        ap.evaluate(truth(), [good, {**good, **change}])


def test_files_that_are_broken_are_named(tmp_path):
    with pytest.raises(SegjaxError, match=r"gone\.json: it cannot be read"):
        ap.evaluate(tmp_path / "gone.json", [])
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(SegjaxError, match=r"half\.json: this is not JSON"):
        ap.evaluate(tmp_path / "half.json", [])
    with pytest.raises(
        SegjaxError, match="annotation 3: its mask is 50 x 40 pixels, the image 9 x"
    ):
        ap.decode(ap.encode(block(0, 0, 3, 3)), (9, 9), "instances.json: annotation 3")
    content = truth()
    content["images"][0]["height"] = 41
    with pytest.raises(SegjaxError, match="annotation 1: its mask is 50 x 40 pixels"):
        ap.evaluate(content, [])


def test_without_pycocotools_its_installation_is_advised(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(SegjaxError, match=r"pip install 'segjax\[coco\]'"):
        ap.encode(np.ones((2, 2), bool))
