"""Reading and writing label-map PNGs, and the palette in which viewers show them.

A label map on disk is an 8-bit PNG whose pixel *index* is the object id; the palette is only for viewers. OpenCV expands palettes
to colours, so label maps are read with Pillow.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from vos_lightning.arrays import Tensor, to_array, to_tensor
from vos_lightning.io.files import write_atomically
from vos_lightning.io.images import load, read_header
from vos_lightning.io.plain_png import read_plain_png


def _voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """VOC colours: bit ``3*j + c`` of the index becomes bit ``7 - j`` of channel ``c``."""
    index = np.arange(256)[:, None]
    channel = np.arange(3)[None, :]
    palette = np.zeros((256, 3), dtype=np.int64)
    for j in range(3):
        palette |= ((index >> (3 * j + channel)) & 1) << (7 - j)
    return palette.astype(np.uint8)


PALETTE: UInt8[np.ndarray, "256 3"] = _voc_palette()
"""The PASCAL VOC colour map, which DAVIS uses too: RGB of every index."""

_WHITE = 0xFFFFFF
_PALETTE_CODES = (PALETTE.astype(np.int32) << np.array([16, 8, 0], dtype=np.int32)).sum(axis=1, dtype=np.int32)
# White is not a palette colour, so black-and-white masks saved as RGB can be read like grey ones: as 255.
_CODES = np.append(_PALETTE_CODES, np.int32(_WHITE))
_INDICES = np.append(np.arange(256), 255).astype(np.uint8)
_ORDER = np.argsort(_CODES)
_SORTED_CODES, _SORTED_INDICES = _CODES[_ORDER], _INDICES[_ORDER]


# Reading --------------------------------------------------------------------------------------------------------------


NO_COLOURS: Mapping[int, int] = {}


def read_label_map(path: str | os.PathLike[str], colours: Mapping[int, int] = NO_COLOURS) -> UInt8[Tensor, "H W"]:
    """Read object ids from an image file.

    Palette images give their indices, grey images their values (0/255 stays 0/255), 1-bit images 0 and 1. Colour images must
    consist of palette colours exactly (see :data:`PALETTE`; 191 counts as 192, as the first DAVIS tools wrote it), fully
    transparent pixels are background and white is 255. Otherwise the rules of :mod:`vos_lightning.io.images` hold.

    Args:
        path: image file, usually a PNG.
        colours: ids of further colours ``0xRRGGBB``, see :func:`colours_in`.

    Returns:
        ``(H, W)`` uint8 ids: 0 background, 255 void or, in binary data sets, the object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has an unsupported mode, or has colours that are not in the palette, as in smoothed or
            JPEG-compressed masks.
    """
    plain = read_plain_png(path)
    if plain is not None:
        return to_tensor(plain)
    image, turn, bits = load(path)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(f"{path}: a label map must not be a JPEG, which changes the ids; save it as an indexed PNG")
    mode, array = image.mode, turn.apply(np.array(image))
    if bits == 8 and mode in ("P", "L", "1"):
        return to_tensor(array.astype(np.uint8, copy=False))
    if bits == 8 and mode in ("RGB", "RGBA"):
        return to_tensor(_indices_from_colours(path, array, colours))
    raise ValueError(
        f"{path}: a label map must be an 8-bit palette or grey image, this one has {bits} bits and mode {mode!r}; convert it"
    )


def colours_in(path: str | os.PathLike[str]) -> list[int]:
    """The colours ``0xRRGGBB`` of a coloured mask that are not in :data:`PALETTE`, in the order in which rows show them.

    Returns:
        An empty list for masks with a palette, grey ones, and files that cannot be read, of which :func:`read_label_map` tells.
    """
    try:
        if read_header(path).mode not in ("RGB", "RGBA"):
            return []
        picture = load(path)
    except (OSError, ValueError):
        return []
    codes, blended = _codes(picture.turn.apply(np.array(picture.image)))
    _, stray = _look_up(codes)
    found, first = np.unique(codes[stray & ~blended], return_index=True)
    return [int(code) for code in found[np.argsort(first)]]


def _codes(colours: UInt8[np.ndarray, "H W C"]) -> tuple[Int32[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Every pixel's colour as one number, and where pixels are half transparent."""
    rgb = np.where(colours[..., :3] == 191, np.uint8(192), colours[..., :3]).astype(np.int32)
    codes = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    if colours.shape[-1] < 4:
        return codes, np.zeros(codes.shape, dtype=bool)
    codes[colours[..., 3] == 0] = 0
    return codes, (colours[..., 3] > 0) & (colours[..., 3] < 255)


def _look_up(codes: Int32[np.ndarray, "H W"]) -> tuple[UInt8[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Index of every colour in the palette, and where it is not in the palette."""
    position = np.searchsorted(_SORTED_CODES, codes).clip(max=len(_SORTED_CODES) - 1)
    return _SORTED_INDICES[position], _SORTED_CODES[position] != codes


def _indices_from_colours(
    path: str | os.PathLike[str], picture: UInt8[np.ndarray, "H W C"], colours: Mapping[int, int]
) -> UInt8[np.ndarray, "H W"]:
    codes, blended = _codes(picture)
    indices, stray = _look_up(codes)
    for code, index in colours.items():
        here = codes == code
        indices[here], stray[here] = index, False
    stray |= blended
    if stray.any():
        count, example = len(np.unique(codes[stray])), int(codes[stray][0])
        raise ValueError(
            f"{path}: {count} stray colours (as #{example:06x}) in {int(stray.sum())} pixels are not in the palette of label "
            "maps, as in anti-aliased or JPEG-compressed masks; save it as an indexed PNG without smoothing"
        )
    return indices


# Writing --------------------------------------------------------------------------------------------------------------


def write_label_map(path: str | os.PathLike[str], label_map: UInt8[Tensor, "H W"]) -> None:
    """Write object ids as an indexed PNG with the DAVIS palette.

    The file is written atomically, so an interrupted run leaves no incomplete file; missing parent folders are created.

    Args:
        path: output file, whose name ends in ``.png``.
        label_map: ``(H, W)`` ids, on any device.
    """
    write_atomically(path, encode_label_map(label_map), durable=False)


def encode_label_map(label_map: UInt8[Tensor, "H W"]) -> bytes:
    """The bytes that :func:`write_label_map` writes."""
    image = Image.fromarray(to_array(label_map))
    image.putpalette(PALETTE.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
