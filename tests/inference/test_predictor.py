"""The predictor takes any picture and gives labels, scores, regions and drawings of its size."""

import io

import jax
import numpy as np
import pytest
import toy_inference
from PIL import Image

import segjax
from segjax.errors import SegjaxError
from segjax.inference import draw
from segjax.inference.predictor import Predictor, as_rgb
from segjax.inference.windows import Settings

SETTINGS = Settings("slide", (90, 45), (32, 32), (24, 20), batch=4)


@pytest.fixture(scope="module")
def model():
    return predictor(SETTINGS)


def predictor(settings, system=None):
    return Predictor(
        system or toy_inference.Toy(),
        toy_inference.variables(),
        toy_inference.label_space(),
        settings,
        step=7,
    )


@pytest.fixture(scope="module")
def photo():
    return toy_inference.Scenes([(50, 70)]).examples[0]["image"]


def plain(photo, settings=SETTINGS):
    return toy_inference.plain_probabilities(
        toy_inference.Toy(), toy_inference.variables(), photo, settings
    )


def test_labels_and_scores_are_those_of_the_plain_way(model, photo):
    result = model(photo)
    expected = plain(photo)
    assert result.labels.shape == (50, 70) and result.labels.dtype == np.uint8
    assert (result.labels == expected.argmax(-1)).mean() > 0.999
    scores = result.scores()
    assert scores.dtype == np.float32
    assert np.linalg.norm(scores - expected) / np.linalg.norm(expected) < 1e-5
    assert result.scores("float16").dtype == np.float16


def test_scores_do_not_depend_on_the_strips_they_are_made_in(model, photo, monkeypatch):
    whole = model(photo).scores()
    monkeypatch.setattr("segjax.inference.runner.STRIP_BYTES", 1)
    np.testing.assert_allclose(model(photo).scores(), whole, atol=1e-6)


def test_multi_scale_and_flip_go_through_the_predictor_too(photo):
    settings = Settings("slide", (90, 45), (32, 32), (24, 20), (1.0, 1.3), True, batch=4)
    expected = plain(photo, settings)
    scores = predictor(settings)(photo).scores()
    assert np.linalg.norm(scores - expected) / np.linalg.norm(expected) < 1e-5


def test_sizes_of_a_bucket_share_compiled_code(model, caplog):
    rng = np.random.default_rng(0)
    model(rng.integers(0, 256, (41, 62, 3)).astype(np.uint8))
    with jax.log_compiles():
        for size in ((41, 60), (45, 61), (40, 63)):
            caplog.clear()
            model(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
            assert not [line for line in caplog.records if "Compiling" in line.getMessage()]


def test_every_form_of_a_picture_gives_the_same_result(model, photo, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    for form in (str(path), path, path.read_bytes(), Image.fromarray(photo), Image.open(path)):
        result = model(form)
        np.testing.assert_array_equal(result.image, photo)
        np.testing.assert_array_equal(result.labels, model(photo).labels)


def test_pil_images_and_arrays_are_read_as_files_are(photo):
    grey = photo[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.dstack([photo, np.where(grey > 100, 255, 0).astype(np.uint8)])
    on_white = np.where(alpha[..., 3:] > 0, photo, 255)
    turned = Image.fromarray(photo)
    turned.getexif()[274] = 6
    palette = Image.fromarray(photo).quantize(16)
    for given, wanted in (
        (Image.fromarray(grey), expected),
        (grey, expected),
        (grey[..., None], expected),
        (grey.astype(np.uint16) * 257, expected),
        (Image.fromarray(grey.astype(np.uint16) * 257), expected),
        (grey > 100, np.where(expected > 100, 255, 0)),
        (Image.fromarray(alpha), on_white),
        (alpha, on_white),
        (turned, np.rot90(photo, -1)),
        (palette, np.array(palette.convert("RGB"))),
        (Image.fromarray(photo).convert("CMYK"), photo),
    ):
        np.testing.assert_array_equal(as_rgb(given), wanted)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.zeros((4, 5, 3), np.float32), r"shape \(4, 5, 3\) and type float32"),
        (np.zeros((4, 5, 3, 1), np.uint8), r"shape \(4, 5, 3, 1\)"),
        (np.zeros((0, 5, 3), np.uint8), "the picture is empty"),
        (7, "not int"),
        (b"no image", "not an image"),
        ("nowhere.jpg", "nowhere.jpg: there is no such file"),
    ],
    ids=["float", "4-d", "empty", "number", "bytes", "path"],
)
def test_what_is_no_picture_is_said_in_a_sentence(model, wrong, sentence):
    with pytest.raises(SegjaxError, match=sentence):
        model(wrong)


def test_a_truncated_pil_image_is_said_in_a_sentence(photo, tmp_path):
    data = io.BytesIO()
    Image.fromarray(photo).save(data, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data.getvalue()[:-200])
    with pytest.raises(SegjaxError, match=r"cut\.jpg: it cannot be read"):
        as_rgb(Image.open(path))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)], ids=str)
def test_odd_pictures_keep_their_size(model, size):
    result = model(np.full((*size, 3), 90, np.uint8))
    assert result.labels.shape == size and result.regions().shape == size
    result.draw()


def test_a_result_draws_itself_and_saves_its_labels(model, photo, tmp_path):
    result = model(photo)
    assert result.names == model.label_space.names and model.step == 7
    bare = np.array(result.draw(legend=False))
    assert bare.shape == photo.shape
    inside = ~draw.borders(result.labels)
    expected = draw.overlay(photo, result.labels, result.palette, 0.6)
    np.testing.assert_array_equal(bare[inside], expected[inside])
    assert result.draw().height > result.draw().width * 50 / 70  # the legend
    result.save_labels(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), result.labels)


def test_regions_are_shown_when_the_system_has_them(model, photo):
    result = model(photo)
    regions = result.regions()
    assert regions.shape == photo.shape[:2]
    assert len(np.unique(regions)) > 64
    without = predictor(SETTINGS, toy_inference.Toy(regions=False))(photo)
    assert without.regions() is None and without.token_centres() is None
    assert draw.panels(result).width > draw.panels(without).width


def test_a_folder_that_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(SegjaxError, match=r"there is no config\.json in it"):
        segjax.load(str(tmp_path))
