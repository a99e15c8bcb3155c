"""segjax refine, and segjax predict --refine, from a workdir to files."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import segjax
from segjax import cli
from segjax import config as configs
from segjax.data import images
from segjax.inference import result_files
from segjax.inference.refiner import Refiner
from segjax.training import checkpoints
from tests.inference import test_commands, toy_refiner
from tests.inference.test_commands import files
from tests.inference.toy_refiner import SEEN, VARIABLES, blocky, disc, scene

toy_system = toy_refiner.toy_system
workdir, mask_workdir = test_commands.workdir, test_commands.mask_workdir


@pytest.fixture(scope="module")
def refiner_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("refiner") / "w"


@pytest.fixture
def refiner_workdir(toy_system, refiner_folder):
    """A workdir of the toy, without a label space."""
    if not refiner_folder.exists():
        partial = ConfigDict()
        partial.model = dict(system="toy_refiner", relative=True)
        checkpoints.save_variables(refiner_folder, VARIABLES, step=9)
        configs.save(configs.load(partial), refiner_folder / "config.json")
    return refiner_folder


@pytest.fixture
def pair(tmp_path):
    """An image of an odd size with a blocky mask of one object."""
    truth = disc((61, 83))
    Image.fromarray(scene(truth)).save(tmp_path / "big.png")
    Image.fromarray(blocky(truth).astype(np.uint8) * 255).save(tmp_path / "coarse.png")
    return truth, tmp_path


def command(workdir, folder, *more, image="big.png", mask="coarse.png", out="out/fine.png"):
    return cli.main(
        [
            "refine",
            f"--workdir={workdir}",
            f"--image={folder / image}",
            f"--mask={folder / mask}",
            f"--out={folder / out}",
            *more,
        ]
    )


def test_a_mask_becomes_a_sharp_one(refiner_workdir, pair, capsys):
    truth, folder = pair
    assert command(refiner_workdir, folder, "--max-memory=2GiB") == 0
    fine = Image.open(folder / "out" / "fine.png")
    assert fine.mode == "L"
    np.testing.assert_array_equal(np.array(fine) > 128, truth)
    model = segjax.load(str(refiner_workdir))
    assert isinstance(model, Refiner) and model.step == 9
    result = model(folder / "big.png", folder / "coarse.png")
    np.testing.assert_array_equal(np.array(fine), result.mask)
    assert SEEN[0] == ((61, 83), 2**31)
    assert "1 mask refined (step 9)" in capsys.readouterr().out
    assert files(folder / "out") == ["fine.png"]


def test_a_close_up_is_drawn_on_request(refiner_workdir, pair):
    _, folder = pair
    assert command(refiner_workdir, folder, "--draw", "--in-box", out="out") == 0
    assert files(folder / "out") == ["coarse.png", "coarse_closeup.png"]
    assert Image.open(folder / "out" / "coarse_closeup.png").width > 900


def test_an_out_that_is_no_png_is_refused_before_anything_is_done(refiner_workdir, pair, capsys):
    _, folder = pair
    assert command(refiner_workdir, folder, out="fine.jpg") == 1
    assert "name it .png" in capsys.readouterr().err
    assert not SEEN and not (folder / "fine.jpg").exists()


def labelled(folder, dtype=np.uint8):
    """A palette PNG with the classes 0, 3 and 9, and its image."""
    truth = np.zeros((61, 83), dtype)
    truth[disc(truth.shape, (30, 25), 15)], truth[disc(truth.shape, (30, 60), 15)] = 3, 9
    grey = np.select([truth == 3, truth == 9], [125, 220], 30).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(folder / "big.png")
    return truth, blocky(truth)


def test_a_label_map_keeps_its_palette_and_its_classes(refiner_workdir, tmp_path):
    truth, coarse = labelled(tmp_path)
    picture = Image.fromarray(coarse)
    picture.putpalette(list(range(60)))
    picture.save(tmp_path / "coarse.png")
    assert command(refiner_workdir, tmp_path, "--draw") == 0
    fine = Image.open(tmp_path / "out" / "fine.png")
    assert fine.mode == "P" and fine.getpalette()[:60] == list(range(60))
    labels = np.array(fine)
    assert set(np.unique(labels)) == {0, 3, 9}
    assert (labels == truth).mean() > (coarse == truth).mean()
    assert files(tmp_path / "out") == ["fine.png", "fine_closeup.png"]


def panoptic(folder, name, coarse, ids, image_id=1):
    """Writes a panoptic PNG of the ids instead of 0, 3, 9; returns its row."""
    values = np.select([coarse == 3, coarse == 9], ids, 0)
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(images.encode_png(result_files.colours_of(values)))
    segments = [
        {"id": i, "category_id": 4, "iscrowd": c, "area": 0, "bbox": [0, 0, 1, 1], "isthing": 1}
        for i, c in zip(ids, (0, 1))
    ]
    return {"image_id": image_id, "file_name": name.split("/")[-1], "segments_info": segments}


def ids_of(path):
    return result_files.ids_of(np.array(Image.open(path)))


def test_a_panoptic_png_keeps_ids_and_its_json_follows(refiner_workdir, tmp_path):
    truth, coarse = labelled(tmp_path)
    row = panoptic(tmp_path, "coarse.png", coarse, (70000, 11))
    content = {"annotations": [row], "images": [{"id": 1}, {"id": 2}], "categories": [{"id": 4}]}
    (tmp_path / "coarse.json").write_text(json.dumps(content))
    assert command(refiner_workdir, tmp_path, "--in-box") == 0
    ids = ids_of(tmp_path / "out" / "fine.png")
    told = json.loads((tmp_path / "out" / "fine.json").read_text())
    assert told["categories"] == [{"id": 4}] and told["images"] == [{"id": 1}]
    (row,) = told["annotations"]
    assert row["file_name"] == "fine.png" and row["image_id"] == 1
    assert set(np.unique(ids)) == {0, 11, 70000}
    for segment, crowd in zip(row["segments_info"], (0, 1), strict=True):
        assert segment["iscrowd"] == crowd and segment["category_id"] == 4
        assert segment["area"] == (ids == segment["id"]).sum() > 500
    assert ((ids == 70000) == (truth == 3)).mean() > 0.99


def test_a_panoptic_png_needs_no_json(refiner_workdir, tmp_path):
    _, coarse = labelled(tmp_path)
    panoptic(tmp_path, "coarse.png", coarse, (70000, 11))
    assert command(refiner_workdir, tmp_path) == 0
    assert files(tmp_path / "out") == ["fine.png"]


def test_a_segment_that_the_json_lacks_is_named_before_anything_is_done(
    refiner_workdir, tmp_path, capsys
):
    _, coarse = labelled(tmp_path)
    row = panoptic(tmp_path, "coarse.png", coarse, (70000, 11))
    row["segments_info"].pop()
    (tmp_path / "coarse.json").write_text(json.dumps({"annotations": [row]}))
    assert command(refiner_workdir, tmp_path) == 1
    assert "coarse.png: segment 11 is not in coarse.json" in capsys.readouterr().err
    assert not SEEN and not (tmp_path / "out").exists()


def test_folders_are_matched_by_name(refiner_workdir, tmp_path, capsys):
    truth = disc((40, 50))
    for name in ("a", "sub/b", "unmasked"):
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(scene(truth)).save(path, quality=95)
    for name in ("a", "sub/b"):
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(blocky(truth)).save(path)
    assert command(refiner_workdir, tmp_path, image="images", mask="masks", out="out") == 0
    assert files(tmp_path / "out") == ["a.png", "sub/b.png"]
    assert "2 of 2 masks refined" in capsys.readouterr().out
    (tmp_path / "masks" / "a.png").write_bytes(b"no picture")
    assert command(refiner_workdir, tmp_path, image="images", mask="masks", out="again") == 1
    printed = capsys.readouterr()
    assert "a.png: this is not an image" in printed.err and "1 of 2 masks" in printed.out
    assert files(tmp_path / "again") == ["sub/b.png"]


def test_a_panoptic_folder_has_its_json_beside_it(refiner_workdir, tmp_path):
    _, coarse = labelled(tmp_path)
    (tmp_path / "images").mkdir()
    rows = []
    for number, name in enumerate(("a", "b")):
        (tmp_path / "images" / f"{name}.png").write_bytes((tmp_path / "big.png").read_bytes())
        rows.append(panoptic(tmp_path, f"masks/{name}.png", coarse, (7, 8 + number), number))
    (tmp_path / "masks.json").write_text(json.dumps({"annotations": rows, "info": "x"}))
    assert command(refiner_workdir, tmp_path, image="images", mask="masks", out="out") == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["info"] == "x" and [row["file_name"] for row in told["annotations"]] == [
        "a.png",
        "b.png",
    ]
    for row in told["annotations"]:
        ids = ids_of(tmp_path / "out" / row["file_name"])
        assert {s["id"]: s["area"] for s in row["segments_info"]} == {
            i: (ids == i).sum() for i in set(np.unique(ids)) - {0}
        }


def test_big_is_matched_in_its_own_layout(refiner_workdir, tmp_path):
    truth = disc((40, 50))
    (tmp_path / "big").mkdir()
    Image.fromarray(scene(truth)).save(tmp_path / "big" / "p1_1_im.jpg")
    for kind in ("gt", "seg"):
        Image.fromarray(blocky(truth)).save(tmp_path / "big" / f"p1_1_{kind}.png")
    assert command(refiner_workdir, tmp_path, image="big", mask="big", out="out") == 0
    assert files(tmp_path / "out") == ["p1_1_seg.png"]


def test_photographs_and_masks_may_share_a_folder(refiner_workdir, tmp_path):
    truth = disc((40, 50))
    (tmp_path / "both").mkdir()
    Image.fromarray(scene(truth)).save(tmp_path / "both" / "a.jpg")
    Image.fromarray(blocky(truth)).save(tmp_path / "both" / "a.png")
    assert command(refiner_workdir, tmp_path, image="both", mask="both", out="both/out") == 0
    assert files(tmp_path / "both" / "out") == ["a.png"]


def wrong_size(folder):
    Image.fromarray(disc((61, 84))).save(folder / "coarse.png")


def corrupt(folder):
    whole = (folder / "coarse.png").read_bytes()
    (folder / "coarse.png").write_bytes(whole[: len(whole) // 2])


def soft(folder):
    Image.fromarray((disc((61, 83)) * 77).astype(np.uint8)).save(folder / "coarse.png")


def gone(folder):
    (folder / "big.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "more", "sentence"),
    [
        (wrong_size, [], "image is 83 x 61 pixels, but the mask is 84 x 61"),
        (corrupt, [], "coarse.png: the image is truncated"),
        (soft, [], "say which with --kind=binary or --kind=labels"),
        (soft, ["--kind=binary"], "neither 0 and 1 nor grey levels"),
        (gone, [], "big.png: there is no such file"),
        (None, ["--max-memory=much"], "'much' is not an amount of memory"),
        (None, ["--kind=panoptic"], "take --kind=labels"),
        (None, ["--json=none.json"], "none.json: it cannot be read"),
        (None, ["--fast"], "--fast is not an option of segjax refine"),
    ],
    ids=["sizes", "corrupt", "soft", "dark", "gone", "memory", "kind", "json", "option"],
)
def test_a_fault_is_one_sentence_and_leaves_nothing_behind(
    refiner_workdir, pair, capsys, spoil, more, sentence
):
    _, folder = pair
    if spoil is not None:
        spoil(folder)
    before = files(folder)
    assert command(refiner_workdir, folder, *more) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1
    assert files(folder) == before and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (dict(image="big.png", mask="."), "give two files or two folders"),
        (dict(image=".", mask="nothing", out="out"), "there are no masks in this folder"),
        (dict(image="nothing", mask=".", out="out"), "has no image of the same name, coarse.jpg"),
        (dict(image=".", mask=".", out="fine.png"), "names a file for a folder of images"),
    ],
    ids=["file and folder", "no masks", "no image", "one file"],
)
def test_what_does_not_match_is_one_sentence(refiner_workdir, pair, capsys, argv, sentence):
    _, folder = pair
    (folder / "nothing").mkdir()
    (folder / "big.png").rename(folder / "big.jpg")
    if argv["image"] == "big.png":
        argv = argv | dict(image="big.jpg")
    assert command(refiner_workdir, folder, **argv) == 1
    assert sentence in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# After another system


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(scene(disc((70, 98)))).save(path)
    return path


def test_predict_refines_class_maps(workdir, refiner_workdir, photo, tmp_path, capsys):
    argv = ["predict", f"--workdir={workdir}", f"--image={photo}"]
    assert cli.main([*argv, f"--out={tmp_path / 'plain.png'}"]) == 0
    refined = [*argv, f"--refine={refiner_workdir}", "--max-memory=1GiB"]
    assert cli.main([*refined, f"--out={tmp_path / 'fine.png'}"]) == 0
    plain, fine = (
        np.array(Image.open(tmp_path / f"{name}_labels.png")) for name in ("plain", "fine")
    )
    expected = segjax.load(refiner_workdir).labels(photo, plain)
    np.testing.assert_array_equal(fine, expected)
    assert SEEN[0] == ((70, 98), 2**30)
    assert cli.main([*refined, f"--out={tmp_path / 'fine.png'}", "--scores"]) == 1
    assert "leave out --scores or --refine" in capsys.readouterr().err


def test_predict_refines_every_result_of_a_mask_system(
    mask_workdir, refiner_workdir, photo, tmp_path
):
    argv = ["predict", f"--workdir={mask_workdir}", f"--image={photo}", "--in-box"]
    argv += [f"--refine={refiner_workdir}", f"--out={tmp_path / 'fine.png'}"]
    assert cli.main(argv) == 0
    model, refiner = segjax.load(str(mask_workdir)), segjax.load(str(refiner_workdir))
    coarse = model(photo)
    labels = np.array(Image.open(tmp_path / "fine_labels.png"))
    np.testing.assert_array_equal(labels, refiner.labels(photo, coarse.labels, in_box=True))

    ids = ids_of(tmp_path / "fine_panoptic.png")
    (row,) = json.loads((tmp_path / "fine_panoptic.json").read_text())["annotations"]
    told = {segment["id"]: segment for segment in row["segments_info"]}
    assert set(told) == set(np.unique(ids).tolist()) - {0}
    assert all(segment["area"] == (ids == i).sum() for i, segment in told.items())
    sharp = refiner.labels(photo, coarse.segment_map, in_box=True)
    classes = {row["id"]: row["class"] for row in coarse.segments}
    np.testing.assert_array_equal(ids > 0, sharp > 0)
    for i, segment in told.items():
        (old,) = np.unique(sharp[ids == i])
        assert segment["category_id"] == classes[old]

    rows = json.loads((tmp_path / "fine_instances.json").read_text())
    plain = coarse.instances()
    assert 0 < len(rows) <= len(plain)
    assert {row["score"] for row in rows} <= {row["score"] for row in plain}


def test_segments_are_numbered_without_gaps_after_one_is_lost(refiner_workdir):
    from segjax.inference.mask_predictor import MaskResult
    from segjax.inference.mask_runner import Results
    from segjax.structs import Panoptic
    from tests.inference.toy_inference import label_space

    truth = np.where(disc((60, 80)), 3, 1)
    coarse = blocky(truth)
    coarse[0, 0] = 2  # one pixel, which its neighbours take
    found = Panoptic(coarse, np.array([4, 2, 1, -1]), np.array([0.9, 0.8, 0.7, 0.0], np.float32))
    image = scene(truth == 3)
    result = MaskResult(image, label_space(), Results(None, found, None))
    sharp = segjax.load(str(refiner_workdir)).sharpened(result)
    assert [(s["id"], s["class"]) for s in sharp.segments] == [(1, 4), (2, 1)]
    assert [round(s["score"], 1) for s in sharp.segments] == [0.9, 0.7]
    np.testing.assert_array_equal(sharp.segment_map == 2, truth == 3)
    assert sharp.draw().size >= (80, 60)


def test_a_system_in_the_wrong_place_is_named(workdir, refiner_workdir, photo, tmp_path, capsys):
    out = f"--out={tmp_path / 'out.png'}"
    wrong = [f"--workdir={workdir}", f"--image={photo}", f"--refine={workdir}", out]
    assert cli.main(["predict", *wrong]) == 1
    assert "labels images and refines no masks" in capsys.readouterr().err
    assert cli.main(["predict", f"--workdir={refiner_workdir}", f"--image={photo}", out]) == 1
    assert "its system refines masks; use segjax refine" in capsys.readouterr().err
    assert cli.main(["predict", f"--workdir={workdir}", f"--image={photo}", out, "--in-box"]) == 1
    assert "are for --refine=W2" in capsys.readouterr().err
