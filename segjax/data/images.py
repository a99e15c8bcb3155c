"""Reading photographs and label maps, whatever wrote them.

Plain 8-bit JPEG and PNG go through OpenCV, as in the official pipelines (and so have the same
pixels); everything else goes through Pillow.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from segjax.errors import SegjaxError

PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
_ORIENTATION = 274  # the EXIF tag
_LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(source: str | os.PathLike[str] | bytes, name: str = "") -> np.ndarray:
    """Reads a photograph as a viewer shows it.

    The EXIF rotation is applied. Grey, palette, 1-bit and CMYK pictures become RGB; a transparent
    one is laid on white; 16-bit values v become round(v / 257), so the whole range is kept; of an
    animation the first frame is taken.

    Args:
        source: a path, or the bytes of a file.
        name: what to call it in errors; by default the path.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        SegjaxError: missing, truncated, or not an image.
    """
    data, name = _bytes(source, name)
    if is_plain(data):
        # IMREAD_COLOR applies the EXIF rotation.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    try:
        return _read_any(data)
    except SegjaxError:
        raise
    except Exception as error:
        raise SegjaxError(_unreadable(data, name, error)) from None


def read_labels(source: str | os.PathLike[str] | bytes, name: str = "") -> np.ndarray:
    """Reads a label map as numbers: the palette index, the grey value, or 0 and 1.

    Args:
        source: a path, or the bytes of a file.
        name: what to call it in errors; by default the path.

    Returns:
        int32 [H, W].

    Raises:
        SegjaxError: missing, truncated, not an image, in colour, or stored with loss.
    """
    data, name = _bytes(source, name)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            mode, form = picture.mode, picture.format
            if form == "JPEG":
                raise SegjaxError(
                    f"{name}: a mask stored as JPEG has lost its exact values; save masks as PNG."
                )
            if mode not in _LABEL_MODES:
                raise SegjaxError(
                    f"{name}: the mask is in colour (mode {mode}); save class numbers as a grey or"
                    " palette PNG."
                )
            labels = np.array(picture).astype(np.int32)
    except SegjaxError:
        raise
    except Exception as error:
        raise SegjaxError(_unreadable(data, name, error)) from None
    if mode == "L" and data.startswith(PNG) and data[24] in (2, 4):
        labels //= 255 // (2 ** data[24] - 1)  # decoders stretch 2- and 4-bit grey to 0..255
    return labels


def image_size(data: bytes, name: str = "") -> tuple[int, int]:
    """(height, width) of the picture `read_image` would return; plain files are not decoded."""
    if is_plain(data) and data.startswith(PNG):
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    if is_plain(data):
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION, 1) >= 5
            return (width, height) if turned else (height, width)
    height, width = read_image(data, name).shape[:2]
    return height, width


def is_plain(data: bytes) -> bool:
    """Whether these bytes are a whole 8-bit grey or RGB JPEG or PNG that OpenCV reads right.

    A file that ends before its end marker, or has something after it, is not plain.
    """
    if data.startswith(JPEG):
        header = _jpeg_header(data)
        return (
            header is not None
            and header.bits == 8
            and header.channels in (1, 3)
            and data.endswith(JPEG_END)
        )
    if data.startswith(PNG):
        return len(data) > 33 and data.endswith(PNG_END) and _plain_png(data)
    return False


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of uint8 [H, W, 3] RGB, or of uint8 or uint16 [H, W]."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", array, (cv2.IMWRITE_PNG_COMPRESSION, 2))
    if not done:
        raise ValueError(f"OpenCV could not encode an array of shape {array.shape} as PNG.")
    return data.tobytes()


def _bytes(source: str | os.PathLike[str] | bytes, name: str) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name or "image"
    name = name or os.fspath(source)
    try:
        with open(source, "rb") as file:
            return file.read(), name
    except FileNotFoundError:
        raise SegjaxError(f"{name}: there is no such file.") from None
    except OSError as error:
        raise SegjaxError(f"{name}: it cannot be opened ({error.strerror}).") from None


def _unreadable(data: bytes, name: str, error: Exception) -> str:
    if not data:
        return f"{name}: the file is empty."
    if "truncated" in str(error).lower() or _cut(data):
        return f"{name}: the image is truncated; copy or download the file again."
    return f"{name}: this is not an image that can be read ({type(error).__name__})."


def _cut(data: bytes) -> bool:
    jpeg = data.startswith(JPEG) and JPEG_END not in data[-65536:]
    return jpeg or (data.startswith(PNG) and PNG_END not in data[-65536:])


def _read_any(data: bytes) -> np.ndarray:
    """The slow and general path."""
    deep = data.startswith(PNG) and len(data) > 25 and data[24] == 16 and data[25] != 0
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        return _deep_colour(data, 1)  # e.g. 16-bit RGB TIFF, which Pillow does not know
    with picture:
        if deep:
            picture.load()  # OpenCV is silent about truncation
            return _deep_colour(data, picture.getexif().get(_ORIENTATION, 1))
        picture.seek(0)
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
            return _grey(np.array(picture))
        if picture.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            return _on_white(np.array(picture))
        return np.array(picture.convert("RGB"))


def _deep_colour(data: bytes, orientation: int) -> np.ndarray:
    """Pictures of 16 bits a channel, through OpenCV."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("neither Pillow nor OpenCV knows it")
    if image.ndim == 2:
        return _grey(image)
    image = _to_8_bit(image)
    if image.shape[2] == 4:
        image = _on_white(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    else:
        image = np.ascontiguousarray(image[:, :, ::-1])
    if orientation != 1:
        turned = Image.fromarray(image)
        turned.getexif()[_ORIENTATION] = orientation
        image = np.array(ImageOps.exif_transpose(turned))
    return image


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(_to_8_bit(values)[..., None], 3, axis=2)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """16-bit values over 257; floats are taken as 0..1."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        return np.round(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    wide = np.clip(values.astype(np.int64), 0, 65535)
    return ((wide + 128) // 257).astype(np.uint8)


def _on_white(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with straight alpha, laid on white."""
    alpha = image[..., 3:].astype(np.uint16)
    blended = image[..., :3] * alpha + 255 * (255 - alpha)
    return ((blended + 127) // 255).astype(np.uint8)


class _JpegHeader(NamedTuple):
    bits: int
    channels: int


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """What the first frame header says; None when there is none."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _JpegHeader(bits=data[at + 4], channels=data[at + 9])
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _plain_png(data: bytes) -> bool:
    """8-bit grey or RGB, without transparency, rotation or animation."""
    if data[24] != 8 or data[25] not in (0, 2):
        return False
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"tRNS", b"eXIf", b"acTL"):
            return False
        at += 12 + length
    return True
