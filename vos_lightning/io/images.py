"""Reading pictures, with one set of rules for frames and label maps.

=====================  ===============================================================================================
a file that            is read
=====================  ===============================================================================================
has an orientation tag  upright, as viewers show it and as videos are turned (EXIF, in PNG files too)
is grey or one-bit     as RGB with equal channels
has a palette          as its colours (a label map: as its indices)
has alpha              without it: the colours below stay (a label map: transparent pixels are background)
is CMYK                as RGB by Pillow's formula, without colour profiles
has 16 bits            scaled to 8 (65535 is 255); a label map of 16 bits is refused
has 32 bits, or floats  not at all, as its white is not known
is animated            not at all, as a file is one frame; the preview that some cameras append to a JPEG is passed over
is damaged, cut off    not at all
is larger than          not at all; ``PIL.Image.MAX_IMAGE_PIXELS`` can be raised
178956970 pixels
is a pipe or a device   not at all, as reading it may never end
=====================  ===============================================================================================
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image

from vos_lightning.arrays import Tensor, to_tensor
from vos_lightning.io.files import regular_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Formats that are read, whatever the suffix says. Pillow knows more, and starts another program for some (EPS)."""
_SIZING = threading.Lock()
_RGB_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes that convert to RGB without changing the meaning of the colours."""


class Turn(NamedTuple):
    """How a stored picture is turned upright: first rows and columns are exchanged, then it is mirrored."""

    exchange: bool = False
    left_right: bool = False
    up_down: bool = False

    def apply(self, pixels: Shaped[np.ndarray, "H W ..."]) -> Shaped[np.ndarray, "H2 W2 ..."]:
        """Turn a picture; the result is contiguous."""
        if self.exchange:
            pixels = pixels.swapaxes(0, 1)
        if self.left_right:
            pixels = pixels[:, ::-1]
        if self.up_down:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


_EXIF_TURNS = {
    2: Turn(left_right=True),
    3: Turn(left_right=True, up_down=True),
    4: Turn(up_down=True),
    5: Turn(exchange=True),
    6: Turn(exchange=True, left_right=True),
    7: Turn(exchange=True, left_right=True, up_down=True),
    8: Turn(exchange=True, up_down=True),
}


class Picture(NamedTuple):
    """A decoded image file."""

    image: Image.Image
    """The picture as stored; the turn is not applied."""
    turn: Turn
    bits: int
    """Bits of a channel: 8 (also for 1-bit images), 16 or 32. Pillow reduces colours of 16 bits to 8."""


class Header(NamedTuple):
    """The description of an image in its file, before it is decoded."""

    size: tuple[int, int]
    """Width and height of the upright picture."""
    stored_size: tuple[int, int]
    """Width and height of the stored picture."""
    format: str
    """File format, such as ``JPEG`` or ``PNG``."""
    mode: str
    """Pillow's name of the mode."""


def read_image(path: str | os.PathLike[str]) -> UInt8[Tensor, "3 H W"]:
    """Decode an image file to RGB by the rules of this module.

    Args:
        path: image file, usually JPEG or PNG; also BMP, GIF, PPM, TIFF and WebP.

    Returns:
        ``(3, H, W)`` uint8, contiguous.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or its meaning would have to be guessed; the message names it.
    """
    return to_tensor(np.ascontiguousarray(read_pixels(path).transpose(2, 0, 1)))


def read_pixels(path: str | os.PathLike[str], as_stored: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """:func:`read_image` with the channels last, as image libraries expect them.

    Args:
        path: image file, see :func:`read_image`.
        as_stored: ignore the orientation tag, for published sets whose masks lie on the stored pixels.
    """
    pixels = _decode_jpeg(path, as_stored)
    if pixels is not None:
        return pixels
    picture = load(path)
    if picture.bits == 16:
        pixels = _eight_bits(path, picture.image)
    elif picture.image.mode in _RGB_MODES:
        pixels = np.array(picture.image.convert("RGB"))
    else:
        raise ValueError(f"{path}: an image of mode {picture.image.mode!r} has no known white; save it with 8 bits a channel")
    return pixels if as_stored else picture.turn.apply(pixels)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size, format and mode of an image file, without decoding it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or is too large.
    """
    regular_file(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            turn = _turn_of(image)
            size = (height, width) if turn.exchange else (width, height)
            return Header(size, (width, height), str(image.format), image.mode)
    except Exception as error:  # broken files make decoders raise almost anything: SyntaxError, OverflowError, MemoryError
        raise _damaged(path, error) from error


def load(path: str | os.PathLike[str]) -> Picture:
    """Decode a file completely, or raise one clear line that names it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, too large, no regular file, or holds several pictures.
    """
    regular_file(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # The second picture of an MPO file is a preview or a depth map and is ignored.
            pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()  # without this, decoding is lazy and a truncated file is not noticed
            turn = _turn_of(image)
    except Exception as error:  # broken files make decoders raise almost anything: SyntaxError, OverflowError, MemoryError
        raise _damaged(path, error) from error
    if pictures > 1:
        raise ValueError(f"{path}: an animation of {pictures} pictures where a file is one frame; save each as a file of its own")
    bits = 32 if image.mode in ("I", "F") else 16 if image.mode.startswith("I;16") else 8
    return Picture(image, turn, 16 if image.format == "PNG" and _png_bits(path) == 16 else bits)


def _damaged(path: str | os.PathLike[str], error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:  # the system could not read it, whatever is in it
        return error
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return ValueError(
            f"{path}: the image says that it has {_announced(path)} pixels, more than the {most} that are read; make it smaller"
        )
    return ValueError(f"{path}: the image is damaged or truncated ({error}); copy or download it again")


def _announced(path: str | os.PathLike[str]) -> str:
    """Width and height in the header of a picture that is too large for Pillow to be opened with its limit."""
    with _SIZING:  # the limit is one for the process
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return f"{image.width} x {image.height}"
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _turn_of(image: Image.Image) -> Turn:
    try:
        return _EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), Turn())
    except Exception:  # viewers ignore a broken tag too
        return Turn()


def _png_bits(path: str | os.PathLike[str]) -> int:
    """Bits of a channel, read from the header, because Pillow's mode does not distinguish 16 from 8 bits of colour."""
    with Path(path).open("rb") as file:
        return file.read(25)[24]


def _eight_bits(path: str | os.PathLike[str], image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Scale 16 bits to 8, rounding to the nearest. White is 65535, so a step of 8 bits is 257."""
    if image.format == "PNG":
        content = np.fromfile(path, dtype=np.uint8)
        deep = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
        if deep is None or deep.dtype != np.uint16:
            raise ValueError(f"{path}: this image of 16 bits cannot be read; save it with 8 bits a channel")
        deep = deep[..., ::-1]
    else:
        deep = np.array(image).astype(np.uint16)[..., None].repeat(3, axis=2)
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode_jpeg(path: str | os.PathLike[str], as_stored: bool) -> UInt8[np.ndarray, "H W 3"] | None:
    """Pixels of a sound JPEG, or None for anything else, which is left to Pillow and its errors.

    OpenCV gives the same pixels as Pillow in a third of the time (both wrap libjpeg-turbo), but does not report truncated files.
    """
    if Path(path).suffix.lower() not in (".jpg", ".jpeg"):
        return None
    content = regular_file(path).read_bytes()
    if not content.startswith(b"\xff\xd8") or not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                return None
            turn = Turn() if as_stored else _turn_of(image)
    except Exception:  # it is found and named when Pillow reads the file
        return None
    decoded = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None:
        return None
    pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, decoded)
    return pixels if turn == Turn() else turn.apply(pixels)
