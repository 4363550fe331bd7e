"""Which frame a given mask belongs to, and masks that an editor has smoothed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import make_frames, make_label_map
from tests.unit.masks import smoothed
from vos_lightning.io.given_masks import GivenMasks, areas_of, read_given
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.rims import find_rims
from vos_lightning.io.videos import VideoWriter, count_frames, open_frames

MASK = make_label_map((1, 2), height=32, width=48)


def film(path: Path, length: int) -> Path:
    with VideoWriter(path, Fraction(25)) as writer:
        for frame in make_frames(length, height=32, width=48):
            writer.write(frame)
    return path


def folder_of_frames(path: Path, *names: str) -> Path:
    path.mkdir()
    for name, frame in zip(names, make_frames(len(names), height=32, width=48), strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(path / f"{name}.png")
    return path


def masks(path: Path, *stems: str) -> Path:
    for stem in stems:
        write_label_map(path / f"{stem}.png", MASK)
    return path


def found(given: GivenMasks) -> list[tuple[int, str]]:
    return [(index, mask.path.stem) for index, mask in given.files.items()]


class TestWhichFrame:
    @pytest.mark.parametrize(
        ("stems", "first", "expected"),
        [
            (["0", "4"], None, [0, 4]),
            (["00003", "00005"], None, [2, 4]),  # there are five frames, so 5 is the last one counted from 1
            (["1", "4"], None, [0, 3]),  # as FFmpeg extracts them: a first mask is drawn on the first frame
            (["3"], None, [3]),
            (["1", "4"], 0, [1, 4]),
            (["3"], 1, [2]),
        ],
    )
    def test_frames_of_a_video_file(self, tmp_path: Path, stems: list[str], first: int | None, expected: list[int]) -> None:
        given = GivenMasks(masks(tmp_path / "m", *stems), open_frames(film(tmp_path / "v.mp4", 5)), first)
        assert [index for index, _ in found(given)] == expected
        assert given.report()[0].startswith(f"frames are counted from {int(stems[0]) - expected[0]} (")
        for index in range(6):
            assert (index in given) == (given.get(index) is not None) == (index in expected)

    @pytest.mark.parametrize(("stems", "first"), [(["0", "5"], None), (["6"], None), (["5"], 0), (["0"], 1), (["a"], None)])
    def test_masks_of_no_frame(self, tmp_path: Path, stems: list[str], first: int | None) -> None:
        with pytest.raises(ValueError, match=rf"{stems[-1]}\.png: no frame of the video"):
            GivenMasks(masks(tmp_path / "m", *stems), open_frames(film(tmp_path / "v.mp4", 5)), first)

    def test_names_and_numbers_of_images(self, tmp_path: Path) -> None:
        frames = open_frames(folder_of_frames(tmp_path / "f", "frame_8", "frame_9", "frame_10"))
        assert found(GivenMasks(masks(tmp_path / "m", "frame_9", "00010", "8"), frames)) == [
            (0, "8"),
            (1, "frame_9"),
            (2, "00010"),
        ]
        with pytest.raises(ValueError, match=r"\.png: .* is a mask of the same frame"):
            GivenMasks(masks(tmp_path / "m", "9"), frames)
        with pytest.raises(ValueError, match=r"1\.png: no frame of the video has this name or number; rename"):
            GivenMasks(masks(tmp_path / "other", "1"), frames)

    def test_images_without_numbers_are_counted(self, tmp_path: Path) -> None:
        frames = open_frames(folder_of_frames(tmp_path / "f", "a", "b", "c"))
        assert found(GivenMasks(masks(tmp_path / "m", "b", "2"), frames)) == [(1, "b"), (2, "2")]
        assert found(GivenMasks(masks(tmp_path / "n", "3"), frames)) == [(2, "3")]

    def test_frames_are_counted(self, tmp_path: Path) -> None:
        for length in (1, 2, 13):
            assert count_frames(film(tmp_path / f"{length}.mp4", length)) == length

    def test_a_later_mask_may_be_empty_and_the_first_may_not(self, tmp_path: Path) -> None:
        frames = open_frames(film(tmp_path / "v.mp4", 3))
        folder = masks(tmp_path / "m", "0")
        write_label_map(folder / "2.png", MASK * 0)
        assert not GivenMasks(folder, frames)[2].any()
        write_label_map(folder / "0.png", MASK * 0)
        with pytest.raises(ValueError, match=r"0\.png: the first mask is empty"):
            GivenMasks(folder, frames)
        assert not read_given(folder / "2.png", (32, 48), first=False).any()


def disc(size: int = 120, radius: float = 35.0, centre: tuple[float, float] = (60, 60)) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).to(torch.uint8)


class TestRims:
    @pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 3.0])
    @pytest.mark.parametrize("levels", [4, 5, 8])
    def test_smoothed_masks(self, sigma: float, levels: int) -> None:
        (rims,) = find_rims(smoothed(disc(), sigma, levels))
        assert rims.smoothed
        assert rims.object_id == levels - 1
        assert set(rims.ids) <= set(range(1, levels - 1))
        assert rims.share > 0.9

    def test_an_adaptive_palette_may_number_the_background(self) -> None:
        grey = cv2.GaussianBlur(disc().numpy() * np.uint8(255), (0, 0), 1.5)
        ids = torch.from_numpy(np.array(Image.fromarray(grey).convert("RGB").quantize(4)))
        assert any(rims.smoothed for rims in find_rims(ids))
        assert any(rims.smoothed for rims in find_rims(3 - smoothed(disc())))

    def test_enlarged_bilinearly(self) -> None:
        small = disc(30, 9, (15, 15)).numpy() * np.float32(3)
        assert find_rims(torch.from_numpy(np.round(cv2.resize(small, (120, 120))).astype(np.uint8)))[0].smoothed

    def test_true_objects(self) -> None:
        plain = disc()
        assert find_rims(plain) == ()
        ball = torch.where(disc(120, 4, (60, 97)) > 0, 2, plain)  # held at the side
        leash = ball.clone()
        leash[20:100, 10:12] = 3
        leash[60:62, 12:30] = 3  # from the person to the side
        badge = torch.where(disc(120, 3, (60, 60)) > 0, 4, leash)
        assert not any(rims.smoothed for rims in find_rims(badge))
        assert find_rims(disc(120, 2)) == ()
        halves = plain.clone()
        halves[60:][halves[60:] > 0] = 2
        assert find_rims(halves) == ()

    def test_refused_unless_allowed(self, tmp_path: Path) -> None:
        frames = open_frames(film(tmp_path / "v.mp4", 2))
        one = (MASK == 1).to(torch.uint8)
        spoiled = smoothed(torch.nn.functional.pad(one[4:14, 5:20].repeat(2, 2), (9, 9, 6, 6)), 0.8, 4)
        write_label_map(tmp_path / "m.png", spoiled)
        areas = areas_of(spoiled)
        expected = rf"m\.png: ids 1 \({areas[1]} pixels\), 2 \({areas[2]} pixels\) lie like a rim around id 3 .* --allow-rims"
        with pytest.raises(ValueError, match=expected):
            GivenMasks(tmp_path / "m.png", frames)
        (line,) = GivenMasks(tmp_path / "m.png", frames, allow_rims=True).report()
        assert f"object 3: {areas[3]} pixels; warning: ids 1 ({areas[1]} pixels)" in line
