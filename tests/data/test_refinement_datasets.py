"""Datasets for refinement in their official layouts, in small; and the generated one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.cli import data as command
from segjax.cli import run
from segjax.data import check, datasets, prepared
from segjax.data.datasets import shapescapes, shapescapes_masks
from segjax.errors import SegjaxError
from segjax.metrics import boundary

REAL = Path(__file__).parents[3] / "shared" / "realdata" / "refinement"


def photo(seed, height=12, width=18):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def grey(height=12, width=18, value=255):
    mask = np.zeros((height, width), np.uint8)
    mask[3:9, 4:12] = value
    mask[3, 4] = 77  # masks are not binarised
    return mask


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_triple(folder, name, image="", seed=0):
    write(folder / f"{image or name}_im.jpg", photo(seed))
    write(folder / f"{name}_gt.png", grey())
    write(folder / f"{name}_seg.png", np.roll(grey(), 2, axis=1))


@pytest.fixture
def manual(tmp_path):
    return tmp_path / "downloads/manual"


def load(tmp_path, name, split="validation", **options):
    return datasets.load({"name": name, **options}, split, str(tmp_path))


# Test sets --------------------------------------------------------------------------------------


def test_big_has_images_masks_and_coarse_masks(manual, tmp_path):
    for folder, names in (("val", "b"), ("test", "dc")):
        for name in names:
            write_triple(manual / "big" / folder, name)
    found = load(tmp_path, "big")
    assert len(found) == 1
    example = found[0]
    assert example["name"] == "validation/b"
    assert example["image"].shape == (12, 18, 3)
    np.testing.assert_array_equal(example["mask"], grey())
    np.testing.assert_array_equal(example["coarse_mask"], np.roll(grey(), 2, axis=1))
    assert example["mask"].dtype == example["coarse_mask"].dtype == np.uint8
    assert example["semantic"].dtype == np.int16
    np.testing.assert_array_equal(example["semantic"], grey() > 128)
    test = load(tmp_path, "big", "test")
    assert [test[i]["name"] for i in range(2)] == ["test/c", "test/d"]
    assert found.label_space.names == ("background", "object")


def test_coarse_masks_of_another_network_are_chosen(manual, tmp_path):
    write_triple(manual / "big/val", "a")
    write(manual / "big/pspnet/a_seg.png", np.zeros((12, 18), np.uint8))
    found = load(tmp_path, "big", coarse="pspnet")
    assert not found[0]["coarse_mask"].any()
    assert load(tmp_path, "big")[0]["coarse_mask"].any()
    with pytest.raises(SegjaxError, match=r"dataset\.coarse: there is no folder .*fcn"):
        load(tmp_path, "big", coarse="fcn")
    (manual / "big/pspnet/a_seg.png").rename(manual / "big/pspnet/b_seg.png")
    with pytest.raises(SegjaxError, match=r"a_im\.jpg: its coarse mask is missing; .*pspnet/a_seg"):
        load(tmp_path, "big", coarse="pspnet")


def test_relabelled_pascal_lies_flat(manual, tmp_path):
    write_triple(manual / "pascal_relabelled", "2007_000129")
    assert load(tmp_path, "pascal_relabelled")[0]["name"] == "validation/2007_000129"


@pytest.mark.parametrize("folder", ["", "split_ss"])
def test_parts_of_ade20k_share_an_image(manual, tmp_path, folder):
    for part in ("12.3", "1.1"):
        write_triple(
            manual / "ade20k_refinement" / folder,
            f"ADE_val_00000001_{part}",
            image="ADE_val_00000001",
        )
    found = load(tmp_path, "ade20k_refinement")
    names = [found[i]["name"] for i in range(2)]
    assert names == ["validation/ADE_val_00000001_1.1", "validation/ADE_val_00000001_12.3"]
    np.testing.assert_array_equal(found[0]["image"], found[1]["image"])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("a_im.jpg", r"a_gt\.png: its image is missing; it should be .*a_im\.jpg"),
        ("a_gt.png", r"a_im\.jpg: its exact mask is missing \(1 images have none\).*a_gt\.png"),
        ("a_seg.png", r"a_im\.jpg: its coarse mask is missing; it should be .*a_seg\.png"),
    ],
)
def test_what_is_missing_of_a_triple_is_named(manual, tmp_path, file, message):
    for name in "ab":
        write_triple(manual / "big/val", name)
    (manual / "big/val" / file).unlink()
    with pytest.raises(SegjaxError, match=message):
        load(tmp_path, "big")


def test_an_image_of_another_format_is_found(manual, tmp_path):
    write_triple(manual / "big/val", "a")
    (manual / "big/val/a_im.jpg").unlink()
    write(manual / "big/val/a_im.png", photo(0))
    np.testing.assert_array_equal(load(tmp_path, "big")[0]["image"], photo(0))


@pytest.mark.parametrize(
    ("name", "split", "line"),
    [
        ("big", "test", "test/X_gt.png"),
        ("pascal_relabelled", "validation", "X_seg.png"),
        ("ade20k_refinement", "validation", "split_ss/ADE_val_00000001_1.1_seg.png"),
        ("refinement_training", "train", "fss/CLASS/X.jpg"),
    ],
)
def test_missing_data_is_told_with_layout_and_place(tmp_path, name, split, line):
    with pytest.raises(SegjaxError) as caught:
        load(tmp_path, name, split)
    message = str(caught.value)
    assert line in message and "http" in message and "manual_dir" in message
    assert f"{tmp_path}/downloads/manual/{name}" in message


@pytest.mark.parametrize("name", ["big", "pascal_relabelled", "ade20k_refinement"])
def test_test_sets_have_no_training_images(tmp_path, name):
    with pytest.raises(SegjaxError, match=rf"{name} has the splits .*not 'train'"):
        load(tmp_path, name, "train")


# Masks ------------------------------------------------------------------------------------------


def test_masks_of_0_and_1_are_an_error_with_the_remedy(manual, tmp_path):
    for file in ("a_gt.png", "a_seg.png"):
        write_triple(manual / "big/val", "a")
        write(manual / "big/val" / file, (grey() > 128).astype(np.uint8))
        with pytest.raises(SegjaxError, match=rf"{file}: its values are 0 and 1.*by 255"):
            load(tmp_path, "big")


def test_an_exact_mask_that_is_nowhere_object_is_an_error(manual, tmp_path):
    """Such as a palette picture whose second colour is dark."""
    write_triple(manual / "big/val", "a")
    picture = Image.fromarray((grey() > 128).astype(np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(manual / "big/val/a_gt.png")
    with pytest.raises(SegjaxError, match=r"a_gt\.png: its greatest grey value is 38.*as 255"):
        load(tmp_path, "big")


def test_a_faint_coarse_mask_and_an_empty_exact_one_may_be(manual, tmp_path):
    write_triple(manual / "big/val", "a")
    write(manual / "big/val/a_gt.png", np.zeros((12, 18), np.uint8))
    write(manual / "big/val/a_seg.png", grey(value=90))
    example = load(tmp_path, "big")[0]
    assert example["coarse_mask"].max() == 90 and not example["mask"].any()


@pytest.mark.parametrize("form", ["RGB", "RGBA", "1", "I;16", "P"])
def test_every_form_of_png_is_read_as_grey(manual, tmp_path, form):
    mask = np.where(grey() > 128, np.uint8(255), np.uint8(0))
    write_triple(manual / "big/val", "a")
    if form == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(mask).convert(form)
    picture.save(manual / "big/val/a_gt.png")
    np.testing.assert_array_equal(load(tmp_path, "big")[0]["mask"], mask)


def test_sizes_that_differ_are_named(manual, tmp_path):
    for file in ("a_gt.png", "a_seg.png"):
        write_triple(manual / "big/val", "a")
        write(manual / "big/val" / file, grey(13, 18))
        with pytest.raises(SegjaxError, match=rf"{file}: .*18 x 13 pixels, .*a_im\.jpg is 18 x 12"):
            load(tmp_path, "big")


def test_a_broken_mask_is_named(manual, tmp_path):
    write_triple(manual / "big/val", "a")
    (manual / "big/val/a_gt.png").write_bytes(b"nothing")
    with pytest.raises(SegjaxError, match=r"a_gt\.png"):
        load(tmp_path, "big")


# Training ---------------------------------------------------------------------------------------

PARTS = ("DUTS-TR", "DUTS-TE", "ecssd", "MSRA_10K")


@pytest.fixture
def training(manual):
    root = manual / "refinement_training"
    for part in PARTS:
        for name in "ab":
            write(root / part / f"{name}.jpg", photo(0))
            write(root / part / f"{name}.png", grey())
    for name in ("acorn", "bell"):
        for number in "12":
            write(root / "fss" / name / f"{number}.jpg", photo(1))
            write(root / "fss" / name / f"{number}.png", grey())
    return root


def names_of(dataset):
    return [dataset[i]["name"] for i in range(len(dataset))]


def test_the_training_set_is_all_its_parts(training, tmp_path):
    found = load(tmp_path, "refinement_training", "train")
    flat = [f"{part}/{name}" for part in PARTS for name in "ab"]
    fss = [f"fss/{name}/{number}" for name in ("acorn", "bell") for number in "12"]
    assert names_of(found) == fss + flat
    assert found[0].keys() == {"image", "mask", "semantic", "name"}


def test_parts_are_chosen_and_missing_ones_named(training, tmp_path):
    assert len(load(tmp_path, "refinement_training", "train", parts=("ecssd",))) == 2
    (training / "DUTS-TR").rename(training / "elsewhere")
    with pytest.raises(SegjaxError, match=r"DUTS-TR is missing.*parts=.*'fss', 'DUTS-TE'"):
        load(tmp_path, "refinement_training", "train")
    with pytest.raises(SegjaxError, match="MSRA is no part"):
        load(tmp_path, "refinement_training", "train", parts=("MSRA",))


def test_a_class_with_an_image_without_mask_is_left_out_whole(training, tmp_path, capsys):
    (training / "fss/acorn/2.png").unlink()
    found = load(tmp_path, "refinement_training", "train", parts=("fss",))
    assert names_of(found) == ["fss/bell/1", "fss/bell/2"]
    said = capsys.readouterr().err
    assert "fss/acorn: the class is left out, all 2 images" in said and "2.jpg has no mask" in said


def test_images_of_other_parts_without_mask_are_an_error(training, tmp_path):
    for name in "ab":
        (training / "ecssd" / f"{name}.png").unlink()
    with pytest.raises(SegjaxError, match=r"ecssd/a\.jpg: its mask is missing \(2 images"):
        load(tmp_path, "refinement_training", "train")


def test_archives_with_folders_of_their_own_are_read_too(training, tmp_path):
    """DUTS unpacks to DUTS-TE-Image and DUTS-TE-Mask."""
    part = training / "DUTS-TE"
    for suffix, folder in ((".jpg", "DUTS-TE-Image"), (".png", "DUTS-TE-Mask")):
        (part / folder).mkdir()
        for name in "ab":
            (part / f"{name}{suffix}").rename(part / folder / f"{name}{suffix}")
    found = load(tmp_path, "refinement_training", "train", parts=("DUTS-TE",))
    assert names_of(found) == ["DUTS-TE/a", "DUTS-TE/b"]


def test_held_back_images_are_those_of_big(manual, training, tmp_path):
    write_triple(manual / "big/val", "x")
    assert names_of(load(tmp_path, "refinement_training")) == ["validation/x"]


# Generated --------------------------------------------------------------------------------------

SMALL = {
    "size": (48, 64),
    "validation_size": (192, 256),
    "coarse_size": (96, 128),
    "zoom": (0.5, 2.0),
    "train": 6,
    "validation": 6,
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    where = tmp_path_factory.mktemp("masks")
    return [load(where, "shapescapes_masks", split, **SMALL) for split in ("train", "validation")]


def test_generated_objects_are_parts_of_their_scene(generated):
    train, validation = generated
    assert train[0].keys() == {"image", "mask", "semantic", "name"}
    for dataset, shape in ((train, (48, 64)), (validation, (192, 256))):
        for i in range(6):
            example = dataset[i]
            assert example["image"].shape == (*shape, 3) and example["mask"].shape == shape
            assert set(np.unique(example["mask"])) == {0, 255}
            assert 0.015 < (example["mask"] > 0).mean() < 1


def test_stuff_is_shown_where_it_is_asked_for():
    """Of one scene, more masks than it has things."""
    scene = shapescapes.scene_at("train", 0, (96, 128))
    things = set(np.flatnonzero(scene.segment_class >= 5))

    def shown(stuff):
        rng = np.random.default_rng(0)
        masks = [shapescapes_masks.object_mask(scene, rng, stuff) for _ in range(60)]
        return {scene.segments[mask > 0].max() for mask in masks}

    assert shown(False) <= things
    assert shown(True) - things and shown(True) & things


def test_windows_hold_the_middle_of_their_object():
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 50:60] = 255  # its middle is (25, 55)
    starts = {"rows": set(), "columns": set()}
    for seed in range(100):
        window = shapescapes_masks.around(mask, (24, 32), np.random.default_rng(seed))
        assert mask[window].shape == (24, 32)
        for name, where, middle, side in zip(starts, window, (25, 55), (24, 32)):
            assert 0.25 * side <= middle - where.start <= 0.75 * side + 1
            starts[name].add(where.start)
    assert min(map(len, starts.values())) > 8
    wide = np.zeros_like(mask)
    wide[20:30, [2, 78]] = 255  # two parts farther apart than the window is wide
    windows = [
        shapescapes_masks.around(wide, (24, 32), np.random.default_rng(seed)) for seed in range(20)
    ]
    assert all(wide[window].any() for window in windows)
    corner = np.zeros_like(mask)
    corner[:2, :2] = 255
    window = shapescapes_masks.around(corner, (60, 32), np.random.default_rng(0))
    assert (window[0].start, window[1].start) == (0, 0)


def test_generated_coarse_masks_have_coarse_boundaries(generated):
    scores = boundary.Scores()
    for i in range(6):
        example = generated[1][i]
        assert set(np.unique(example["coarse_mask"])) == {0, 255}
        scores.update(example["mask"], example["coarse_mask"], example["mask"])
    found = scores.result()
    assert 40 < found["coarse_iou"] < 95 and found["coarse_mba"] < 80


def test_generated_masks_depend_on_the_seed_alone(generated, tmp_path):
    again = load(tmp_path, "shapescapes_masks", **SMALL)
    other = load(tmp_path, "shapescapes_masks", **SMALL, seed=1)
    for name in ("image", "mask", "coarse_mask"):
        np.testing.assert_array_equal(again[2][name], generated[1][2][name])
    assert (other[2]["image"] != again[2]["image"]).any()


def test_more_scenes_begin_with_the_same(generated, tmp_path):
    fewer = load(tmp_path, "shapescapes_masks", **SMALL | {"validation": 2})
    np.testing.assert_array_equal(fewer[1]["coarse_mask"], generated[1][1]["coarse_mask"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_size": (8, 8)}, r"dataset\.validation_size is \(8, 8\)"),
        ({"size": (64, 300)}, r"dataset\.size is \(64, 300\).*scenes of \(128, 128\)"),
        ({"stuff": 1.5}, r"dataset\.stuff is 1\.5"),
        ({"zoom": (2.0, 1.0)}, r"dataset\.zoom is \(2\.0, 1\.0\)"),
        ({"iou_target": (0.9, 0.8)}, r"dataset\.iou_target is \(0\.9, 0\.8\)"),
        ({"validation": 0}, r"dataset\.validation is 0"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, options, message):
    with pytest.raises(SegjaxError, match=message):
        load(tmp_path, "shapescapes_masks", **options)


# Together ---------------------------------------------------------------------------------------


def test_prepared_copies_without_masks_are_stored_as_before(tmp_path):
    plain = load(tmp_path, "shapescapes", size=(16, 16), validation=1)
    stored, metadata = prepared._open(plain.path)
    assert metadata.keys() == {"segments", "sizes"}
    assert "mask" not in stored[0] and "mask" not in plain[0]


def test_check_tells_masks_of_0_and_1_by_name(manual, tmp_path):
    for name in "ab":
        write_triple(manual / "big/val", name)
    write(manual / "big/val/b_gt.png", (grey() > 128).astype(np.uint8))
    report = check.check(datasets.source({"name": "big"}, "validation", str(tmp_path)))
    assert report.examples == 2 and len(report.faults) == 1
    assert "b_gt.png" in report.faults[0]
    assert report.pixels.tolist() == [12 * 18 - 47, 47]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    config = ConfigDict()\n"
        f"    config.data = dict(dataset=dict(name='shapescapes_masks', **{SMALL}))\n"
        f"    config.data.data_dir = {str(tmp_path)!r}\n"
        "    config.augment = dict(recipe='refine', crop=(40, 40))\n"
        "    return config\n"
    )
    return path


def test_data_check_and_data_show_know_masks(config, tmp_path, capsys):
    assert run(command.main, ["check", f"--config={config}", "--config.model.classes=2"]) == 0
    assert "object" in capsys.readouterr().out
    sheet = tmp_path / "sheet.png"
    assert run(command.main, ["show", f"--config={config}", f"--out={sheet}", "--count=2"]) == 0
    with Image.open(sheet) as picture:
        assert picture.width > 2 * 3 * 256  # image, exact and coarse mask of two examples


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs lie outside of this repository")
def test_real_photographs_with_coarse_masks(tmp_path):
    """RGBA and grey masks, antialiased and not; here the coarse mask is the exact one too."""
    for name in ("aeroplane", "motorbike"):
        folder = tmp_path / "big" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}_im.jpg").write_bytes((REAL / f"{name}.jpg").read_bytes())
        for kind in ("gt", "seg"):
            (folder / f"{name}_{kind}.png").write_bytes((REAL / f"{name}.png").read_bytes())
    found = load(tmp_path, "big", "test", manual_dir=str(tmp_path / "big"))
    assert found.sizes().tolist() == [[2328, 3492], [480, 640]]
    scores = boundary.Scores()
    for i in range(2):
        scores.update(*(found[i][name] for name in ("mask", "coarse_mask", "coarse_mask")))
    figures = scores.result()
    assert figures["iou"] == figures["coarse_mba"] == 100
    greys = np.unique(found[1]["mask"])
    assert len(greys) == 15
