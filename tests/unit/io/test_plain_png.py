"""The short way to read a label map gives what Pillow gives, or leaves the file to it."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vos_lightning.io import plain_png
from vos_lightning.io.label_maps import PALETTE, read_label_map
from vos_lightning.io.plain_png import decode_plain_png, read_plain_png

SIZES = [(1, 1), (1, 9), (7, 1), (13, 17), (60, 107)]


def label_map(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 5, (height // 4 + 1, width // 4 + 1), dtype=np.uint8)
    return ids.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def file_of(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def header(ids: np.ndarray, bits: int = 8, colour_type: int = 3, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, colour_type, 0, 0, interlace))


def rows_of(ids: np.ndarray, filters: np.ndarray | None = None) -> bytes:
    """Filtered rows, straight from the specification."""
    filters = np.zeros(len(ids), dtype=int) if filters is None else filters
    rows = []
    for y, kind in enumerate(filters):
        row = bytearray([kind])
        for x in range(ids.shape[1]):
            left, up = int(ids[y, x - 1]) if x else 0, int(ids[y - 1, x]) if y else 0
            corner = int(ids[y - 1, x - 1]) if x and y else 0
            near = sorted((abs(left + up - corner - value), order, value) for order, value in enumerate((left, up, corner)))
            guess = (0, left, up, (left + up) // 2, near[0][2])[kind]
            row.append((int(ids[y, x]) - guess) % 256)
        rows.append(bytes(row))
    return b"".join(rows)


def palette() -> bytes:
    return chunk(b"PLTE", PALETTE.tobytes())


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def by_pillow(content: bytes) -> np.ndarray | type[Exception]:
    """What Pillow alone makes of a file: ids, or that it fails."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return np.array(image) if image.mode in ("L", "P") else ValueError
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        return type(error)


def check(content: bytes) -> bool:
    """Whether the file is read the short way, which must give what Pillow gives."""
    plain, expected = decode_plain_png(content), by_pillow(content)
    if plain is None:
        return False
    assert isinstance(expected, np.ndarray)
    assert plain.dtype == np.uint8
    assert plain.flags.writeable
    assert plain.flags.c_contiguous
    assert np.array_equal(plain, expected)
    return True


# Sound files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["P", "L"])
@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"compress_level": 9}, {"optimize": True}])
def test_label_maps_as_pillow_writes_them(size: tuple[int, int], mode: str, options: dict[str, object]) -> None:
    ids = label_map(*size)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    content = saved(image, **options)
    assert np.array_equal(by_pillow(content), ids)
    assert check(content)


@pytest.mark.parametrize("colour_type", [0, 3])
@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, None])
def test_every_filter(colour_type: int, kind: int | None) -> None:
    ids = label_map(23, 31)
    filters = np.random.default_rng(0).integers(0, 5, 23) if kind is None else np.full(23, kind)
    packed = chunk(b"IDAT", zlib.compress(rows_of(ids, filters)))
    content = file_of(header(ids, colour_type=colour_type), *([palette()] if colour_type else []), packed)
    assert check(content)
    assert np.array_equal(by_pillow(content), ids)


@pytest.mark.parametrize("pieces", [2, 5, 400])
def test_pixels_in_several_chunks(pieces: int) -> None:
    ids = label_map(60, 107)
    packed = zlib.compress(rows_of(ids))
    cuts = np.linspace(0, len(packed), pieces + 1).astype(int)
    parts = [chunk(b"IDAT", packed[a:b]) for a, b in itertools.pairwise(cuts)]
    assert check(file_of(header(ids), palette(), *parts))
    assert not check(file_of(header(ids), palette(), parts[0], chunk(b"gAMA", bytes(4)), *parts[1:]))


def test_chunks_that_change_no_index() -> None:
    ids = label_map(13, 17)
    packed = chunk(b"IDAT", zlib.compress(rows_of(ids)))
    harmless = [
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"sRGB", b"\0"),
        chunk(b"cHRM", bytes(32)),
        chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        chunk(b"tIME", bytes(7)),
        chunk(b"tRNS", b"\0\xff\x80"),
        chunk(b"tEXt", b"Software\0a drawing program"),
    ]
    for extra in harmless:
        assert check(file_of(header(ids), palette(), extra, packed))
        assert check(file_of(header(ids), palette(), packed, extra))
    assert check(file_of(header(ids), palette(), *harmless, packed))


def test_unusual_chunks_are_left_to_pillow() -> None:
    ids = label_map(13, 17)
    packed = chunk(b"IDAT", zlib.compress(rows_of(ids)))
    turned = Image.Exif()
    turned[0x0112] = 6
    unusual = [
        chunk(b"eXIf", turned.tobytes()),
        chunk(b"tEXt", b"Raw profile type exif\0..."),
        chunk(b"tEXt", b"XML:com.adobe.xmp\0<x/>"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"iCCP", b"x\0\0"),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0"),
        chunk(b"tRNS", b""),
        chunk(b"\xff\xff\xff\xff", b""),
    ]
    for extra in unusual:
        assert not check(file_of(header(ids), palette(), extra, packed))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_few_bits(tmp_path: Path, bits: int, mode: str) -> None:
    ids = label_map(13, 17) % (1 << bits)
    path = tmp_path / "a.png"
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
        path.write_bytes(saved(image, bits=bits))
        assert check(path.read_bytes())
        assert np.array_equal(read_label_map(path), ids)
    else:
        packed = np.packbits((ids[..., None] >> np.arange(bits)[::-1]).reshape(13, -1) & 1, axis=1)
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        path.write_bytes(file_of(header(ids, bits=bits, colour_type=0), chunk(b"IDAT", zlib.compress(rows))))
        assert not check(path.read_bytes())
        assert read_label_map(path).shape == (13, 17)


