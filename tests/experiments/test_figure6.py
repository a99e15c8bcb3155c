"""RegProxy's Figure 6 from a small workdir."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import segjax
from experiments.regproxy import figure6
from segjax import config as configs
from segjax import systems
from segjax.data import datasets
from segjax.errors import SegjaxError
from segjax.ops import superpixels
from segjax.structs import IGNORE
from segjax.training import checkpoints


def untrained(path, system, **fields):
    """A workdir of a system with random weights, for shapescapes."""
    partial = ConfigDict()
    backbone = dict(width=32, depth=1, heads=2, patch=16)
    partial.model = dict(
        system=system, backbone=backbone, classes=12, image_size=(64, 64), **fields
    )
    partial.data = dict(dataset=dict(name="shapescapes", size=(64, 64), train=1, validation=4))
    partial.eval = dict(mode="whole", scale=(64, 64), crop=(64, 64), stride=(64, 64))
    config = configs.load(partial)
    system = systems.build(config.model)
    image = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    variables = jax.jit(system.init)(jax.random.key(0), {"image": image})
    checkpoints.save_variables(path, variables, step=3)
    configs.save(config, path / "config.json")
    datasets.label_space(config.data.dataset).save(path / "label_space.json")
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "w", "regproxy", early_block=0)


@pytest.fixture(scope="module")
def found(workdir):
    return figure6.collect(workdir, images=3, pictures=2)


def plain_entropies(regions, truth):
    """Region by region, in the order of their numbers."""
    values = []
    for region in np.unique(regions):
        mine = truth[(regions == region) & (truth != IGNORE)]
        if len(mine):
            share = np.unique(mine, return_counts=True)[1] / len(mine)
            values.append(-(share * np.log(share)).sum())
    return np.array(values)


def scenes(workdir):
    data = configs.read(workdir / "config.json").data
    return datasets.load(data.dataset.to_dict(), data.eval_split, data.data_dir)


def test_entropies_of_learned_regions_are_those_of_their_pixels(workdir, found):
    model, dataset = segjax.load(str(workdir)), scenes(workdir)
    wanted = [
        plain_entropies(model(dataset[i]["image"]).regions(), dataset[i]["semantic"])
        for i in range(3)
    ]
    np.testing.assert_allclose(found.values["learned"], np.concatenate(wanted), atol=1e-5)


def test_as_many_squares_and_superpixels_are_compared(workdir, found):
    """16 tokens of an image are 4 x 4 squares."""
    learned = [segjax.load(str(workdir))(scenes(workdir)[i]["image"]).regions() for i in range(3)]
    assert all(len(np.unique(regions)) == 16 for regions in learned)
    squares = np.asarray(superpixels.square_regions((64, 64), (4, 4)))
    images = [scenes(workdir)[i] for i in range(3)]
    wanted = [plain_entropies(squares, example["semantic"]) for example in images]
    np.testing.assert_allclose(found.values["squares"], np.concatenate(wanted), atol=1e-5)
    cut = [superpixels.slic(example["image"][None], (4, 4))[0] for example in images]
    wanted = [plain_entropies(np.asarray(a), b["semantic"]) for a, b in zip(cut, images)]
    np.testing.assert_allclose(found.values["SLIC"], np.concatenate(wanted), atol=1e-5)


@pytest.mark.parametrize("height, width, count", [(64, 64, 16), (48, 96, 32), (30, 40, 1)])
def test_alike_covers_the_image_with_about_so_many(height, width, count):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    squares, cut = figure6.alike(image, count)
    assert squares.shape == cut.shape == (height, width)
    assert 0.8 * count <= len(np.unique(squares)) <= 1.2 * count
    assert cut.max() < len(np.unique(squares))


def test_unlabelled_pixels_do_not_count_and_regions_of_them_are_left_out():
    regions = np.array([[7, 7, 7, 9, 40]])
    truth = np.array([[0, 1, IGNORE, IGNORE, 2]])
    np.testing.assert_allclose(figure6.entropies(regions, truth, 3), [np.log(2), 0], atol=1e-6)


def test_pure_regions_are_counted_apart():
    summary = figure6.summarised(np.array([0.0, 0.5, 0.0, 1.0]))
    assert summary == {"regions": 4, "pure_percent": 50.0, "mean_of_the_rest": 0.75}
    assert figure6.summarised(np.zeros(0))["mean_of_the_rest"] == 0.0


def test_the_command_writes_the_figure_its_numbers_and_the_regions(workdir, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the figure is drawn with matplotlib")
    argv = [f"--workdir={workdir}", f"--out={tmp_path}", "--images=2", "--pictures=1"]
    assert figure6.main(argv) == 0
    summary = json.loads((tmp_path / "entropies.json").read_text())
    assert list(summary) == ["learned", "squares", "SLIC"]
    assert f"{summary['learned']['regions']} regions" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "entropies.json",
        "figure6.png",
        "regions_0.png",
    ]
    with Image.open(tmp_path / "figure6.png") as figure:
        assert np.asarray(figure).std() > 10
    with Image.open(tmp_path / "regions_0.png") as regions:
        assert regions.size == (384, 384)


@pytest.mark.parametrize("pictures", [0, 3])
def test_any_number_of_pictures_is_laid_out(pictures, tmp_path):
    pytest.importorskip("matplotlib", reason="the figure is drawn with matplotlib")
    rng = np.random.default_rng(0)
    values = {"learned": rng.uniform(0, 1, 50), "squares": np.zeros(9), "SLIC": np.zeros(0)}
    shown = [rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)] * pictures
    figure6.plot(figure6.Entropies(values, shown), tmp_path / "figure6.png")
    assert (tmp_path / "figure6.png").stat().st_size > 5000


@pytest.mark.parametrize("system", ["linear_vit", "superpixel_vit"])
def test_a_system_that_learns_no_regions_is_refused(system, tmp_path):
    workdir = untrained(tmp_path / "w", system)
    with pytest.raises(SegjaxError, match=f"{system} learns no regions; take a workdir of regp"):
        figure6.collect(workdir, images=1, pictures=0)
