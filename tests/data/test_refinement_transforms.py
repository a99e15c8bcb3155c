"""The recipe of refinement: a crop as it is, and a coarse mask made of the exact one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from segjax import config as configs
from segjax.data import loader, perturb, set_transforms
from segjax.data import refinement_transforms as recipe
from segjax.errors import SegjaxError

AUGMENT = {
    "recipe": "refine",
    "crop": (48, 40),
    "flip": 0.5,
    "iou_target": (0.8, 1.0),
    "shape_choice": "fixed",
    "photometric": True,
    "segments": "",
}


def example(shape=(70, 90), seed=0):
    """An image that tells where each pixel comes from, and a grey disc."""
    y, x = np.indices(shape)
    image = np.stack([y, x, np.full(shape, 100)], axis=-1).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    middle = (shape[1] // 2, shape[0] // 2)
    cv2.circle(mask, middle, min(shape) // 3, 255, -1)
    mask[mask > 0] -= (x[mask > 0] % 3).astype(np.uint8)  # antialiased masks have such greys
    return {"image": image, "mask": mask, "name": "one"}


def made(seed=0, given=None, **changes):
    rng = np.random.default_rng(seed)
    return set_transforms.train_example(given or example(), AUGMENT | changes, rng)


def test_arrays_are_those_of_the_batch_contract():
    arrays = made()
    shapes = {name: (value.shape, value.dtype.type) for name, value in arrays.items()}
    assert shapes == set_transforms.batch_shapes(AUGMENT)
    assert arrays["image_size"].tolist() == [48, 40]


def test_a_crop_is_cut_out_unchanged_and_masks_stay_grey():
    given = example()
    corners = set()
    for seed in range(30):
        arrays = made(seed, photometric=False, flip=0.0)
        top, left = (int(value) for value in arrays["image"][0, 0, :2])
        window = slice(top, top + 48), slice(left, left + 40)
        np.testing.assert_array_equal(arrays["image"], given["image"][window])
        np.testing.assert_array_equal(arrays["mask"], given["mask"][window])
        corners.add((top, left))
    tops, lefts = zip(*corners)
    assert max(tops) <= 70 - 48 and max(lefts) <= 90 - 40 and len(corners) > 20


def test_a_mirrored_image_has_a_mirrored_mask():
    plain, mirrored = (made(3, photometric=False, flip=flip) for flip in (0.0, 1.0))
    for name in ("image", "mask"):
        np.testing.assert_array_equal(mirrored[name], plain[name][:, ::-1])


def test_a_small_image_lies_anywhere_in_black():
    """Missing pixels are added on both sides, then the crop is taken: no side is preferred."""
    given = example((20, 90))
    places = set()
    for seed in range(200):
        arrays = made(seed, given, photometric=False, flip=0.0)
        rows = np.flatnonzero(arrays["image"][..., 2].any(axis=1))
        assert len(rows) == 20 and not np.delete(arrays["mask"], rows, axis=0).any()
        places.add(int(rows[0]))
    assert places == set(range(48 - 20 + 1))


def test_the_coarse_mask_is_the_perturbed_crop():
    """Of the range of targets, its one number here."""
    arrays = made(5, iou_target=(0.9, 0.9), flip=0.0, photometric=False)
    rng = np.random.default_rng(5)
    recipe.draw_corner((70, 90), (48, 40), rng)
    rng.random(), rng.uniform(0.9, 0.9)
    expected = perturb.perturb(arrays["mask"], 0.9, perturb.GeneratorDraws(rng))
    np.testing.assert_array_equal(arrays["coarse_mask"], expected)
    assert set(np.unique(expected)) == {0, 255}


def test_colours_change_little_and_some_images_lose_them():
    """Factors of brightness reach 1.2, of contrast and saturation 1.05; a tenth is grey."""
    given = {"image": np.full((60, 60, 3), (150, 100, 60), np.uint8), "mask": example()["mask"]}
    given["mask"] = given["mask"][:60, :60]
    greys, means = 0, []
    for seed in range(150):
        image = made(seed, given)["image"]
        colour = image[20, 20].astype(int)
        if np.ptp(colour) == 0:
            greys += 1
        else:
            means.append(colour)
    means = np.array(means)
    assert 5 <= greys <= 30
    assert means[:, 0].min() >= 150 * 0.8 * 0.9 and means[:, 0].max() <= 150 * 1.2 * 1.1
    assert means[:, 0].std() > 10
    unchanged = made(0, given, photometric=False)["image"]
    assert (unchanged == (150, 100, 60)).all()


def test_jitter_is_pillows():
    """Mixing with black, with the mean grey, and with greys, each cut to bytes, in any order."""
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    same = recipe.color_jitter(image, 1.0, 1.0, 1.0, np.array([2, 0, 1]))
    np.testing.assert_array_equal(same, image)
    dark = recipe.color_jitter(image, 0.5, 1.0, 1.0, np.array([0, 1, 2]))
    np.testing.assert_array_equal(dark, image // 2)
    flat = recipe.color_jitter(image, 1.0, 0.0, 1.0, np.array([0, 1, 2]))
    assert np.ptp(flat) == 0
    grey = recipe.color_jitter(image, 1.0, 1.0, 0.0, np.array([0, 1, 2]))
    np.testing.assert_array_equal(grey, recipe.without_colours(image))
    one, other = (
        recipe.color_jitter(image, 1.2, 0.95, 1.05, np.array(order))
        for order in ([0, 1, 2], [1, 2, 0])
    )
    assert (one != other).any()


def test_an_example_without_a_mask_is_an_error():
    with pytest.raises(SegjaxError, match=r"one: it has no mask.*shapescapes_masks"):
        made(0, {"image": example()["image"], "semantic": None, "name": "one"})


class Examples:
    """A dataset of three."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return example(seed=index) | {"name": f"{index}"}


def test_batches_come_from_the_loader():
    batches = loader.train_batches(Examples(), AUGMENT, 4, seed=3)
    try:
        batch, names = next(batches)
    finally:
        batches.close()
    shapes = set_transforms.batch_shapes(AUGMENT) | {"valid": ((), np.bool_)}
    assert {name: (value.shape, value.dtype.type) for name, value in batch.items()} == {
        name: ((4, *shape), dtype) for name, (shape, dtype) in shapes.items()
    }
    assert len(names) == 4 and batch["valid"].all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iou_target": (0.9, 0.8)}, r"augment\.iou_target is \(0\.9, 0\.8\)"),
        ({"iou_target": (0.9, 1.8)}, r"augment\.iou_target"),
        ({"shape_choice": "bug"}, r"augment\.shape_choice: there is no 'bug'"),
        ({"segments": "classes"}, r"augment\.segments is 'classes'"),
    ],
)
def test_settings_that_cannot_be_are_named(fields, message):
    with pytest.raises(SegjaxError, match=message):
        configs.load({"augment": {"recipe": "refine"} | fields})
