"""segjax eval and segjax predict, from a workdir to files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import segjax
from segjax import cli, systems
from segjax import config as configs
from segjax.cli import predict
from segjax.data import datasets, transforms
from segjax.errors import SegjaxError
from segjax.training import checkpoints

REGPROXY = dict(
    system="regproxy",
    backbone=dict(width=32, depth=1, heads=2, patch=16),
    classes=12,
    image_size=(64, 64),
    early_block=0,
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """An untrained RegProxy for shapescapes."""
    path = tmp_path_factory.mktemp("run") / "w"
    partial = ConfigDict()
    partial.model = REGPROXY
    partial.data = dict(dataset=dict(name="shapescapes", size=(64, 64), train=1, validation=5))
    partial.eval = dict(mode="whole", scale=(64, 64), crop=(64, 64), stride=(64, 64), batch=8)
    return saved_run(path, configs.load(partial))


def saved_run(path, config):
    """A workdir with the untrained model of a config."""
    system = systems.of_config(config)
    image = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    variables = jax.jit(system.init)(jax.random.key(0), {"image": image})
    checkpoints.save_variables(path, variables, step=3)
    configs.save(config, path / "config.json")
    datasets.label_space(config.data.dataset).save(path / "label_space.json")
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs of many kinds, one of them broken."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (10, 14, 3)).astype(np.uint8)
    photo = Image.fromarray(transforms.resize_image(noise, (70, 98)))
    photo.save(folder / "plain.jpg")
    exif = Image.Exif()
    exif[274] = 6
    photo.save(folder / "more" / "turned.jpg", exif=exif)
    photo.convert("L").save(folder / "plain.png")
    Image.fromarray(np.array(photo.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    photo.convert("RGBA").save(folder / "more" / "alpha.webp", lossless=True)
    photo.quantize(8).save(folder / "more" / "palette.gif")
    (folder / "more" / "broken.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_text("no picture")
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_eval_needs_nothing_but_the_workdir(workdir, capsys):
    assert cli.main(["eval", f"--workdir={workdir}", "--pictures=2"]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["images"] == 5 and metrics["step"] == 3
    for row in metrics["classes"]:
        assert row["name"] in printed
    assert f"mIoU {metrics['mIoU']:.2f}" in printed
    pictures = sorted((workdir / "pictures").iterdir())
    assert [path.name for path in pictures] == ["validation_000000.png", "validation_000004.png"]
    assert all(Image.open(path).width > 1000 for path in pictures)


def test_eval_takes_changes_to_the_config(workdir):
    assert cli.main(["eval", f"--workdir={workdir}", "--pictures=0"]) == 0
    plain = json.loads((workdir / "metrics.json").read_text())
    assert cli.main(["eval", f"--workdir={workdir}", "--config.eval.flip=True"]) == 0
    flipped = json.loads((workdir / "metrics.json").read_text())
    assert plain["aAcc"] != flipped["aAcc"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["eval"]["flip"] is False


def test_eval_leaves_a_report_when_it_is_asked_to(workdir, capsys):
    assert cli.main(["eval", f"--workdir={workdir}", "--pictures=0"]) == 0
    plain = (workdir / "metrics.json").read_text()
    assert not (workdir / "report.html").exists()
    capsys.readouterr()
    assert cli.main(["eval", f"--workdir={workdir}", "--pictures=0", "--report"]) == 0
    assert (workdir / "metrics.json").read_text() == plain
    page = (workdir / "report.html").read_text()
    assert f"{workdir / 'report.html'}" in capsys.readouterr().out
    assert "<h1>regproxy on shapescapes</h1>" in page
    assert page.count("<img ") == 4 * 5 and "validation/000004" in page
    assert "no training curves" in page and "<dt>changed</dt>" not in page


def test_a_report_tells_its_training_and_what_was_changed_for_it(workdir):
    log = workdir / "metrics.jsonl"
    log.write_text('{"step": 3, "kind": "train", "loss": 1.5, "learning_rate": 0.1}\n')
    try:
        argv = [f"--workdir={workdir}", "--pictures=0", "--report", "--config.eval.flip=True"]
        assert cli.main(["eval", *argv]) == 0
    finally:
        log.unlink()
    page = (workdir / "report.html").read_text()
    assert "<dt>changed</dt><dd>config.eval.flip: False -&gt; True</dd>" in page
    assert "Training loss" in page and "no training curves" not in page


def test_eval_of_a_folder_that_is_no_workdir_is_one_sentence(tmp_path, capsys):
    assert cli.main(["eval", f"--workdir={tmp_path}"]) == 1
    assert "there is no config.json in it" in capsys.readouterr().err


def test_one_photograph_becomes_an_overlay_labels_and_scores(workdir, photos, tmp_path, capsys):
    out = tmp_path / "out" / "seg.png"
    argv = [f"--workdir={workdir}", f"--image={photos / 'plain.jpg'}", f"--out={out}", "--scores"]
    assert cli.main(["predict", *argv]) == 0
    assert files(out.parent) == ["seg.png", "seg_labels.png", "seg_scores.npz"]
    labels = np.array(Image.open(out.with_name("seg_labels.png")))
    with np.load(out.with_name("seg_scores.npz")) as stored:
        scores, names = stored["scores"], stored["names"]
    assert labels.shape == (70, 98) and scores.shape == (70, 98, 12)
    assert scores.dtype == np.float16 and names[0] == "sky"
    assert (scores.argmax(-1) == labels).mean() > 0.98  # float16 has ties
    np.testing.assert_array_equal(segjax.load(str(workdir))(photos / "plain.jpg").labels, labels)
    assert "1 image labelled (step 3)" in capsys.readouterr().out


def test_folders_keep_their_tree_and_a_broken_file_stops_nothing(workdir, photos, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["predict", f"--workdir={workdir}", f"--out={out}", "--image", str(photos)]
    assert cli.main(argv) == 1
    printed = capsys.readouterr()
    faults = [line for line in printed.err.splitlines() if line.startswith("segjax: error:")]
    assert len(faults) == 1 and "broken.jpg: the image is truncated" in faults[0]
    assert "6 of 7 images labelled" in printed.out
    pictures = ["deep", "more/alpha", "more/palette", "more/turned", "plain_jpg", "plain_png"]
    assert files(out) == sorted(f"{name}{end}.png" for name in pictures for end in ("", "_labels"))
    sizes = {name: Image.open(out / f"{name}_labels.png").size for name in pictures}
    assert sizes.pop("more/turned") == (70, 98)
    assert set(sizes.values()) == {(98, 70)}
    grey = [np.array(Image.open(out / f"{name}_labels.png")) for name in ("deep", "plain_png")]
    np.testing.assert_array_equal(*grey)


def test_results_of_an_earlier_run_are_not_taken_for_photographs(photos):
    out = photos / "results"
    out.mkdir()
    (out / "old.png").write_bytes(b"")
    found = [job.source.name for job in predict.plan([str(photos)], str(out))]
    assert "plain.jpg" in found and "old.png" not in found


def test_files_of_one_name_do_not_overwrite_each_other(photos):
    """Two files of one name, one name with two endings, and one file named twice."""
    again = photos / "more" / "plain.jpg"
    again.write_bytes((photos / "plain.jpg").read_bytes())
    sources = [photos / "plain.jpg", again, photos / "plain.png", again]
    jobs = predict.plan([str(path) for path in sources], "out")
    assert [job.source for job in jobs] == sources[:3]
    assert [str(job.out) for job in jobs] == [
        "out/plain_jpg.png",
        "out/plain_jpg_2.png",
        "out/plain_png.png",
    ]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--out=o"], "no image is named"),
        (["--out=o", "--image=a.jpg", "--fast"], "--fast is not an option of segjax predict"),
        (["--out=o.png", "--image=a.jpg", "b.jpg"], "names one file for 2 images"),
    ],
    ids=["nothing", "unknown option", "one file for two"],
)
def test_what_is_asked_wrongly_is_one_sentence(argv, sentence, capsys):
    assert cli.main(["predict", "--workdir=w", *argv]) == 1
    assert sentence in capsys.readouterr().err


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SegjaxError, match="there are no images in this folder"):
        predict.plan([str(tmp_path)], "out")


@pytest.fixture(scope="module")
def mask_workdir(tmp_path_factory):
    """An untrained Mask2Former for shapescapes, sure of what it says."""
    partial = ConfigDict()
    partial.model = dict(
        system="mask2former",
        backbone=dict(width=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
        classes=12,
        queries=6,
        layers=1,
        features=32,
        hidden=32,
        encoder_layers=1,
        encoder_hidden=32,
    )
    partial.data = dict(dataset=dict(name="shapescapes", size=(64, 64), train=1, validation=4))
    partial.augment = dict(segments="panoptic", max_segments=30)
    partial.eval = dict(
        mode="whole",
        scale=(64, 64),
        tasks=("panoptic", "instance", "semantic"),
        metric="PQ",
        object_threshold=0.0,
        overlap_threshold=0.0,
    )
    return saved_run(tmp_path_factory.mktemp("masks") / "w", configs.load(partial))


@pytest.fixture(scope="module")
def tree_workdir(tmp_path_factory):
    """An untrained RegProxy under shapescapes' three-level tree."""
    partial = ConfigDict()
    partial.model = REGPROXY
    partial.hierarchy = dict(tree="dataset")
    partial.data = dict(dataset=dict(name="shapescapes", size=(64, 64), train=1, validation=5))
    partial.eval = dict(mode="whole", scale=(64, 64), crop=(64, 64), stride=(64, 64), batch=8)
    return saved_run(tmp_path_factory.mktemp("tree") / "w", configs.load(partial))


