"""Label-map PNGs, images and overlays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tolerances import assert_close
from vos_lightning.io import label_maps
from vos_lightning.io.label_maps import (
    PALETTE,
    colorize,
    overlay,
    read_image,
    read_label_map,
    read_pixels,
    write_atomically,
    write_label_map,
)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def label_map() -> torch.Tensor:
    return torch.randint(0, 6, (9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_palette_is_the_voc_colour_map() -> None:
    known = {0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 3: [128, 128, 0], 4: [0, 0, 128], 7: [128, 128, 128], 8: [64, 0, 0]}
    known |= {9: [192, 0, 0], 20: [0, 64, 128], 255: [224, 224, 192]}
    assert {index: PALETTE[index].tolist() for index in known} == known
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 256


# Label maps -----------------------------------------------------------------------------------------------------------


def test_written_ids_come_back_and_parents_are_made(tmp_path: Path) -> None:
    ids = torch.arange(256, dtype=torch.uint8).view(16, 16)
    path = tmp_path / "a" / "b" / "00000.png"
    write_label_map(path, ids)
    assert_close(read_label_map(path), ids)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == PALETTE.reshape(-1).tolist()
    assert os.listdir(path.parent) == ["00000.png"]


def test_written_file_is_readable_by_the_group(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.png", tmp_path / "plain"
    write_label_map(path, torch.zeros(2, 2, dtype=torch.uint8))
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(label_maps.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_grey_and_one_bit_images_keep_their_values(tmp_path: Path) -> None:
    grey = np.array([[0, 255], [255, 7]], dtype=np.uint8)
    assert_close(read_label_map(save(tmp_path / "grey.png", grey)), torch.from_numpy(grey))
    Image.fromarray(grey).point(lambda value: 255 * (value > 0)).convert("1").save(tmp_path / "bit.png")
    assert_close(read_label_map(tmp_path / "bit.png"), torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8))


def test_palette_images_with_any_palette_give_indices(tmp_path: Path, label_map: torch.Tensor) -> None:
    image = Image.fromarray(label_map.numpy())
    image.putpalette([9, 9, 9] * 6)
    image.save(tmp_path / "few_bits.png", bits=4)
    assert_close(read_label_map(tmp_path / "few_bits.png"), label_map)


@pytest.mark.parametrize("channels", [3, 4])
def test_palette_colours_are_indices(tmp_path: Path, label_map: torch.Tensor, channels: int) -> None:
    colours = PALETTE[label_map.numpy()]
    colours[colours == 192] = 191
    if channels == 4:
        opaque = np.full((*label_map.shape, 1), 255, dtype=np.uint8)
        colours = np.concatenate([colours, opaque], axis=-1)
    path = save(tmp_path / "a.png", colours)
    assert_close(read_label_map(path), label_map)


def test_white_is_255_and_transparent_is_background(tmp_path: Path) -> None:
    colours = np.full((2, 2, 4), 255, dtype=np.uint8)
    colours[0, 0] = [1, 2, 3, 0]
    path = save(tmp_path / "a.png", colours)
    assert_close(read_label_map(path), torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8))


def test_smoothed_colours_are_refused_with_their_count(tmp_path: Path) -> None:
    colours = PALETTE[np.ones((4, 4), dtype=np.uint8)]
    colours[0, :3, 0] = [100, 50, 50]
    path = save(tmp_path / "a.png", colours)
    with pytest.raises(ValueError, match=r"a\.png: 2 stray colours .*#640000.* in 3 pixels .* save it as an indexed PNG"):
        read_label_map(path)
    half = np.concatenate([PALETTE[np.ones((2, 2), dtype=np.uint8)], np.full((2, 2, 1), 100, dtype=np.uint8)], axis=-1)
    with pytest.raises(ValueError, match="1 stray colours"):
        read_label_map(save(tmp_path / "half.png", half))


def test_other_modes_are_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((2, 2), 300, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"a\.png: .* mode 'I;16'"):
        read_label_map(path)


# Images ---------------------------------------------------------------------------------------------------------------


def test_image_is_rgb_first_channel_first(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[1, 2] = [10, 20, 30]
    image = read_image(save(tmp_path / "a.png", colours))
    assert image.shape == (3, 4, 6)
    assert image.is_contiguous()
    assert image[:, 1, 2].tolist() == [10, 20, 30]
    assert read_image(save(tmp_path / "grey.png", colours[..., 0])).shape == (3, 4, 6)


@pytest.mark.parametrize("read", [read_image, read_label_map])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damaged_and_missing_files_are_named(tmp_path: Path, read: object, suffix: str) -> None:
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


# Colours --------------------------------------------------------------------------------------------------------------


def test_colorize_looks_up_the_palette(label_map: torch.Tensor) -> None:
    assert_close(colorize(label_map), torch.from_numpy(PALETTE[label_map.numpy()]).permute(2, 0, 1))


def test_overlay_blends_inside_and_draws_the_outline() -> None:
    frame = torch.full((3, 7, 7), 200, dtype=torch.uint8)
    label_map = torch.zeros(7, 7, dtype=torch.uint8)
    label_map[1:6, 1:6] = 1
    drawn = overlay(frame, label_map, alpha=0.25)
    assert drawn[:, 0, 0].tolist() == [200, 200, 200]
    assert drawn[:, 1, 1].tolist() == [128, 0, 0]
    assert drawn[:, 3, 3].tolist() == [182, 150, 150]
    assert drawn[:, 2, 2].tolist() == [182, 150, 150]


# JPEGs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_by_pillow(tmp_path: Path, mode: str, subsampling: int) -> None:
    ramp = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(ramp).resize((123, 77), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # a turned camera
    path = tmp_path / "frame.jpg"
    image.save(path, quality=90, subsampling=subsampling, exif=exif)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(read_pixels(path), expected)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)


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
