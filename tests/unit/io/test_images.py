"""Reading frames: one rule for every kind of file."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from vos_lightning.io.images import read_header, read_image, read_pixels
from vos_lightning.io.label_maps import read_label_map


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def picture(height: int = 77, width: int = 123) -> Image.Image:
    """Smooth, so that codecs change little, and different in every corner."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def orientation(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def test_image_is_rgb_first_channel_first(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[1, 2] = [10, 20, 30]
    image = read_image(save(tmp_path / "a.png", colours))
    assert image.shape == (3, 4, 6)
    assert image.is_contiguous()
    assert image[:, 1, 2].tolist() == [10, 20, 30]


# Kinds of pixels ------------------------------------------------------------------------------------------------------


def test_grey_bits_palette_and_alpha(tmp_path: Path) -> None:
    grey = np.array([[0, 255], [7, 130]], dtype=np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    path = tmp_path / "a.png"
    assert np.array_equal(read_pixels(save(path, grey)), expected)
    Image.fromarray(grey > 100).save(path)
    assert np.array_equal(read_pixels(path), (expected > 100) * 255)
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    indexed.putpalette([1, 2, 3, 40, 50, 60])
    indexed.save(path, transparency=1)
    assert read_pixels(path).tolist() == [[[1, 2, 3], [40, 50, 60]], [[40, 50, 60], [1, 2, 3]]]
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)  # of any opacity
    assert np.array_equal(read_pixels(save(path, colours)), colours[..., :3])
    assert np.array_equal(read_pixels(save(path, np.stack([grey, 255 - grey], axis=-1))), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, channels: int) -> None:
    """65535 is white; 257 is a step of 8 bits; in between the nearest counts."""
    levels = np.array([0, 128, 129, 257, 1000, 32768, 65406, 65407, 65535], dtype=np.uint16)
    deep = np.repeat(levels.reshape(3, 3)[..., None], channels, axis=2)
    deep[..., 1:2] //= 2
    stored = deep[..., [2, 1, 0, 3][:channels]] if channels > 1 else deep[..., 0]
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), stored)
    expected = np.round(deep.astype(float) * 255 / 65535).astype(np.uint8)
    assert np.array_equal(read_pixels(path), np.broadcast_to(expected[..., :3], (3, 3, 3)))
    assert read_pixels(path)[0, 2].tolist() != [255, 255, 255]


def test_16_bits_elsewhere(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert read_pixels(save(tmp_path / "a.tif", levels))[0, :, 1].tolist() == [0, 1, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_have_no_white(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path / "a.png", np.ones((2, 2), dtype=dtype), format="TIFF")
    with pytest.raises(ValueError, match=r"a\.png: an image of mode '[IF]' has no known white; save it with 8 bits"):
        read_pixels(path)


def test_animations_are_refused_and_previews_passed_over(tmp_path: Path) -> None:
    pictures = [picture(), picture().transpose(Image.Transpose.ROTATE_180)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:])
    for read in (read_pixels, read_label_map):
        with pytest.raises(ValueError, match=r"a\.png: an animation of 2 pictures"):
            read(tmp_path / "a.png")
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:], quality=95)
    assert np.abs(read_pixels(tmp_path / "a.jpg").astype(int) - np.asarray(pictures[0])).mean() < 3


# Orientation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", range(1, 10))
@pytest.mark.parametrize("name", ["a.jpg", "grey.jpg", "cmyk.jpg", "a.png", "deep.png"])
def test_upright_as_viewers_show_it(tmp_path: Path, name: str, tag: int) -> None:
    path = tmp_path / name
    image = {"grey": picture().convert("L"), "cmyk": picture().convert("CMYK")}.get(path.stem, picture())
    if path.stem == "deep":
        image = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)
    image.save(path, exif=orientation(tag))
    with Image.open(path) as stored:
        plain = stored if path.stem != "deep" else picture().convert("L")
        plain.getexif()[0x0112] = tag
        expected = np.asarray(ImageOps.exif_transpose(plain).convert("RGB"))
        as_stored = np.asarray(plain.convert("RGB"))
    assert np.array_equal(read_pixels(path), expected)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(read_pixels(path, as_stored=True), as_stored)
    assert read_header(path).size == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_by_pillow(tmp_path: Path, mode: str, subsampling: int) -> None:
    path = tmp_path / "frame.jpg"
    picture().convert(mode).save(path, quality=90, subsampling=subsampling)
    assert np.array_equal(read_pixels(path), np.asarray(Image.open(path).convert("RGB")))


