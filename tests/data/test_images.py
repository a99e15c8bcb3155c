"""Photographs and masks of every kind come out as a viewer shows them."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data import images
from segjax.errors import SegjaxError


def photo(height=24, width=36, seed=0):
    """A smooth picture, so that JPEG keeps it."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    planes = [
        128 + 100 * np.sin(x / 9 + a) * np.cos(y / 7 + b) for a, b in rng.uniform(0, 6, (3, 2))
    ]
    return np.stack(planes, axis=-1).astype(np.uint8)


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(form):
    image = photo()
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(
        images.read_image(saved(Image.fromarray(image), form, **options)), image
    )


def test_jpeg_is_decoded_as_opencv_decodes_it():
    data = saved(Image.fromarray(photo()), "JPEG", quality=90)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(images.read_image(data), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(form, orientation):
    """The corners of the result lie where Pillow's own transposition puts them."""
    image = photo(32, 48)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    data = saved(Image.fromarray(image), form, exif=exif, **options)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = Image.fromarray(image)
    upright = upright.transpose(turn[orientation]) if orientation in turn else upright
    found = images.read_image(data)
    assert found.shape == np.array(upright).shape
    assert images.image_size(data) == found.shape[:2]
    assert np.abs(found.astype(int) - np.array(upright)).max() <= (12 if form == "JPEG" else 0)


def test_grey_becomes_three_equal_channels():
    grey = photo()[..., 0]
    for form in ("PNG", "TIFF"):
        found = images.read_image(saved(Image.fromarray(grey), form))
        np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_laid_on_white():
    rgba = np.dstack([photo(), np.full((24, 36), 255, np.uint8)])
    rgba[0, 0] = (10, 20, 30, 0)
    rgba[0, 1] = (0, 100, 255, 51)  # a fifth
    found = images.read_image(saved(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(found[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(found[0, 1], (204, 224, 255))
    np.testing.assert_array_equal(found[1:], rgba[1:, :, :3])


def test_grey_with_alpha_and_transparent_palette_are_laid_on_white():
    clear = Image.fromarray(np.dstack([np.zeros((4, 4), np.uint8)] * 2))
    assert images.read_image(saved(clear, "PNG")).min() == 255
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 200, 100, 50])
    data = saved(palette, "PNG", transparency=0)
    np.testing.assert_array_equal(images.read_image(data), [[(255, 255, 255), (200, 100, 50)]])


@pytest.mark.parametrize("form", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_keep_their_range(form, channels):
    """65535 is 255 and 257 k is k; nothing above 255 is clipped."""
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    deep = values if channels == 1 else np.dstack([values] * channels)
    if channels == 4:
        deep[..., 3] = 65535
    data = cv2.imencode(form, deep)[1].tobytes()
    expected = np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(images.read_image(data), expected)


def test_sixteen_bit_colour_keeps_its_channel_order():
    deep = np.zeros((4, 4, 3), np.uint16)
    deep[..., 2] = 65535  # OpenCV writes BGR, so this is red
    for form in (".png", ".tiff"):
        found = images.read_image(cv2.imencode(form, deep)[1].tobytes())
        np.testing.assert_array_equal(found[0, 0], (255, 0, 0))


def test_palette_one_bit_and_cmyk_become_rgb():
    image = photo()
    palette = Image.fromarray(image).quantize(32)
    np.testing.assert_array_equal(
        images.read_image(saved(palette, "PNG")), np.array(palette.convert("RGB"))
    )
    bits = Image.fromarray(image[..., 0] > 128)
    np.testing.assert_array_equal(
        images.read_image(saved(bits, "PNG"))[..., 1], np.where(image[..., 0] > 128, 255, 0)
    )
    cmyk = saved(Image.fromarray(image).convert("CMYK"), "JPEG", quality=98)
    assert np.abs(images.read_image(cmyk).astype(int) - image).mean() < 4


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.read_image(data).max() == 40


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
def test_truncated_files_are_named(tmp_path, form):
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(saved(Image.fromarray(photo(200, 300)), form)[:-1500])
    with pytest.raises(SegjaxError, match=r"cut\.\w+: "):
        images.read_image(path)


def test_what_is_no_image_is_named(tmp_path):
    for name, content in (
        ("text.jpg", b"hello" * 99),
        ("empty.png", b""),
        ("cut.jpg", b"\xff\xd8\xff"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(SegjaxError, match=name):
            images.read_image(path)
        with pytest.raises(SegjaxError, match=name):
            images.read_labels(path)
    with pytest.raises(SegjaxError, match=r"gone\.jpg: there is no such file"):
        images.read_image(tmp_path / "gone.jpg")
    with pytest.raises(SegjaxError, match="cannot be opened"):
        images.read_image(tmp_path)


def test_a_jpeg_with_bytes_after_its_end_is_read():
    data = saved(Image.fromarray(photo()), "JPEG")
    assert not images.is_plain(data + b"trailer")
    difference = images.read_image(data + b"trailer").astype(int) - images.read_image(data)
    assert np.abs(difference).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_garbage_in_the_exif_does_not_matter():
    data = saved(Image.fromarray(photo()), "JPEG")
    for garbage in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40)):
        block = b"\xff\xe1" + (len(garbage) + 2).to_bytes(2, "big") + garbage
        odd = data[:2] + block + data[2:]
        np.testing.assert_array_equal(images.read_image(odd), images.read_image(data))
        assert images.image_size(odd) == (24, 36)


def test_labels_are_the_palette_index():
    labels = np.arange(60, dtype=np.uint8).reshape(6, 10)
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    found = images.read_labels(saved(picture, "PNG"))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_small_palettes_and_small_greys_are_not_stretched(bits):
    labels = np.random.default_rng(1).integers(0, 2**bits, (5, 9)).astype(np.uint8)
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette([7] * 768)
    np.testing.assert_array_equal(images.read_labels(saved(picture, "PNG", bits=bits)), labels)
    np.testing.assert_array_equal(images.read_labels(grey_png(labels, bits)), labels)


def grey_png(labels, bits):
    """A grey PNG of few bits, which Pillow can't write."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b""
    for row in labels:
        planes = (row[:, None] >> np.arange(bits)[::-1]) & 1
        rows += b"\0" + np.packbits(planes.ravel()).tobytes()
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    return (
        images.PNG
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_labels_of_sixteen_bits_are_whole():
    labels = np.array([[0, 300, 65535]], np.uint16)
    for form in (".png", ".tiff"):
        found = images.read_labels(cv2.imencode(form, labels)[1].tobytes())
        np.testing.assert_array_equal(found, labels)


def test_masks_in_colour_or_with_loss_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(photo()).save(path)
    with pytest.raises(SegjaxError, match=r"mask\.png: the mask is in colour \(mode RGB\)"):
        images.read_labels(path)
    path = tmp_path / "mask.jpg"
    Image.fromarray(photo()[..., 0]).save(path)
    with pytest.raises(SegjaxError, match=r"mask\.jpg: .*JPEG"):
        images.read_labels(path)
