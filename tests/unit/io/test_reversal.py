"""Frames backwards are the frames, backwards."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import make_frames
from vos_lightning.io import video_files
from vos_lightning.io.reversal import backwards
from vos_lightning.io.video_files import picture_of
from vos_lightning.io.videos import open_frames


class Iterated:
    """Frames that can only be iterated; counts how many are asked for."""

    def __init__(self, frames: list[Tensor]) -> None:
        self.frames, self.asked = frames, 0

    def __iter__(self) -> Iterator[Tensor]:
        for frame in self.frames:
            self.asked += 1
            yield frame


def is_backwards(found: list[Tensor], frames: list[Tensor]) -> bool:
    return len(found) == len(frames) and all(torch.equal(a, b) for a, b in zip(found, reversed(frames), strict=True))


@pytest.mark.parametrize("held", [1, 3, 100])
@pytest.mark.parametrize("count", [1, 5, 7, 9])
def test_any_frames(held: int, count: int) -> None:
    frames = make_frames(9)
    for kind in (list, tuple, Iterated):
        found = list(backwards(kind(frames), count, held_bytes=held * frames[0].nbytes))
        assert is_backwards(found, frames[:count])


def test_too_few_frames() -> None:
    for kind in (list, Iterated):
        with pytest.raises(ValueError, match="ended before frame 4 "):
            next(backwards(kind(make_frames(4)), 5))
    with pytest.raises(ValueError, match="come only once"):
        next(backwards(iter(make_frames(4)), 3))


def encode(path: Path, codec: str, length: int, **options: str) -> Path:
    """Noise in colours of 8 x 8 pixels, so that no frame looks like another."""
    rng = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(length):
            array = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", "libx264", {"g": "8", "bf": "3"}),
        ("open_gop.mkv", "libx264", {"g": "6", "bf": "2", "x264-params": "open-gop=1"}),
        ("one_key_frame.mp4", "mpeg4", {"g": "300"}),
        ("no_times.avi", "mpeg4", {"g": "5"}),
        ("stream.ts", "libx264", {"g": "7", "bf": "2"}),
        ("vp9.webm", "libvpx-vp9", {"g": "5"}),
    ],
)
def test_video_files(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    source = open_frames(encode(tmp_path / name, codec, 23, **options))
    frames = list(source)
    assert len(frames) == 23
    for index in (0, 1, 5, 8, 17, 22, 23):
        found = list(source.since(index))
        assert len(found) == 23 - index
        assert all(torch.equal(a, b) for a, b in zip(found, frames[index:], strict=True))
    assert is_backwards(list(backwards(source, 20, held_bytes=4 * frames[0].nbytes)), frames[:20])


def test_pieces_are_decoded_from_their_key_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_frames(encode(tmp_path / "v.mp4", "libx264", 60, g="10"))
    frames = list(source)
    decoded = 0

    def count(frame: Any, path: Any) -> Tensor:
        nonlocal decoded
        decoded += 1
        return picture_of(frame, path)

    monkeypatch.setattr(video_files, "picture_of", count)
    assert is_backwards(list(backwards(source, 60, held_bytes=10 * frames[0].nbytes)), frames)
    assert decoded <= 70, "frames before a piece are not converted"


def test_the_chosen_part_of_a_video(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", "libx264", 30, g="5")
    whole = list(open_frames(path))
    for part in (open_frames(path).choose(4, 26, 3), open_frames(path).choose(Fraction(4, 10), Fraction(26, 10), 3)):
        frames = whole[4:26:3]
        assert is_backwards(list(backwards(part, len(frames), held_bytes=2 * frames[0].nbytes)), frames)
        assert [torch.equal(a, b) for a, b in zip(part.since(2), frames[2:], strict=True)] == [True] * 6


def test_folders(tmp_path: Path) -> None:
    for index in range(5):
        Image.new("RGB", (10, 8), (40 * index,) * 3).save(tmp_path / f"{index}.png")
    source = open_frames(tmp_path)
    assert [int(f[0, 0, 0]) for f in backwards(source, 4)] == [120, 80, 40, 0]
    assert [int(f[0, 0, 0]) for f in source.since(3)] == [120, 160]