def test_a_broken_tag_is_passed_over(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0 no directory")
    assert read_pixels(tmp_path / "a.jpg").shape == (77, 123, 3)


# Broken files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, read_label_map])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damaged_and_missing_files_are_named(tmp_path: Path, read: Any, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = save(tmp_path / f"frame{suffix}", noise)
    content = path.read_bytes()
    for keep in (len(content) // 2, 60, 5, 0):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=rf"frame\{suffix}: the image is damaged or truncated"):
            read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"frame\{suffix}: there is no such file"):
        read(path)


def test_damaged_16_bits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"frame\.png: the image is damaged or truncated"):
        read_pixels(path)


def test_broken_jpegs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "frame.jpg"
    Image.new("RGB", (64, 64), (200, 30, 90)).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-2][:300], b"", b"no image", whole[:4] + b"\xff\xd9"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"frame\.jpg: the image is damaged or truncated"):
            read_pixels(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"frame\.jpg"):
        read_pixels(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(path)
    assert read_pixels(path).shape == (8, 8, 3)


@pytest.mark.parametrize("read", [read_header, read_pixels, read_label_map])
def test_enormous_pictures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    path = save(tmp_path / "a.png", np.zeros((20, 20), dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png: the image says that it has 20 x 20 pixels, more than the 200 that are read"):
        read(path)
    assert Image.MAX_IMAGE_PIXELS == 100


def header_of_png(width: int, height: int, bits: int = 8, kind: int = 0) -> bytes:
    """A PNG that announces a size and has the pixels of none."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    checked = ((name + data, len(data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", n) + c + struct.pack(">I", zlib.crc32(c)) for c, n in checked)


def header_of_jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", header_of_png(60000, 60000), "60000 x 60000 pixels, more than the 178956970"),
        ("a.png", header_of_png(2**31 - 1, 2**31 - 1), "2147483647 x 2147483647 pixels"),
        ("a.jpg", header_of_jpeg(65000, 65000), "65000 x 65000 pixels"),
        ("a.png", header_of_png(0, 7), "damaged"),
        ("a.png", header_of_png(2**32 - 1, 1), "4294967295 x 1 pixels"),
        ("a.png", header_of_png(8, 8, 3), "damaged"),
        ("a.png", b"BM" + b"\xff" * 60, "damaged"),
        ("a.png", b"II*\0" + b"\xff" * 60, "damaged"),
        ("a.png", b"P6 99999999999999999999 9 255 ", "damaged"),
        ("a.png", b"GIF89a" + b"\xff" * 30, "damaged"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "cannot identify image file"),
    ],
)
def test_absurd_headers(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_pixels, read_label_map, read_image):
        with pytest.raises(ValueError, match=f"{name}: the image .*{message}"):
            read(path)
    with contextlib.suppress(ValueError):  # some headers are sound, and only the pixels are missing
        read_header(path)


@pytest.mark.parametrize("read", [read_header, read_pixels, read_label_map])
@pytest.mark.parametrize(
    "error", [OverflowError, MemoryError, struct.error, SyntaxError, RecursionError, AttributeError, KeyError]
)
def test_whatever_a_decoder_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, error: type[Exception]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("absurd")

    for name in ("a.png", "a.jpg"):
        path = save(tmp_path / name, np.zeros((20, 20, 3), dtype=np.uint8))
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", fail)
            with pytest.raises(ValueError, match=f"{name}: the image is damaged or truncated"):
                read(path)


@pytest.mark.parametrize("read", [read_header, read_pixels, read_label_map, read_image])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pipes_folders_and_devices_are_not_opened(tmp_path: Path, read: Any, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="this is a pipe, not a file"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="this is a device, not a file"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="this is a folder, not a file"):
        read(path)
