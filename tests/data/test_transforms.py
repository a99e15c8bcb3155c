"""Every augmentation equals its definition, written out plainly in numpy."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest

from segjax.data import transforms
from segjax.structs import IGNORE

GOLDEN = Path(__file__).parents[2] / "../shared/parity/regproxy"
RECIPE = {
    "scale": (256, 64),
    "ratio": (0.5, 2.0),
    "crop": (48, 56),
    "cat_max_ratio": 0.75,
    "flip": 0.5,
    "photometric": True,
}


def noise_image(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


class Draws:
    """A generator whose answers are written down; records what was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.answers.pop(0)

    def integers(self, low, high=None):
        self.asked.append((low, high))
        return self.answers.pop(0)

    def random(self):
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("size", "scale", "ratio", "expected"),
    [
        ((683, 512), (2048, 512), 1.0, (683, 512)),
        ((512, 683), (2048, 512), 0.75, (384, 512)),  # limits 1536 and 384; 683*.75 = 512.25
        ((100, 1000), (2048, 512), 1.0, (205, 2048)),  # the long side decides; 204.8 is rounded
        ((37, 61), (61, 37), 1.01, (37, 61)),  # limits 61.61 and 37.37 are cut to integers
        ((375, 500), (512, 2048), 1.0, (512, 683)),  # the order of the limits doesn't matter
    ],
)
def test_rescaled_size(size, scale, ratio, expected):
    assert transforms.rescaled_size(size, scale, ratio) == expected


def test_image_resize_is_bilinear_at_half_pixel_centres_rounded_to_integers():
    image, size = noise_image(0, 21, 30), (33, 17)

    def taps(target, source):
        at = (np.arange(target) + 0.5) * source / target - 0.5
        low = np.floor(at).astype(int)
        share = at - low
        return np.clip(low, 0, source - 1), np.clip(low + 1, 0, source - 1), share

    low, high, share = taps(size[0], 21)
    rows = image[low] * (1 - share[:, None, None]) + image[high] * share[:, None, None]
    low, high, share = taps(size[1], 30)
    expected = rows[:, low] * (1 - share[:, None]) + rows[:, high] * share[:, None]
    found = transforms.resize_image(image, size)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() < 1  # OpenCV computes in integers, and so rounds twice


@pytest.mark.parametrize("size", [(5, 7), (40, 23), (64, 96), (31, 31)])
def test_label_resize_takes_the_floor(size):
    labels = np.random.default_rng(0).integers(-1, 150, (31, 31)).astype(np.int16)
    rows, columns = (np.arange(n) * 31 // n for n in size)
    found = transforms.resize_labels(labels, size)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, labels[rows][:, columns])


