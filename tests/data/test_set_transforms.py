"""The recipes of set prediction equal their definitions, and no segment is lost in silence."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segjax import config as configs
from segjax.data import datasets, loader, segments, set_transforms, transforms
from segjax.errors import SegjaxError
from segjax.structs import IGNORE

COMMON = {
    "crop": (32, 40),
    "flip": 0.5,
    "photometric": False,
    "segments": "panoptic",
    "max_segments": 6,
    "layers": 2,
    "keep_empty": "official",
}
RECIPES = {
    "scale_crop": {"scale": (96, 48), "ratio": (0.5, 2.0), "cat_max_ratio": 0.75},
    "large_scale_jitter": {"jitter": (0.1, 2.0)},
    "shortest_edge": {"shorts": (24, 36, 60), "longest": 144},
    "detr": {"shorts": (20, 28), "longest": 40, "crop": (40, 40)},
}


def settings(recipe, **changes):
    return {**COMMON, **RECIPES[recipe], "recipe": recipe, **changes}


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def striped(height=30, width=50):
    """Four upright stripes: stuff 3, a thing 5, a crowd of 5, a thing 6; void on the right edge."""
    stripes = np.minimum(np.arange(width) // 12, 4)
    drawn = np.array([0, 1, 2, 3, -1], np.int32)[stripes]
    stripe = np.broadcast_to(drawn, (height, width))
    classes = np.array([3, 5, 5, 6], np.int32)
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = 40 * (stripe[..., None] + 2)
    return {
        "image": image,
        "semantic": np.append(classes, IGNORE)[stripe].astype(np.int16),
        "segments": stripe.copy(),
        "segment_class": classes,
        "segment_is_crowd": np.array([False, False, True, False]),
        "segment_is_thing": np.array([False, True, True, True]),
        "name": "striped",
    }


# Sizes and resizing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((1024, 2048), 1024, 2048, (1024, 2048)),
        ((2448, 3264), 2048, 2048, (1536, 2048)),
        ((3, 7), 5, 100, (5, 12)),  # 11.67
        ((100, 101), 50, 50, (50, 50)),  # 50 and 50.5, then 49.505 and 50: both rounded half up
    ],
)
def test_shortest_edge_size(size, short, longest, expected):
    assert set_transforms.shortest_edge_size(size, short, longest) == expected


@pytest.mark.parametrize("size", [(5, 9), (31, 20), (62, 40), (47, 33)])
def test_maps_are_resized_to_the_pixel_below_the_centre(size):
    labels = np.random.default_rng(0).integers(-1, 30000, (31, 20)).astype(np.int32)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip((31, 20), size)
    )
    found = set_transforms.resize_centres(labels, size)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, labels[rows][:, columns])


def test_floor_resize_equals_torch_nearest_of_doubles():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for _ in range(60):
        old, new = (tuple(int(n) for n in rng.integers(1, 300, 2)) for _ in range(2))
        labels = np.arange(old[0] * old[1]).reshape(old)
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(labels.astype(np.float64))[None, None], size=new, mode="nearest"
        )
        ours = set_transforms.resize_floor(labels, new)
        np.testing.assert_array_equal(ours, theirs[0, 0].numpy().astype(int), str((old, new)))


# Colour -------------------------------------------------------------------------------------------


def test_colour_steps_come_in_the_order_of_the_coin():
    image = noise(0, 9, 11)
    first = transforms.contrast(transforms.brightness(image, 12.5), 1.3)
    first = transforms.hue(transforms.saturation(first, 0.7), -9)
    last = transforms.saturation(transforms.brightness(image, 12.5), 0.7)
    last = transforms.contrast(transforms.hue(last, -9), 1.3)
    for contrast_first, expected in ((True, first), (False, last)):
        found = set_transforms.color_jitter_ssd(image, 12.5, contrast_first, 1.3, 0.7, -9)
        np.testing.assert_array_equal(found, expected)
    assert (first != last).any()


def test_colour_steps_can_be_left_out():
    image = noise(1, 6, 6)
    np.testing.assert_array_equal(set_transforms.color_jitter_ssd(image), image)
    found = set_transforms.color_jitter_ssd(image, hue_shift=18)
    np.testing.assert_array_equal(found, transforms.hue(image, 18))


def test_colour_draws_have_their_ranges_and_probabilities():
    rng = np.random.default_rng(0)
    draws = [set_transforms.draw_color_jitter(rng) for _ in range(3000)]
    for name, low, high in (
        ("brightness_delta", -32, 32),
        ("contrast_factor", 0.5, 1.5),
        ("saturation_factor", 0.5, 1.5),
        ("hue_shift", -18, 18),
    ):
        values = np.array([draw[name] for draw in draws if draw[name] is not None])
        assert abs(len(values) / 3000 - 0.5) < 0.04
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    assert {draw["hue_shift"] for draw in draws} == {None, *range(-18, 19)}
    assert abs(np.mean([draw["contrast_first"] for draw in draws]) - 0.5) < 0.04


# Large-scale jitter -------------------------------------------------------------------------------


def plain_jitter(image, labels, target, flip, scale, place):
    """The definition, a step a line."""
    if flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    factor = min(target[0] * scale / image.shape[0], target[1] * scale / image.shape[1])
    height, width = np.round(np.array(image.shape[:2]) * factor).astype(int)
    image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    labels = labels[rows][:, columns]
    top = int(np.round(max(height - target[0], 0) * place))
    left = int(np.round(max(width - target[1], 0) * place))
    out_image = np.full((*target, 3), 128, np.uint8)
    out_labels = np.full(target, -1, labels.dtype)
    for y in range(min(target[0], height)):
        for x in range(min(target[1], width)):
            out_image[y, x] = image[top + y, left + x]
            out_labels[y, x] = labels[top + y, left + x]
    return out_image, out_labels


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [0.13, 0.7, 1.0, 1.9])
def test_large_scale_jitter_is_its_definition(flip, scale):
    image = noise(2, 37, 50)
    labels = np.random.default_rng(3).integers(-1, 9, (37, 50)).astype(np.int16)
    for place in (0.0, 0.37, 1.0):
        expected = plain_jitter(image, labels, (32, 40), flip, scale, place)
        found_image, (found,) = set_transforms.large_scale_jitter(
            image, [labels], (32, 40), flip, scale, place
        )
        np.testing.assert_array_equal(found_image, expected[0])
        np.testing.assert_array_equal(found, expected[1])
        assert found.dtype == np.int16


def test_a_mirrored_image_flipped_is_the_image():
    image, labels = noise(4, 33, 47), np.random.default_rng(5).integers(0, 9, (33, 47))
    draws = dict(scale_draw=1.4, crop_draw=0.6)
    once = set_transforms.large_scale_jitter(image, [labels], (32, 40), False, **draws)
    twice = set_transforms.large_scale_jitter(
        image[:, ::-1], [labels[:, ::-1]], (32, 40), True, **draws
    )
    np.testing.assert_array_equal(once[0], twice[0])
    np.testing.assert_array_equal(once[1][0], twice[1][0])


def test_a_sliver_keeps_a_pixel():
    image, maps = set_transforms.large_scale_jitter(
        noise(6, 2, 400), [np.zeros((2, 400), int)], (40, 40), False, 0.1, 0.5
    )
    assert image.shape == (40, 40, 3) and (maps[0] >= 0).sum() == 4


# Whole examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "classes", "panoptic", "instance"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_examples_have_the_shapes_that_are_told(recipe, kind):
    augment = settings(recipe, segments=kind, photometric=True)
    for seed in range(4):
        found = set_transforms.train_example(striped(), augment, np.random.default_rng(seed))
        expected = {
            name: (shape, np.dtype(dtype))
            for name, (shape, dtype) in set_transforms.batch_shapes(augment).items()
        }
        assert {name: (a.shape, a.dtype) for name, a in found.items()} == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_generator_alone_decides(recipe):
    example, augment = striped(), settings(recipe, photometric=True)
    before = {name: np.copy(value) for name, value in example.items() if name != "name"}
    results = [
        set_transforms.train_example(example, augment, np.random.default_rng(seed))
        for seed in (0, 0, 1, 2, 3)
    ]
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
    assert len({result["image"].tobytes() for result in results}) > 1
    for name, value in before.items():
        np.testing.assert_array_equal(example[name], value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_segments_stay_on_their_pixels(recipe):
    """Where a segment is, the class map has its class, but for a pixel at its borders."""
    for seed in range(12):
        found = set_transforms.train_example(
            striped(), settings(recipe), np.random.default_rng(seed)
        )
        drawn, table = found["segments"], found["segment_class"]
        assert table.tolist() == [3, 5, 6, -1, -1, -1]
        at = drawn >= 0
        wrong = table[drawn[at]] != found["semantic"][at]
        assert wrong.sum() <= (3 * drawn.shape[0] if recipe == "shortest_edge" else 0)
        crowd_or_void = (found["semantic"] == IGNORE) & ~at
        assert (drawn[crowd_or_void] == -1).all()
        assert not found["segment_is_crowd"].any() and found["segment_overflow"] == 0
        inner = np.zeros(drawn.shape, bool)
        inner[: found["image_size"][0], : found["image_size"][1]] = True
        assert (drawn[~inner] == -1).all() and (found["semantic"][~inner] == IGNORE).all()


def test_grey_padding_counts_as_image_and_zeros_do_not():
    small = settings("large_scale_jitter", jitter=(0.3, 0.3))
    found = set_transforms.train_example(striped(), small, np.random.default_rng(0))
    assert found["image_size"].tolist() == [32, 40]
    assert (found["image"][20:] == 128).all() and (found["semantic"][20:] == IGNORE).all()
    small = settings("shortest_edge", shorts=(10,))
    found = set_transforms.train_example(striped(), small, np.random.default_rng(0))
    assert found["image_size"].tolist() == [32, 40]
    assert (found["image"][10:] == 128).all()
    found = set_transforms.train_example(striped(), settings("detr"), np.random.default_rng(0))
    rows, columns = found["image_size"]
    assert rows < 40 and columns <= 40 and (found["image"][rows:] == 0).all()


def test_the_shortest_edge_crop_is_a_window_of_the_resized_image():
    example = {**striped(), "image": noise(7, 30, 50)}
    augment = settings("shortest_edge", shorts=(48,), flip=0.0)
    for seed in range(3):
        found = set_transforms.train_example(example, augment, np.random.default_rng(seed))
        resized = set_transforms.resize_photo(example["image"], (48, 80))
        semantic = set_transforms.resize_floor(example["semantic"], (48, 80))
        places = [
            (top, left)
            for top in range(17)
            for left in range(41)
            if (resized[top : top + 32, left : left + 40] == found["image"]).all()
        ]
        assert len(places) == 1
        top, left = places[0]
        expected = semantic[top : top + 32, left : left + 40]
        np.testing.assert_array_equal(found["semantic"], expected)


def test_detr_crops_half_of_the_images():
    example, augment = striped(60, 80), settings("detr")
    rng = np.random.default_rng(0)
    sizes = [
        set_transforms.detr(example["image"], [], augment, rng, (30, 40), (12, 20))[0].shape[:2]
        for _ in range(200)
    ]
    # Uncropped, 60 x 80 becomes 20 x 27 or 28 x 37.
    plain = sum(size in ((20, 27), (28, 37)) for size in sizes)
    assert 75 < plain < 130
    assert max(max(size) for size in sizes) <= 40


# Targets ------------------------------------------------------------------------------------------


def whole(kind, example, **changes):
    """Targets of the unchanged example."""
    augment = settings("large_scale_jitter", segments=kind, **changes)
    return segments.targets(
        segments.layers_of(example, kind), example["semantic"], example, augment
    )


def test_classes_are_one_segment_each_in_their_order():
    found = whole("classes", striped())
    assert found["segment_class"].tolist() == [3, 5, 6, -1, -1, -1]
    expected = np.select([striped()["semantic"] == c for c in (3, 5, 6)], [0, 1, 2], -1)
    np.testing.assert_array_equal(found["segments"], expected)


def test_panoptic_segments_leave_out_crowds():
    found = whole("panoptic", striped())
    assert found["segment_class"].tolist() == [3, 5, 6, -1, -1, -1]
    expected = np.array([0, 1, -1, 2])[striped()["segments"]]
    expected[striped()["segments"] < 0] = -1
    np.testing.assert_array_equal(found["segments"], expected)


def test_instances_leave_out_stuff_and_crowds():
    found = whole("instance", striped())
    assert found["segment_class"].tolist() == [5, 6, -1, -1, -1, -1]
    np.testing.assert_array_equal(found["segments"][0] == 1, striped()["segments"] == 3)
    assert found["segments"].shape == (2, 30, 50) and (found["segments"][1] == -1).all()


@pytest.mark.parametrize(
    ("kind", "recipe", "keep_empty", "kept"),
    [
        ("panoptic", "large_scale_jitter", "official", True),
        ("panoptic", "large_scale_jitter", "no", False),
        ("panoptic", "scale_crop", "official", True),
        ("instance", "large_scale_jitter", "official", False),
        ("instance", "large_scale_jitter", "yes", True),
        ("instance", "shortest_edge", "official", True),
        ("instance", "scale_crop", "official", False),
    ],
)
def test_segments_that_were_cropped_away(kind, recipe, keep_empty, kept):
    example = striped()
    gone = {**example, "segments": np.where(example["segments"] == 1, -1, example["segments"])}
    augment = settings(recipe, segments=kind, keep_empty=keep_empty)
    layers = segments.layers_of(gone, kind)
    found = segments.targets(layers, gone["semantic"], gone, augment)
    classes = found["segment_class"][found["segment_class"] >= 0].tolist()
    assert (5 in classes) == kept
    assert found["segment_overflow"] == 0
    last = found["segments"] == len(classes) - 1  # the order is kept: class 6 is the last one
    assert (last.reshape(-1, 30, 50).any(0) == (example["segments"] == 3)).all()


@pytest.mark.parametrize("kind", ["classes", "panoptic", "instance"])
def test_of_too_many_the_largest_stay_in_their_order_and_the_rest_is_counted(kind):
    example = striped()
    widths = np.repeat([0, 1, 2, 3, 4], [5, 20, 4, 15, 6])
    example["segments"] = np.broadcast_to(widths.astype(np.int32), (30, 50)).copy()
    example["segment_class"] = np.array([1, 2, 3, 4, 5], np.int32)
    example["segment_is_crowd"] = np.zeros(5, bool)
    example["segment_is_thing"] = np.ones(5, bool)
    example["semantic"] = example["segment_class"][example["segments"]].astype(np.int16)
    found = whole(kind, example, max_segments=3)
    assert found["segment_class"].tolist() == [2, 4, 5]
    assert found["segment_overflow"] == 2
    areas = np.bincount(found["segments"].ravel() + 1, minlength=4)[1:]
    assert areas.tolist() == [600, 450, 180]


def test_layers_without_room_are_counted():
    example = striped()
    layers = np.full((3, 30, 50), -1, np.int32)
    layers[0, :5], layers[1, 3:8], layers[2, 4:9] = 0, 1, 3
    example["segments"] = layers
    example["segment_is_thing"] = np.ones(4, bool)
    found = whole("instance", example, layers=2)
    assert found["segment_class"].tolist() == [3, 5, -1, -1, -1, -1]
    assert found["segment_overflow"] == 1
    np.testing.assert_array_equal(found["segments"] >= 0, layers[:2] >= 0)
    found = whole("instance", example, layers=3)
    assert found["segment_overflow"] == 0 and found["segment_class"][2] == 6
    with pytest.raises(SegjaxError, match=r"striped: its instances overlap.*'instance'"):
        whole("panoptic", example)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["classes", "panoptic", "instance"])
def test_an_image_without_segments_is_no_fault(recipe, kind):
    example = striped()
    example["segments"][:] = -1
    example["semantic"][:] = IGNORE
    for name in ("segment_class", "segment_is_crowd", "segment_is_thing"):
        example[name] = example[name][:0]
    augment = settings(recipe, segments=kind)
    found = set_transforms.train_example(example, augment, np.random.default_rng(0))
    assert (found["segments"] == -1).all() and (found["segment_class"] == -1).all()
    assert found["segment_overflow"] == 0


# Config and loader --------------------------------------------------------------------------------


def test_batches_of_the_loader_carry_segments(tmp_path):
    dataset = datasets.load(
        {"name": "shapescapes", "size": (32, 48), "train": 6}, "train", str(tmp_path)
    )
    for recipe in RECIPES:
        config = configs.load({"augment": settings(recipe, max_segments=20)})
        batches = loader.train_batches(dataset, config.augment, 3)
        try:
            batch, _ = next(batches)
        finally:
            batches.close()
        expected = {
            name: ((3, *shape), np.dtype(dtype))
            for name, (shape, dtype) in set_transforms.batch_shapes(config.augment).items()
        }
        expected["valid"] = ((3,), np.dtype(bool))
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == expected
        assert (batch["segments"] >= 0).any()


def test_a_dataset_without_instances_is_told_through_the_loader():
    class Plain(list):
        pass

    example = {name: striped()[name] for name in ("image", "semantic", "name")}
    batches = loader.train_batches(Plain([example]), settings("large_scale_jitter"), 1)
    try:
        with pytest.raises(SegjaxError, match=r"config\.augment\.segments is 'panoptic'"):
            next(batches)
    finally:
        batches.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(recipe="lsj"), r"config\.augment\.recipe: there is no 'lsj'"),
        (dict(segments="things"), r"config\.augment\.segments: there is no 'things'"),
        (dict(recipe="shortest_edge"), r"config\.augment\.shorts is \(\)"),
        (
            dict(recipe="detr", shorts=(480,), longest=1333),
            r"config\.augment\.crop is \(512, 512\)",
        ),
        (dict(recipe="large_scale_jitter", jitter=(2.0, 0.1)), r"config\.augment\.jitter"),
        (dict(max_segments=0), r"config\.augment\.max_segments is 0"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(fields, message):
    with pytest.raises(SegjaxError, match=message):
        configs.load({"augment": fields})
