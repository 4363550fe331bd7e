"""Reading and writing label-map PNGs, and the palette in which viewers show them.

A label map on disk is an 8-bit PNG whose pixel *index* is the object id; the palette is only for viewers. OpenCV expands palettes
to colours, so label maps are read with Pillow.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vos_lightning.io.files import write_atomically
from vos_lightning.io.images import load
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


def read_label_map(path: str | os.PathLike[str]) -> UInt8[Tensor, "H W"]:
    """Read object ids from an image file.

    Palette images give their indices, grey images their values (0/255 stays 0/255), 1-bit images 0 and 1. Colour images must
    consist of palette colours exactly (see :data:`PALETTE`; 191 counts as 192, as the first DAVIS tools wrote it), fully
    transparent pixels are background and white is 255. Otherwise the rules of :mod:`vos_lightning.io.images` hold.

    Args:
        path: image file, usually a PNG.

    Returns:
        ``(H, W)`` uint8 ids: 0 background, 255 void or, in binary data sets, the object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has an unsupported mode, or has colours that are not in the palette, as in smoothed or
            JPEG-compressed masks.
    """
    plain = read_plain_png(path)
    if plain is not None:
        return torch.from_numpy(plain)
    image, turn, bits = load(path)
    if image.format in ("JPEG", "MPO"):
        raise ValueError(f"{path}: a label map must not be a JPEG, which changes the ids; save it as an indexed PNG")
    mode, array = image.mode, turn.apply(np.array(image))
    if bits == 8 and mode in ("P", "L", "1"):
        return torch.from_numpy(array.astype(np.uint8, copy=False))
    if bits == 8 and mode in ("RGB", "RGBA"):
        return torch.from_numpy(_indices_from_colours(path, array))
    raise ValueError(
        f"{path}: a label map must be an 8-bit palette or grey image, this one has {bits} bits and mode {mode!r}; convert it"
    )


def _indices_from_colours(path: str | os.PathLike[str], colours: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W"]:
    rgb = np.where(colours[..., :3] == 191, np.uint8(192), colours[..., :3]).astype(np.int32)
    codes = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    blended = np.zeros(codes.shape, dtype=bool)
    if colours.shape[-1] == 4:
        codes[colours[..., 3] == 0] = 0
        blended = (colours[..., 3] > 0) & (colours[..., 3] < 255)
    position = np.searchsorted(_SORTED_CODES, codes).clip(max=len(_SORTED_CODES) - 1)
    stray = (_SORTED_CODES[position] != codes) | blended
    if stray.any():
        count, example = len(np.unique(codes[stray])), int(codes[stray][0])
        raise ValueError(
            f"{path}: {count} stray colours (as #{example:06x}) in {int(stray.sum())} pixels are not in the palette of label "
            "maps, as in anti-aliased or JPEG-compressed masks; save it as an indexed PNG without smoothing"
        )
    return _SORTED_INDICES[position]


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
    image = Image.fromarray(label_map.cpu().numpy())
    image.putpalette(PALETTE.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
