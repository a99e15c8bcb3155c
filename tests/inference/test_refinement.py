"""Coarse masks become sharp; maps of classes and segments stay maps."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.data import images
from segjax.errors import SegjaxError
from segjax.inference import (
    draw_refinement,
    mask_files,
    refinement,
    refinement_pieces,
    result_files,
)
from segjax.inference.refinement import as_grey, box_of, memory, refine, refine_in_box
from segjax.inference.refiner import RefinedMask, Refiner
from tests.inference.toy_refiner import SEEN, VARIABLES, Brightness, blocky, disc, grown, scene

TOY = Brightness()
RELATIVE = Brightness(relative=True)

# --------------------------------------------------------------------------------------------------
# What a mask is


def test_every_usual_form_of_a_mask_means_the_same():
    mask = disc((20, 31))
    forms = [
        mask,
        mask.astype(float),
        mask.astype(np.float16),
        jnp.asarray(mask, jnp.bfloat16),
        mask.astype(np.uint8),
        mask.astype(np.int64),
        mask.astype(np.uint8) * 255,
        mask.astype(np.int32)[..., None] * 255,
        jnp.asarray(mask),
    ]
    for form in forms:
        grey = as_grey(form)
        assert grey.dtype == np.uint8
        np.testing.assert_array_equal(grey, np.where(mask, 255, 0))


def test_certainties_and_grey_levels_keep_their_shades():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(as_grey(levels), levels)
    np.testing.assert_array_equal(as_grey(levels / 255), levels)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_empty_and_full_masks_are_masks(dtype):
    assert (as_grey(np.zeros((3, 4), dtype)) == 0).all()
    assert (as_grey(np.ones((3, 4), dtype)) == 255).all()


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.array([[0, 1, 2]]), "integers from 0 to 2, which are neither 0 and 1 nor grey"),
        (np.array([[0, 127]], np.uint8), "refine it as a label map"),
        (np.array([[0, 65535]], np.uint16), "scale it to 8 bits"),
        (np.array([[-1, 255]]), "integers from -1 to 255"),
        (np.array([[0.0, 255.0]]), "divide grey levels by 255"),
        (np.array([[np.nan, 0.5]]), "certainties from 0 to 1"),
        (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\); a mask is \[height, width\]"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.array([["a"]]), "give bool, float 0..1 or uint8 0..255"),
    ],
    ids=["classes", "dark", "deep", "negative", "float 255", "nan", "colour", "nothing", "text"],
)
def test_an_ambiguous_mask_is_refused(mask, sentence):
    with pytest.raises(SegjaxError, match=sentence):
        as_grey(mask)


def test_image_and_mask_of_two_sizes_are_both_named():
    image, mask = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 31), bool)
    for refines in (refine, refine_in_box):
        with pytest.raises(SegjaxError, match="image is 30 x 20 pixels, but the mask is 31 x 20"):
            refines(TOY, VARIABLES, image, mask)
    with pytest.raises(SegjaxError, match="30 x 20 pixels, but the label map is 20 x 30; turn"):
        refinement.refine_labels(TOY, VARIABLES, image, np.zeros((30, 20), int))


def test_amounts_of_memory_are_read():
    assert memory("6GiB") == 6 * 2**30 and memory("4096MiB") == 2**32
    assert memory("6GB") == 6 * 10**9 and memory("1.5 kib") == 1536 and memory("1000") == 1000
    assert memory("") is memory(None) is memory("0") is None and memory(77) == 77
    for wrong in ("6 gigs", "-1", "GiB", "6,5GiB"):
        with pytest.raises(SegjaxError, match="is not an amount of memory; write"):
            memory(wrong)


# --------------------------------------------------------------------------------------------------
# One mask


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 40), (40, 1), (16, 128), (131, 17)])
def test_any_size_comes_back_as_it_is(size):
    truth = disc(size, radius=max(min(size) / 3, 1))
    probability = refine(TOY, VARIABLES, scene(truth), blocky(truth))
    assert probability.shape == size and probability.dtype == np.float32
    boxed = refine_in_box(TOY, VARIABLES, scene(truth), blocky(truth))
    assert boxed.shape == size


def test_the_last_turn_is_the_result_and_progress_reaches_the_total():
    truth = disc((40, 60))
    told = []
    probability = refine(
        TOY, VARIABLES, scene(truth), blocky(truth), progress=lambda *at: told.append(at)
    )
    np.testing.assert_array_equal(probability > 0.5, truth)
    every = list(refinement.turns(TOY, VARIABLES, scene(truth), as_grey(blocky(truth))))
    np.testing.assert_array_equal(every[-1], probability)
    assert told == [(1, 2), (2, 2)]


def test_a_full_device_is_one_sentence():
    class Greedy(Brightness):
        def turns(self, *args, **options):
            yield from super().turns(*args, **options)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    truth = disc((40, 60))
    with pytest.raises(SegjaxError, match="memory to refine 60 x 40 pixels; set a lower --max-mem"):
        refine(Greedy(), VARIABLES, scene(truth), blocky(truth))


def test_a_box_shows_the_object_with_its_surroundings():
    inside = np.zeros((400, 600), bool)
    inside[100:300, 50:70] = True
    assert box_of(inside) == (slice(68, 332), slice(18, 102))
    assert box_of(inside, margin=0.5) == (slice(0, 400), slice(18, 102))
    inside[:, -1] = True
    assert box_of(inside) == (slice(0, 400), slice(0, 600))
    assert box_of(np.zeros((4, 4), bool)) is None


def test_in_its_box_an_object_is_found_all_the_same():
    truth = disc((300, 400), centre=(100, 120), radius=20)
    coarse = blocky(truth)
    SEEN.clear()
    boxed = refine_in_box(TOY, VARIABLES, scene(truth), coarse, max_memory=10**9)
    ((size, allowed),) = SEEN
    assert size == (100, 100) and allowed == 10**9
    whole = refine(TOY, VARIABLES, scene(truth), coarse)
    box = box_of(coarse)
    np.testing.assert_array_equal(boxed[box], whole[box])
    boxed[box] = 0
    assert not boxed.any()


def test_nothing_in_a_box_is_nothing():
    SEEN.clear()
    nothing = refine_in_box(TOY, VARIABLES, scene(disc((30, 30))), np.zeros((30, 30), bool))
    assert not nothing.any() and not SEEN


# --------------------------------------------------------------------------------------------------
# Maps


def three_regions(size=(60, 90)):
    """A dark ground with a grey and a bright disc; truth and coarse labels 0, 7, 200."""
    truth = np.zeros(size, int)
    truth[disc(size, (size[0] * 0.5, size[1] * 0.3), size[0] * 0.3)] = 7
    truth[disc(size, (size[0] * 0.4, size[1] * 0.7), size[0] * 0.25)] = 200
    grey = np.select([truth == 7, truth == 200], [125, 220], 30)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8), truth, blocky(truth, 4)


def wins_by_definition(system, image, labels, skip=()):
    """The definition of `refine_labels`, with a stack of all classes."""
    values = [v for v in sorted(set(labels.flat)) if v not in skip]
    stack = np.stack([refine(system, VARIABLES, image, labels == value) for value in values])
    best = np.array(values)[stack.argmax(0)]
    return np.where(stack.max(0) > 0.5, best, labels)


@pytest.mark.parametrize("skip", [(), (7,), (0, 200)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_a_pixel_goes_to_the_surest_class(skip, dtype):
    image, truth, coarse = three_regions()
    refined = refinement.refine_labels(RELATIVE, VARIABLES, image, coarse.astype(dtype), skip=skip)
    assert refined.dtype == dtype and refined.shape == coarse.shape
    np.testing.assert_array_equal(refined, wins_by_definition(RELATIVE, image, coarse, skip))
    if not skip:
        assert (refined == truth).mean() > (coarse == truth).mean()


def test_no_value_appears_that_was_not_there():
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, 6, (33, 21)) * 50
    image = rng.integers(0, 256, (33, 21, 3)).astype(np.uint8)
    for in_box in (False, True):
        refined = refinement.refine_labels(TOY, VARIABLES, image, labels, in_box=in_box)
        assert set(np.unique(refined)) <= set(np.unique(labels))


def test_where_nothing_is_sure_the_coarse_label_stays():
    """A dark image has no object at all for the toy."""
    _, _, coarse = three_regions()
    image = np.zeros((*coarse.shape, 3), np.uint8)
    np.testing.assert_array_equal(refinement.refine_labels(TOY, VARIABLES, image, coarse), coarse)


def test_a_lone_segment_shrinks_into_what_has_no_segment():
    truth = disc((50, 50), radius=12)
    coarse = grown(truth, 3).astype(int)
    refined = refinement.refine_labels(RELATIVE, VARIABLES, scene(truth), coarse)
    np.testing.assert_array_equal(refined, truth)


def test_a_map_of_one_value_needs_no_network():
    SEEN.clear()
    labels = np.full((12, 9), 3, np.uint8)
    refined = refinement.refine_labels(TOY, VARIABLES, scene(labels == 3), labels)
    np.testing.assert_array_equal(refined, labels)
    assert not SEEN and refined is not labels


def test_in_boxes_a_class_wins_within_its_box_alone():
    image, truth, coarse = three_regions((200, 300))
    SEEN.clear()
    refined = refinement.refine_labels(RELATIVE, VARIABLES, image, coarse, in_box=True)
    sizes = [size for size, _ in SEEN]
    assert sizes[0] == (200, 300) and max(sizes[1:]) < (190, 190)
    for value in (7, 200):
        outside = np.ones(truth.shape, bool)
        outside[box_of(coarse == value)] = False
        assert not (refined[outside] == value).any()


def test_progress_of_a_map_is_by_area_and_never_goes_back():
    image, _, coarse = three_regions()
    told = []
    refinement.refine_labels(
        RELATIVE, VARIABLES, image, coarse, in_box=True, progress=lambda *at: told.append(at)
    )
    done, totals = zip(*told)
    assert list(done) == sorted(done) and len(set(totals)) == 1 and done[-1] == totals[0]


@pytest.mark.parametrize(
    "labels", [np.zeros((4, 4), bool), np.zeros((4, 4)), np.zeros((4, 4, 3), int)]
)
def test_a_label_map_is_a_map_of_integers(labels):
    with pytest.raises(SegjaxError, match="a label map is int"):
        refinement.refine_labels(TOY, VARIABLES, np.zeros((4, 4, 3), np.uint8), labels)


# --------------------------------------------------------------------------------------------------
# The callable


def test_a_refiner_takes_files_and_pictures_and_arrays(tmp_path):
    truth = disc((40, 60))
    image, coarse = scene(truth), as_grey(blocky(truth))
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(coarse).save(tmp_path / "mask.png")
    refiner = Refiner(TOY, VARIABLES, step=5)
    results = [
        refiner(tmp_path / "image.png", str(tmp_path / "mask.png")),
        refiner(Image.fromarray(image), Image.fromarray(coarse)),
        refiner((tmp_path / "image.png").read_bytes(), (tmp_path / "mask.png").read_bytes()),
        refiner(image, coarse / 255, max_memory="1GiB"),
    ]
    assert SEEN[-1][1] == 2**30
    for result in results:
        np.testing.assert_array_equal(result.probability, results[0].probability)
        np.testing.assert_array_equal(result.coarse, coarse)
    results[0].save(tmp_path / "fine.png")
    written = np.array(Image.open(tmp_path / "fine.png"))
    np.testing.assert_array_equal(written, np.floor(255 * results[0].probability))
    np.testing.assert_array_equal(written > 128, truth)
    with pytest.raises(SegjaxError, match=r"name it \.png"):
        results[0].save(tmp_path / "fine.jpg")


def test_the_mask_is_cut_to_integers_as_the_official_files_are():
    probability = np.array([[0.0, 0.5, 0.9999, 1.0, 129 / 255]], np.float32)
    result = RefinedMask(np.zeros((1, 5, 3), np.uint8), np.zeros((1, 5), np.uint8), probability)
    np.testing.assert_array_equal(result.mask, [[0, 127, 254, 255, 129]])


# --------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("size", [(300, 400), (1, 1), (1, 300), (800, 100), (31, 47)])
def test_before_and_after_are_drawn_at_any_size(size):
    truth = disc(size, radius=max(min(size) / 3, 1))
    picture = draw_refinement.close_up(scene(truth), blocky(truth), truth, truth)
    assert picture.height > draw_refinement.draw.PANEL and picture.width >= 240


def test_the_window_is_where_the_masks_differ_most():
    coarse = disc((600, 900), (300, 300), 100)
    refined = coarse.copy()
    refined[500:520, 700:720] ^= True
    refined[10:15, 10:15] ^= True
    rows, columns = draw_refinement.where_they_differ(coarse, refined)
    assert rows.start <= 500 and rows.stop >= 520
    assert columns.start <= 700 and columns.stop >= 720
    rows, columns = draw_refinement.where_they_differ(coarse, coarse)
    assert np.unique(coarse[rows, columns]).size == 2
    empty = np.zeros((600, 900), bool)
    assert draw_refinement.where_they_differ(empty, empty) == (slice(225, 375), slice(375, 525))


# --------------------------------------------------------------------------------------------------
# Files


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_the_kind_of_a_file_is_recognised(tmp_path):
    mask = disc((20, 30))
    grey = mask.astype(np.uint8)
    ids = np.where(mask, 70000, 3)
    rgb = result_files.colours_of(ids)
    palette = Image.fromarray(grey * 3)
    palette.putpalette(bytes(range(30)))
    palette.save(tmp_path / "palette.png")
    files = {
        "binary": [
            saved(tmp_path / "zero_one.png", grey),
            saved(tmp_path / "one_bit.png", mask),
            saved(tmp_path / "grey.png", grey * 255),
            saved(tmp_path / "rgb.png", np.repeat(grey[..., None] * 255, 3, -1)),
            saved(tmp_path / "rgba.png", np.dstack([grey * 255] * 3 + [np.full_like(grey, 255)])),
        ],
        "labels": [
            tmp_path / "palette.png",
            saved(tmp_path / "deep.png", grey.astype(np.uint16) * 300),
        ],
        "panoptic": [saved(tmp_path / "panoptic.png", rgb)],
    }
    for kind, paths in files.items():
        for path in paths:
            assert mask_files.read(path).kind == kind, path
    for path in files["binary"]:
        np.testing.assert_array_equal(mask_files.read(path).values, np.where(mask, 255, 0))
    np.testing.assert_array_equal(mask_files.read(files["panoptic"][0]).values, ids)
    assert mask_files.read(files["binary"][0], "labels").values.max() == 1


def test_a_file_whose_kind_is_ambiguous_is_refused(tmp_path):
    soft = saved(tmp_path / "soft.png", (disc((20, 30)) * 200).astype(np.uint8))
    with pytest.raises(SegjaxError, match="say which with --kind=binary or --kind=labels"):
        mask_files.read(soft)
    assert mask_files.read(soft, "binary").values.max() == 200
    assert mask_files.read(soft, "labels").kind == "labels"
    colour = saved(tmp_path / "colour.png", scene(disc((20, 30))))
    for kind in ("binary", "labels"):
        with pytest.raises(SegjaxError, match="it is in colour"):
            mask_files.read(colour, kind)
    with pytest.raises(SegjaxError, match="take --kind=labels"):
        mask_files.read(soft, "panoptic")
    clear = saved(tmp_path / "clear.png", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(SegjaxError, match="transparent in places"):
        mask_files.read(clear)
    lossy = saved(tmp_path / "mask.jpg", np.zeros((9, 9), np.uint8))
    with pytest.raises(SegjaxError, match="lost its exact values"):
        mask_files.read(lossy)


def test_an_object_with_a_smoothed_edge_is_recognised(tmp_path):
    """A map of many classes with void 255 is not."""
    edge = cv2.GaussianBlur(as_grey(disc((60, 80))), (0, 0), 0.8)
    assert len(np.unique(edge)) > 20
    found = mask_files.read(saved(tmp_path / "edge.png", edge))
    assert found.kind == "binary"
    np.testing.assert_array_equal(found.values, edge)
    classes = np.arange(6, dtype=np.uint8).repeat(10)[:, None] + np.zeros((1, 80), np.uint8)
    classes[:, ::20] = 255
    with pytest.raises(SegjaxError, match="up to 255"):
        mask_files.read(saved(tmp_path / "classes.png", classes))


def test_a_corrupt_file_is_named(tmp_path):
    whole = images.encode_png(np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(SegjaxError, match=r"cut\.png: the image is truncated"):
        mask_files.read(tmp_path / "cut.png")
    with pytest.raises(SegjaxError, match=r"empty\.png: the file is empty"):
        mask_files.read(tmp_path / "empty.png")
    with pytest.raises(SegjaxError, match=r"none\.png: there is no such file"):
        mask_files.read(tmp_path / "none.png")


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_labels_are_written_as_they_were(tmp_path, depth):
    labels = (disc((20, 30)) * (np.iinfo(depth).max - 1)).astype(depth)
    path = saved(tmp_path / "labels.png", labels)
    found = mask_files.read(path, "labels")
    mask_files.write(tmp_path / "again.png", found.values, found)
    written = np.array(Image.open(tmp_path / "again.png"))
    np.testing.assert_array_equal(written, labels)
    assert Image.open(tmp_path / "again.png").mode == Image.open(path).mode


def test_a_palette_is_kept(tmp_path):
    picture = Image.fromarray(disc((20, 30)).astype(np.uint8) * 5)
    colours = np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes()
    picture.putpalette(colours)
    picture.save(tmp_path / "labels.png")
    found = mask_files.read(tmp_path / "labels.png")
    mask_files.write(tmp_path / "again.png", found.values, found)
    again = Image.open(tmp_path / "again.png")
    assert again.mode == "P" and bytes(again.getpalette()) == colours
    np.testing.assert_array_equal(np.array(again), np.array(picture))


def test_rows_of_a_panoptic_json_follow_the_pixels():
    ids = np.zeros((10, 10), int)
    ids[2:5, 3:9], ids[9, 9] = 11, 300
    crowd = {"id": 300, "category_id": 4, "iscrowd": 1, "area": 50, "bbox": [0, 0, 9, 9], "x": 1}
    row = {
        "image_id": 5,
        "file_name": "a.png",
        "segments_info": [
            {"id": 11, "category_id": 2, "iscrowd": 0, "area": 1, "bbox": []},
            crowd,
            {"id": 12, "category_id": 2, "iscrowd": 0, "area": 7, "bbox": [1, 1, 1, 1]},
        ],
    }
    new = mask_files.refined_row(row, ids)
    assert new["image_id"] == 5
    assert [segment["id"] for segment in new["segments_info"]] == [11, 300]
    assert new["segments_info"][0] | {"area": 18, "bbox": [3, 2, 6, 3]} == new["segments_info"][0]
    assert new["segments_info"][1] == crowd | {"area": 1, "bbox": [9, 9, 1, 1]}


# --------------------------------------------------------------------------------------------------
# Pieces


def test_a_class_is_split_where_its_parts_lie_apart():
    labels = np.zeros((200, 400), np.uint8)
    labels[20:100, 20:80] = labels[20:100, 86:140] = 5  # six pixels apart: one piece
    labels[60:160, 250:350] = 5
    labels[150:170, 20:60] = 7  # too small
    labels[110:150, 60:140] = 9
    found = list(refinement_pieces.pieces(labels))
    assert [piece.label for piece in found] == [5, 5, 9]
    near, far, low = found
    assert near.box == (slice(11, 108), slice(6, 153))
    assert far.box == (slice(48, 171), slice(238, 361))
    assert near.mask.sum() == 79 * (59 + 54) and not near.mask[:, 74:80].any()  # the gap stays
    assert far.mask.sum() == 99 * 99 and (labels[far.box][far.mask] == 5).all()
    assert low.mask.sum() == 39 * 79


def test_a_pixel_goes_to_the_surest_piece_by_weight():
    """Two classes claim what is bright; the one that counts half loses it."""
    labels = np.full((90, 150), 0, np.int32)
    labels[10:80, 10:75], labels[10:80, 75:140] = 5, 4
    image = np.full((90, 150, 3), 250, np.uint8)
    even = refinement_pieces.refine_pieces(TOY, VARIABLES, image, labels, weights={})
    half = refinement_pieces.refine_pieces(TOY, VARIABLES, image, labels)
    assert (even[20:70, 72:75] == 4).all() and (even[20:70, 75:79] == 4).all()
    assert (half[20:70, 72:79] == 5).all() and 4 in refinement_pieces.LARGE
    assert set(np.unique(half)) == {0, 4, 5}
