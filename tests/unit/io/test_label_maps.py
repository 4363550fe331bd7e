"""Label-map PNGs and their palette."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tolerances import assert_close
from vos_lightning.io.label_maps import PALETTE, read_label_map, write_label_map


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


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.full((2, 2), 300, dtype=np.uint16), "16 bits and mode 'I;16'"),
        (np.full((2, 2), 3, dtype=np.uint16), "16 bits and mode 'I;16'"),
        (np.ones((2, 2), dtype=np.int32), "32 bits and mode 'I'"),
        (np.ones((2, 2), dtype=np.float32), "32 bits and mode 'F'"),
        (np.zeros((2, 2, 2), dtype=np.uint8), "8 bits and mode 'LA'"),
    ],
)
def test_what_is_no_8_bit_map_is_refused_by_name(tmp_path: Path, array: np.ndarray, what: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path, format="TIFF" if array.dtype in (np.int32, np.float32) else "PNG")
    with pytest.raises(ValueError, match=rf"a\.png: .* {what}; convert it"):
        read_label_map(path)


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    """Pillow would read ids 1 to 255 in the low byte as nothing but background."""
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((2, 2, 3), 7, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"a\.png: .* 16 bits"):
        read_label_map(path)


def test_jpeg_under_another_name_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(ValueError, match=r"a\.png: a label map must not be a JPEG"):
        read_label_map(tmp_path / "a.png")


def test_orientation_tag_holds_for_label_maps_too(tmp_path: Path, label_map: torch.Tensor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(label_map.numpy())
    image.putpalette(PALETTE.tobytes())
    image.save(tmp_path / "a.png", exif=exif)
    assert_close(read_label_map(tmp_path / "a.png"), label_map.rot90(-1))