def test_predict_of_a_mask_system_writes_coco_files(mask_workdir, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    command = ["predict", f"--workdir={mask_workdir}", f"--image={tmp_path / 'photo.png'}"]
    assert cli.main([*command, f"--out={tmp_path / 'out.png'}"]) == 0
    rgb = np.asarray(Image.open(tmp_path / "out_panoptic.png").convert("RGB")).astype(int)
    ids = rgb @ [1, 256, 256**2]
    (told,) = json.loads((tmp_path / "out_panoptic.json").read_text())["annotations"]
    told = told["segments_info"]
    assert {row["id"] for row in told} == set(np.unique(ids)) - {0}
    for row in told:
        assert row["area"] == (ids == row["id"]).sum()
    instances = json.loads((tmp_path / "out_instances.json").read_text())
    assert instances and all(row["segmentation"]["size"] == [50, 70] for row in instances)
    assert cli.main([*command, f"--out={tmp_path / 'out.png'}", "--scores"]) == 1


def test_eval_of_a_mask_system_says_every_task(mask_workdir, capsys):
    assert cli.main(["eval", f"--workdir={mask_workdir}"]) == 0
    told = capsys.readouterr().out
    metrics = json.loads((mask_workdir / "metrics.json").read_text())
    assert {"PQ", "AP", "mIoU"} <= metrics.keys() and "PQ" in told


def test_a_tree_is_scored_and_drawn_on_every_level(tree_workdir, tmp_path):
    assert cli.main(["eval", f"--workdir={tree_workdir}"]) == 0
    metrics = json.loads((tree_workdir / "metrics.json").read_text())
    assert metrics["mIoU^1"] == metrics["mIoU"] and {"mIoU^2", "mIoU^3"} <= metrics.keys()

    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    command = ["predict", f"--workdir={tree_workdir}", f"--image={tmp_path / 'photo.png'}"]
    assert cli.main([*command, f"--out={tmp_path / 'out.png'}"]) == 0
    names = ["out_labels.png", "out_level2_labels.png", "out_level3_labels.png"]
    leaves, middle, top = (np.asarray(Image.open(tmp_path / name)) for name in names)
    model = segjax.load(tree_workdir)
    above = model.hierarchy.ancestors
    np.testing.assert_array_equal(middle, above[leaves, 1])
    np.testing.assert_array_equal(top, above[leaves, 2])
    assert (tmp_path / "out_level3.png").is_file()


def test_node_scores_never_break_the_tree(tree_workdir):
    model = segjax.load(tree_workdir)
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    result = model(photo)
    scores = result.node_scores()
    assert scores.shape == (40, 50, model.hierarchy.nodes)
    levels = model.hierarchy.tree.levels(scores)
    for level, parent in enumerate(model.hierarchy.parents):
        assert (levels[level] <= levels[level + 1][..., list(parent)]).all()
    assert [one.label_space.classes for one in result.levels()] == list(model.hierarchy.sizes)


def test_a_model_without_a_tree_has_no_node_scores(workdir):
    result = segjax.load(workdir)(np.zeros((40, 50, 3), np.uint8))
    assert result.levels() == [result]
    with pytest.raises(SegjaxError, match="without a class tree"):
        result.node_scores()
