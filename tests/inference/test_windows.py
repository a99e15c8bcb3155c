"""Plans: where windows lie, what they hold, and how region maps are joined."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segjax import config as configs
from segjax.errors import SegjaxError
from segjax.inference import windows
from segjax.inference.windows import Settings
from segjax.ops import assembly

SLIDE = Settings("slide", scale=(120, 60), crop=(32, 32), stride=(20, 24))


def test_windows_lie_where_mmsegmentation_lays_them():
    assert windows.starts(1024, 768, 512) == (0, 256)
    assert windows.starts(2048, 768, 512) == (0, 512, 1024, 1280)
    assert windows.starts(512, 512, 512) == (0,)
    assert windows.starts(513, 512, 512) == (0, 1)
    assert windows.starts(300, 512, 512) == (0,)


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 100))
def test_windows_cover_an_axis_and_stay_on_it(size, crop, stride):
    stride = min(stride, crop)
    first = windows.starts(size, crop, stride)
    assert first[0] == 0 and len(set(first)) == len(first)
    assert all(b - a <= stride for a, b in itertools.pairwise(first))
    assert first[-1] + crop >= size and (len(first) == 1 or first[-1] + crop == size)


def test_copies_come_plain_then_mirrored_for_each_ratio():
    settings = Settings("slide", (120, 60), (32, 32), (32, 32), ratios=(0.5, 1.0), flip=True)
    plan = windows.plan((50, 70), settings)
    assert [copy.size for copy in plan] == [(30, 42), (30, 42), (60, 84), (60, 84)]
    assert [copy.mirrored for copy in plan] == [False, True, False, True]
    assert [copy.grid for copy in plan] == [(1, 2), (1, 2), (2, 3), (2, 3)]


def test_cut_windows_hold_the_image_and_zeros_beyond_it():
    image = np.random.default_rng(0).integers(1, 256, (20, 50, 3)).astype(np.uint8)
    (copy,) = windows.plan_ready((20, 50), [(20, 50)], [False], SLIDE)
    cut, extents = windows.cut(image, copy)
    assert cut.shape == (2, 32, 32, 3) and cut.dtype == np.uint8
    np.testing.assert_array_equal(extents, [(20, 32), (20, 32)])
    np.testing.assert_array_equal(cut[0, :20], image[:, :32])
    np.testing.assert_array_equal(cut[1, :20], image[:, 18:])
    assert not cut[:, 20:].any()


def test_without_padding_a_window_is_as_small_as_the_image():
    settings = Settings("slide", (120, 60), (32, 32), (20, 24), pad_windows=False)
    (copy,) = windows.plan_ready((20, 50), [(20, 50)], [False], settings)
    assert copy.window == (20, 32)
    whole = Settings("whole", (120, 60), (32, 32), pad_windows=False)
    assert windows.plan((30, 70), whole)[0].window == (51, 120)


def test_a_whole_image_is_filled_up_to_the_crop_or_a_multiple_of_32():
    whole = Settings("whole", scale=(120, 60), crop=(64, 64))
    (copy,) = windows.plan((60, 70), whole)
    assert copy.size == (60, 70) and copy.window == (64, 96) and copy.grid == (1, 1)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_output_sizes_hold_the_image_with_little_to_spare(h, w):
    size = windows.output_size((h, w))
    for given_side, side in zip((h, w), size):
        assert given_side <= side <= max(given_side * 1.25 + 1, given_side + 63)
        assert side % assembly.ROW_TILE == 0 and side % assembly.COLUMN_TILE == 0


def test_there_are_few_output_sizes():
    assert len({windows.output_size((n, n)) for n in range(1, 4097)}) <= 20


def test_the_config_of_a_run_gives_the_settings():
    config = configs.load(configs.defaults(), ["--config.eval.crop=(640, 768)"])
    settings = Settings.of(config.eval)
    assert settings.crop == (640, 768) and settings.mode == "slide" and settings.ratios == (1.0,)
    assert Settings.of(settings) is settings


@pytest.mark.parametrize(
    "fault",
    [
        dict(mode="tiles"),
        dict(stride=(600, 512)),
        dict(crop=(0, 512)),
        dict(ratios=()),
        dict(ratios=(1.0, -0.5)),
        dict(batch=0),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_named(fault):
    with pytest.raises(SegjaxError, match=f"config.eval.{next(iter(fault))}"):
        Settings(**fault)


def test_region_maps_of_windows_become_one_with_numbers_of_its_own():
    settings = Settings("slide", (64, 32), (32, 32), (16, 16))
    (copy,) = windows.plan_ready((32, 48), [(32, 48)], [False], settings)  # columns 0 and 16
    regions = np.arange(4, dtype=np.int32).reshape(1, 2, 2).repeat(2, axis=0)
    joined = windows.join_regions(regions, copy)
    assert joined.shape == (32, 48)
    # The windows meet at column 24, half way between their centres; cells are 16 wide.
    np.testing.assert_array_equal(
        joined[0, [0, 15, 16, 23, 24, 31, 32, 47]], [0, 0, 1, 1, 4, 4, 5, 5]
    )
    np.testing.assert_array_equal(joined[16:], joined[:16] + 2)


def test_tokens_are_marked_once_and_inside_the_image():
    settings = Settings("slide", (64, 32), (32, 32), (16, 16))
    (copy,) = windows.plan_ready((60, 96), [(30, 48)], [False], settings)
    centres = windows.token_centres(copy, (2, 2))
    assert centres.tolist() == [[y, x] for y in (16, 48) for x in (16, 48, 80)]


def test_a_small_image_is_enlarged_to_the_window_as_segmenter_does():
    settings = Settings("slide", (120, 60), (64, 64), (48, 48), ratios=(0.5, 2.0), enlarge=True)
    half, double = windows.plan((50, 70), settings)
    assert half.scaled == (30, 42) and half.size == (64, int(42 / 30 * 64))
    assert double.scaled == double.size == (120, 168)
    assert half.grid == (1, 2) and half.columns.starts == (0, 89 - 64)
    assert windows.enlarged_size((40, 30), 64) == (85, 64)
    image = np.full((50, 70, 3), 77, np.uint8)
    cut, extents = windows.cut(windows.rescale(image, half), half)
    assert (cut == 77).all() and (extents == 64).all()
    with pytest.raises(SegjaxError, match=r"enlarge fills square sliding windows"):
        Settings("slide", crop=(64, 32), stride=(32, 32), enlarge=True)
