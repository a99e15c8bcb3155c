"""Drawn pictures have the pixels they should have."""

import numpy as np
import pytest
import toy_inference
from PIL import Image

from segjax.errors import SegjaxError
from segjax.inference import draw
from segjax.structs import IGNORE

PALETTE = ((255, 0, 0), (0, 200, 100), (10, 20, 30))


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)


def test_an_overlay_mixes_image_and_colour(photo):
    labels = np.zeros((24, 40), np.uint8)
    labels[:, 20:] = 1
    mixed = draw.overlay(photo, labels, PALETTE, 0.25)
    expected = 0.75 * photo + 0.25 * np.array(PALETTE)[labels]
    assert np.abs(mixed - expected).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(draw.overlay(photo, labels, PALETTE, 0.0), photo)


def test_unlabelled_pixels_are_dark_and_striped(photo):
    labels = np.full((24, 40), IGNORE, np.int16)
    labels[:12] = 2
    mixed = draw.overlay(photo, labels, PALETTE, 0.5)
    striped = (mixed[12:] == 96).all(-1)
    assert 0.15 < striped.mean() < 0.35
    np.testing.assert_array_equal(mixed[12:][~striped], photo[12:][~striped] // 3)


def test_an_alpha_beyond_one_is_refused(photo):
    with pytest.raises(SegjaxError, match=r"alpha is 1\.5"):
        draw.overlay(photo, np.zeros((24, 40), np.uint8), PALETTE, 1.5)


def test_borders_are_where_neighbours_differ():
    labels = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    expected = [[False, True, False], [True, True, True], [False, False, False]]
    np.testing.assert_array_equal(draw.borders(labels), expected)


def test_regions_have_the_mean_colour_of_their_pixels(photo):
    regions = np.repeat([[7] * 10 + [3] * 30], 24, axis=0)
    means = draw.mean_colours(photo, regions)
    np.testing.assert_array_equal(means[0, 0], photo[:, :10].mean((0, 1)).round())
    np.testing.assert_array_equal(means[-1, -1], photo[:, 10:].mean((0, 1)).round())


def test_random_colours_belong_to_region_numbers():
    left, right = draw.random_colours(np.array([[0, 1, 2]])), draw.random_colours(np.array([[2]]))
    np.testing.assert_array_equal(left[0, 2], right[0, 0])
    assert len(np.unique(left[0], axis=0)) == 3


def test_a_region_picture_marks_the_tokens(photo):
    regions = np.zeros((24, 40), np.int32)
    regions[:, 20:] = 1
    picture = draw.regions_picture(photo, regions, np.array([[12, 10], [12, 30]]), factor=3)
    assert picture.shape == (72, 120, 3)
    for x in (30, 90):
        np.testing.assert_array_equal(picture[36, x], (255, 214, 0))
    plain = draw.mean_colours(photo, regions)
    np.testing.assert_array_equal(picture[0, 0], plain[0, 0])
    assert (picture[5, 59].astype(int) > plain[0, 0]).all()  # the border between the two


@pytest.mark.parametrize("classes", [3, 256, 300])
def test_a_label_image_holds_the_labels_themselves(classes, tmp_path):
    palette = [(k % 256, 7, 9) for k in range(classes)]
    labels = np.arange(classes - 1, dtype=np.int32).repeat(2).reshape(2, -1)
    path = tmp_path / "labels.png"
    draw.save(draw.label_image(labels, palette), path)
    with Image.open(path) as picture:
        assert picture.mode == ("P" if classes <= 256 else "I;16")
        np.testing.assert_array_equal(np.array(picture), labels)
        if classes <= 256:
            colours = np.array(picture.convert("RGB"))
            np.testing.assert_array_equal(colours, np.array(palette, np.uint8)[labels])


def test_unlabelled_is_255_in_a_label_image():
    picture = draw.label_image(np.array([[0, IGNORE, 2]]), PALETTE)
    np.testing.assert_array_equal(np.array(picture), [[0, 255, 2]])


def test_a_legend_shows_every_colour_and_keeps_its_width():
    entries = [draw.Entry(f"class number {k}", colour) for k, colour in enumerate(PALETTE)]
    wide, narrow = draw.legend(entries, 600), draw.legend(entries, 150)
    assert (wide.width, narrow.width) == (600, 150)
    assert narrow.height > wide.height
    for picture in (wide, narrow):
        shown = {tuple(pixel) for pixel in np.array(picture).reshape(-1, 3)}
        assert set(PALETTE) <= shown
    draw.legend([draw.Entry("a very long name " * 20, None)], 150)


def test_panels_stand_side_by_side_over_a_legend(photo):
    space = toy_inference.label_space(3)
    labels = np.zeros((24, 40), np.uint8)
    labels[:, 20:] = 2
    picture = draw.side_by_side(photo, labels, space, truth=labels.astype(np.int16) - 1)
    factor = round(draw.PANEL / 40)
    assert picture.width == 3 * 40 * factor + 4 * 8
    pixels = np.array(picture)
    first = pixels[26 : 26 + 24 * factor, 8 : 8 + 40 * factor]
    np.testing.assert_array_equal(first, draw.enlarged(photo, factor))
    legend = pixels[26 + 24 * factor + 8 :].reshape(-1, 3)
    shown = {tuple(pixel) for pixel in legend}
    assert {space.palette[k] for k in (0, 1, 2)} <= shown and (60, 60, 60) in shown
    regions = np.zeros((24, 40), np.int32)
    wider = draw.side_by_side(photo, labels, space, labels, regions, np.array([[12.0, 20.0]]))
    assert wider.width == 4 * 40 * factor + 5 * 8


def test_panels_of_a_large_photograph_are_made_smaller():
    image = np.zeros((900, 1800, 3), np.uint8)
    picture = draw.side_by_side(image, np.zeros((900, 1800), np.uint8), toy_inference.label_space())
    assert picture.width == 2 * draw.PANEL + 3 * 8


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    picture = Image.new("RGB", (8, 8))
    draw.save(picture, tmp_path / "deep" / "a.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]
    with pytest.raises(SegjaxError, match=r"b\.xyz: pictures aren't written as '\.xyz'"):
        draw.save(picture, tmp_path / "b.xyz")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SegjaxError, match=r"c\.png: it cannot be written \(No space left"):
        draw.save(picture, tmp_path / "c.png")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