@pytest.mark.parametrize("delta", [-32.0, -0.7, 0.0, 21.7, 31.99])
def test_brightness_adds_and_truncates(delta):
    image = noise_image(1, 9, 9)
    expected = np.clip(image.astype(np.float32) + np.float32(delta), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(transforms.brightness(image, delta), expected)


@pytest.mark.parametrize("alpha", [0.5, 0.77, 1.0, 1.31, 1.5])
def test_contrast_multiplies_and_truncates(alpha):
    image = noise_image(2, 9, 9)
    expected = np.clip(image.astype(np.float32) * np.float32(alpha), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(transforms.contrast(image, alpha), expected)


def to_hsv(image):
    """8-bit HSV by the textbook: H in 0..179, S and V in 0..255, rounded."""
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
    hsv = np.array(flat).reshape(image.shape) * (180, 255, 255)
    return np.round(hsv) % (180, 256, 256)


def from_hsv(hsv):
    flat = [colorsys.hsv_to_rgb(*pixel) for pixel in hsv.reshape(-1, 3) / (180, 255, 255)]
    return np.array(flat).reshape(hsv.shape) * 255


@pytest.mark.parametrize("alpha", [0.5, 0.62, 1.4])
def test_saturation_multiplies_s(alpha):
    image = noise_image(3, 16, 16)
    hsv = to_hsv(image)
    hsv[..., 1] = np.floor(np.clip(hsv[..., 1] * alpha, 0, 255))
    difference = transforms.saturation(image, alpha) - from_hsv(hsv)
    assert np.abs(difference).max() < 9.5  # H may be rounded the other way: up to 255/30 levels
    assert np.abs(difference).mean() < 0.5


@pytest.mark.parametrize("delta", [-18, -11, 0, 17])
def test_hue_turns_h_around_180(delta):
    image = noise_image(4, 16, 16)
    hsv = to_hsv(image)
    hsv[..., 0] = (hsv[..., 0] + delta) % 180
    difference = transforms.hue(image, delta) - from_hsv(hsv)
    assert np.abs(difference).max() < 9.5  # one step of H is up to 255/30 levels
    assert np.abs(difference).mean() < 1


def test_photometric_order_with_contrast_second():
    draws = Draws(1, 20.0, 1, 1, 1.2, 1, 0.8, 1, -5)
    image = noise_image(5, 8, 8)
    expected = transforms.brightness(image, 20.0)
    expected = transforms.contrast(expected, 1.2)
    expected = transforms.hue(transforms.saturation(expected, 0.8), -5)
    np.testing.assert_array_equal(transforms.photometric_distortion(image, draws), expected)
    assert draws.asked[-1] == (-18, 18)  # numpy's upper end is open: 17 is the greatest


def test_photometric_order_with_contrast_last():
    draws = Draws(0, 0, 1, 1.3, 0, 1, 0.6)
    image = noise_image(6, 8, 8)
    expected = transforms.contrast(transforms.saturation(image, 1.3), 0.6)
    np.testing.assert_array_equal(transforms.photometric_distortion(image, draws), expected)


def test_a_crop_with_one_class_is_drawn_again():
    """The left half has one class; windows there are refused until one shows two."""
    labels = np.zeros((20, 40), np.int16)
    labels[::2, 20:] = 1
    draws = Draws(0, 0, 3, 2, 0, 25)
    assert transforms.crop_window(labels, (10, 10), 0.75, draws) == (slice(0, 10), slice(25, 35))
    assert draws.asked == [(11, None), (31, None)] * 3


def test_a_crop_with_three_quarters_of_one_class_is_drawn_again():
    labels = np.zeros((4, 12), np.int16)
    labels[0, :4] = 1  # exactly 75 % zeros: not below 0.75
    labels[:2, 8:] = 1  # half
    draws = Draws(0, 0, 0, 8)
    window = transforms.crop_window(labels, (4, 4), 0.75, draws)
    assert window == (slice(0, 4), slice(8, 12))


def test_unlabelled_pixels_do_not_count_as_a_class_of_a_crop():
    labels = np.full((4, 8), IGNORE, np.int16)
    labels[0, 0] = 0  # one class and void: refused
    labels[0, 4:6] = 0, 1
    draws = Draws(0, 0, 0, 4)
    assert transforms.crop_window(labels, (4, 4), 0.75, draws)[1] == slice(4, 8)


def test_the_tenth_redraw_of_a_crop_is_taken_unchecked():
    labels = np.zeros((30, 30), np.int16)
    answers = [n for k in range(11) for n in (k, k)]
    draws = Draws(*answers)
    window = transforms.crop_window(labels, (8, 8), 0.75, draws)
    assert window == (slice(10, 18), slice(10, 18))
    assert not draws.answers


def test_a_crop_larger_than_the_image_is_the_image():
    image, labels = noise_image(7, 10, 30), np.zeros((10, 30), np.int16)
    found, _ = transforms.random_crop(image, labels, (20, 30), 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(found, image)


def test_train_example_is_the_chain_of_its_parts():
    image = noise_image(8, 50, 90)
    labels = np.random.default_rng(8).integers(-1, 5, (50, 90)).astype(np.int16)
    # ratio 1.5: limits (384, 96), 50 x 90 becomes 96 x 173; crop at (20, 100); flip; contrast 1.25.
    draws = Draws(1.5, 20, 100, 0.49, 0, 1, 1, 1.25, 0, 0)
    found = transforms.train_example({"image": image, "semantic": labels}, RECIPE, draws)
    expected = transforms.resize_image(image, (96, 173))[20:68, 100:156][:, ::-1]
    expected = transforms.contrast(np.ascontiguousarray(expected), 1.25)
    np.testing.assert_array_equal(found["image"], expected)
    expected = transforms.resize_labels(labels, (96, 173))[20:68, 100:156][:, ::-1]
    np.testing.assert_array_equal(found["semantic"], expected)
    assert found["image_size"].tolist() == [48, 56]
    assert {name: value.dtype for name, value in found.items()} == {
        "image": np.uint8,
        "semantic": np.int16,
        "image_size": np.int32,
    }


def test_an_image_smaller_than_the_crop_is_padded_bottom_and_right():
    recipe = {**RECIPE, "scale": (40, 20), "ratio": (1.0, 1.0), "flip": 0.0, "photometric": False}
    image = np.maximum(noise_image(9, 20, 30), 1)
    labels = np.random.default_rng(9).integers(0, 5, (20, 30)).astype(np.int16)
    example = {"image": image, "semantic": labels}
    found = transforms.train_example(example, recipe, np.random.default_rng(0))
    assert found["image_size"].tolist() == [20, 30]
    np.testing.assert_array_equal(found["image"][:20, :30], image)
    np.testing.assert_array_equal(found["semantic"][:20, :30], labels)
    assert not found["image"][20:].any() and not found["image"][:, 30:].any()
    assert (found["semantic"][20:] == IGNORE).all() and (found["semantic"][:, 30:] == IGNORE).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (7, 5), (300, 500)])
def test_images_of_any_size_give_the_fixed_shape(size):
    example = {"image": noise_image(0, *size), "semantic": np.zeros(size, np.int16)}
    for seed in range(5):
        found = transforms.train_example(example, RECIPE, np.random.default_rng(seed))
        assert found["image"].shape == (48, 56, 3)
        assert found["semantic"].shape == (48, 56)
        assert (found["image_size"] >= 1).all() and (found["image_size"] <= (48, 56)).all()


def test_equal_generators_give_equal_examples():
    image, labels = noise_image(10, 60, 80), np.zeros((60, 80), np.int16)
    labels[:, 40:] = 1
    example = {"image": image, "semantic": labels}
    first, again, other = (
        transforms.train_example(example, RECIPE, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (first["image"] != other["image"]).any()


def test_mirroring_exchanges_the_classes_of_pairs():
    """0 | 1 2 3 | void becomes void | 3 1 2 | 0 when 1 and 2 are left and right."""
    image = noise_image(11, 1, 5)
    labels = np.array([[0, 1, 2, 3, IGNORE]], np.int16)
    mirrored, found = transforms.mirror(image, labels, ((1, 2),))
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    assert found.tolist() == [[IGNORE, 3, 1, 2, 0]]
    assert labels.tolist() == [[0, 1, 2, 3, IGNORE]]


def test_mirroring_twice_with_the_same_pairs_is_nothing():
    image, pairs = noise_image(12, 9, 14), ((14, 15), (16, 17), (18, 19))
    labels = np.random.default_rng(12).integers(-1, 20, (9, 14)).astype(np.int16)
    once = transforms.mirror(image, labels, pairs)
    twice = transforms.mirror(*once, pairs)
    assert (once[1] != labels[:, ::-1]).any()
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], labels)


def test_a_training_example_exchanges_pairs_only_when_it_is_mirrored():
    recipe = {**RECIPE, "ratio": (1.0, 1.0), "scale": (56, 48), "photometric": False}
    image = noise_image(13, 48, 56)
    labels = np.random.default_rng(13).integers(-1, 5, (48, 56)).astype(np.int16)
    example = {"image": image, "semantic": labels}
    for flip, expected in ((0.0, labels), (1.0, labels[:, ::-1])):
        plain, swapped = (
            transforms.train_example(
                example, {**recipe, "flip": flip, "flip_pairs": pairs}, np.random.default_rng(0)
            )
            for pairs in ((), ((0, 3),))
        )
        np.testing.assert_array_equal(plain["semantic"], expected)
        if flip:
            left, right = plain["semantic"] == 0, plain["semantic"] == 3
            expected = np.where(left, 3, np.where(right, 0, expected))
        np.testing.assert_array_equal(swapped["semantic"], expected)
        np.testing.assert_array_equal(swapped["image"], plain["image"])


def test_segments_of_a_mirrored_example_exchange_their_classes():
    recipe = {**RECIPE, "ratio": (1.0, 1.0), "scale": (56, 48), "photometric": False, "flip": 1.0}
    recipe |= {"flip_pairs": ((1, 2),), "segments": "panoptic", "max_segments": 4}
    recipe |= {"layers": 1, "keep_empty": "yes"}
    segments = np.zeros((48, 56), np.int32)
    segments[:, 20:], segments[:, 40:] = 1, 2
    table = np.array([1, 2, 3], np.int32)
    example = {
        "image": noise_image(14, 48, 56),
        "semantic": table[segments].astype(np.int16),
        "segments": segments,
        "segment_class": table,
        "segment_is_crowd": np.zeros(3, bool),
    }
    found = transforms.train_example(example, recipe, np.random.default_rng(0))
    assert found["segment_class"].tolist() == [2, 1, 3, -1]
    np.testing.assert_array_equal(found["segment_class"][found["segments"]], found["semantic"])
    assert example["segment_class"].tolist() == [1, 2, 3]


def golden(name):
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"the golden case {name} is not beside the repository")
    arrays = dict(np.load(path))
    inputs = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith("input")}
    outputs = {
        key.split("/")[1]: value for key, value in arrays.items() if key.startswith("output")
    }
    return json.loads((GOLDEN / f"{name}.json").read_text())["run"]["args"], inputs, outputs


def test_photometric_operations_equal_the_official_ones():
    """The official images are BGR; so are the inputs and outputs of the case."""
    settings, inputs, outputs = golden("augment_fixed")
    image = np.ascontiguousarray(inputs["img"][..., ::-1])
    for name in ("brightness", "contrast", "saturation", "hue"):
        found = getattr(transforms, name)(image, settings[name])
        np.testing.assert_array_equal(found[..., ::-1], outputs[name], err_msg=name)
    scale = tuple(settings["resize_scale"])
    resized, labels = transforms.resize_keep_ratio(image, inputs["seg"].astype(np.int16), scale)
    np.testing.assert_array_equal(resized[..., ::-1], outputs["resized_img"])
    np.testing.assert_array_equal(labels, outputs["resized_seg"])


def test_test_time_sizes_equal_the_official_ones():
    settings, inputs, outputs = golden("test_pipeline")
    ratios = [ratio for ratio in settings["ratios"] for _ in range(1 + settings["flip"])]
    for ratio, expected in zip(ratios, outputs["sizes"], strict=True):
        size = transforms.rescaled_size(inputs["img"].shape[:2], settings["img_scale"], ratio)
        assert size == tuple(expected)