def test_other_kinds_are_left_to_pillow() -> None:
    ids = label_map(13, 17)
    colours = Image.fromarray(PALETTE[ids])
    deep = Image.fromarray(ids.astype(np.uint16))
    for image in (colours, colours.convert("RGBA"), Image.fromarray(ids).convert("LA"), Image.fromarray(ids).convert("1"), deep):
        assert not check(saved(image))
    buffer = io.BytesIO()
    colours.save(buffer, format="JPEG")
    assert not check(buffer.getvalue())
    interlaced = file_of(header(ids, interlace=1), palette(), chunk(b"IDAT", zlib.compress(rows_of(ids))))
    assert not check(interlaced)
    assert not check(saved(Image.fromarray(ids), save_all=True, append_images=[Image.fromarray(ids + 1)]))
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "x")
    assert not check(saved(Image.fromarray(ids), pnginfo=info))


def test_pictures_beyond_pillows_limit_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.fromarray(label_map(13, 17)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 13 * 17 - 1)
    assert decode_plain_png(content) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 13 * 17)
    assert decode_plain_png(content) is not None


# Broken files ---------------------------------------------------------------------------------------------------------


def broken(content: bytes) -> Iterator[bytes]:
    """Every way to cut a file off, a flipped bit in every byte, and something behind the end."""
    yield from (content[:end] for end in range(len(content)))
    for place in range(len(content)):
        for bit in (0, 5, 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            yield bytes(damaged)
    yield content + b"\0"


@pytest.mark.parametrize("mode", ["P", "L"])
def test_whatever_is_cut_off_or_damaged_is_left_to_pillow(mode: str) -> None:
    image = Image.fromarray(label_map(13, 17))
    if mode == "P":
        image.putpalette([9, 9, 9] * 6)
    content = saved(image, **({"bits": 8} if mode == "P" else {}))
    assert check(content)
    assert not any(decode_plain_png(damaged) is not None for damaged in broken(content))


def test_sound_checksums_around_wrong_pixels_are_left_to_pillow() -> None:
    ids = label_map(13, 17)
    rows, packed = rows_of(ids), zlib.compress(rows_of(ids))
    wrong: list[bytes] = [
        zlib.compress(rows[:-1]),
        zlib.compress(rows[:-18]),
        zlib.compress(rows + b"\0"),
        zlib.compress(rows_of(ids, np.zeros(13, dtype=int)).replace(b"\0", b"\5", 1)),
        packed[:-1],
        packed[:-4] + bytes(4),
        packed + b"\0",
        packed[: len(packed) // 2],
        b"",
    ]
    for colour_type, extra in ((3, [palette()]), (0, [])):
        for data in wrong:
            content = file_of(header(ids, colour_type=colour_type), *extra, chunk(b"IDAT", data))
            # Pillow is lenient with some of them; the short way never gives anything but what Pillow gives.
            assert check(content) <= (colour_type == 0)
    assert not check(file_of(header(ids), palette()))
    assert not check(file_of(header(ids), chunk(b"IDAT", packed)))
    assert not check(file_of(header(ids), palette(), palette(), chunk(b"IDAT", packed)))
    assert not check(file_of(header(ids), chunk(b"PLTE", bytes(4)), chunk(b"IDAT", packed)))
    assert not check(file_of(header(ids), chunk(b"IDAT", packed), palette()))
    assert not check(file_of(header(ids)[:-1], palette(), chunk(b"IDAT", packed)))
    assert not check(file_of(palette(), header(ids), chunk(b"IDAT", packed)))
    assert not check(file_of(header(ids[:0]), palette(), chunk(b"IDAT", packed)))
    assert not check(file_of())


@pytest.mark.parametrize(
    "change",
    [lambda whole: whole[:-9], lambda whole: whole[:60], lambda whole: whole[:60] + b"?" + whole[61:], lambda whole: b""],
)
def test_errors_are_the_same_as_without_the_short_way(
    tmp_path: Path, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(change(saved(Image.fromarray(label_map(60, 107)))))

    def outcome() -> object:
        try:
            return read_label_map(path).tolist()
        except ValueError as error:
            return str(error)

    short = outcome()
    monkeypatch.setattr("vos_lightning.io.label_maps.read_plain_png", lambda path: None)
    assert short == outcome()


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read_plain_png(tmp_path / "a.png") is None
    assert read_plain_png(tmp_path) is None
    assert plain_png.decode_plain_png(b"") is None
