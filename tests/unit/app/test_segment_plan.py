"""``vos segment`` says what a video will cost before its first frame, and takes a smaller size where it would not fit."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.app.test_segment import changed
from tests.unit.dummies import make_frames, make_label_map
from vos_lightning.app.cli import main
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import VideoWriter
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.propagation import budget
from vos_lightning.propagation.engine import InferenceEngine

NUM_FRAMES = 6


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Frames of 48 x 32, which the checkpoint's short side of 24 pixels makes smaller."""
    with VideoWriter(tmp_path / "film.mp4") as writer:
        for frame in make_frames(NUM_FRAMES, height=32, width=48):
            writer.write(frame)
    write_label_map(tmp_path / "film.png", make_label_map((1, 2), height=32, width=48))
    return tmp_path / "film.mp4"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Inner sizes of the frames that are segmented; those of the estimate do not count."""
    seen: list[tuple[int, int]] = []
    run = InferenceEngine.run

    def watched(engine: InferenceEngine, video: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for prediction in run(engine, video, *arguments, **options):
            seen.append(engine.inner_size(video.original_size))
            yield prediction

    monkeypatch.setattr(InferenceEngine, "run", watched)
    monkeypatch.setattr(budget, "SMALLEST_SIDE", 8)
    return seen


def with_free(monkeypatch: pytest.MonkeyPatch, *counts: int | None) -> None:
    """Bytes that are free at each estimate; the last one stays."""
    left = list(counts)
    monkeypatch.setattr(budget, "free_memory", lambda device: left.pop(0) if len(left) > 1 else left[0])


def segment(checkpoint: Path, output: Path, *arguments: str | Path) -> int:
    return main(["segment", *map(str, arguments), "--checkpoint", str(checkpoint), "--output", str(output), "--device", "cpu"])


def test_one_line_says_frames_time_and_memory(
    checkpoint: Path, film: Path, tmp_path: Path, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with_free(monkeypatch, 2**33)
    assert segment(checkpoint, tmp_path / "out", film, "--start", "1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "of memory" in line]
    line = r"film: 5 frames, about \d+ s and \d+ MiB of memory \(8\.0 GiB free\), processed at 36 x 24"
    assert [bool(re.fullmatch(line, told)) for told in lines] == [True]
    assert sizes == [(24, 36)] * 5


def test_a_video_that_does_not_fit_is_processed_smaller_and_the_next_one_is_not(
    checkpoint: Path, film: Path, tmp_path: Path, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "next.mp4").write_bytes(film.read_bytes())
    (tmp_path / "next.png").write_bytes((tmp_path / "film.png").read_bytes())
    with_free(monkeypatch, 1, 2**33)
    assert segment(checkpoint, tmp_path / "out", film, tmp_path / "next.mp4") == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "frames are processed at a short side of" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "film: frames are processed at a short side of 8 pixels instead of 24, as 2 object(s) would not fit"
    )
    assert sum("memory may not suffice" in line for line in lines) == 1
    assert sizes == [(8, 12)] * NUM_FRAMES + [(24, 36)] * NUM_FRAMES
    assert read_label_map(tmp_path / "out" / "masks" / "film" / "00005.png").shape == (32, 48)


@pytest.mark.parametrize(("option", "side", "shrinks"), [("--short-side", "20", False), ("--max-size", "20", True)])
def test_an_explicit_size_wins(
    option: str,
    side: str,
    shrinks: bool,
    checkpoint: Path,
    film: Path,
    tmp_path: Path,
    sizes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """``--max-size`` is a bound, and a smaller size keeps it."""
    with_free(monkeypatch, 1)
    assert segment(checkpoint, tmp_path / "out", film, option, side) == 0
    output = capsys.readouterr().out
    assert ("frames are processed at a short side" in output) == shrinks
    assert "film: memory may not suffice" in output
    assert {min(size) for size in sizes} == {8 if shrinks else 20}


def test_where_nothing_says_what_is_free(
    checkpoint: Path, film: Path, tmp_path: Path, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with_free(monkeypatch, None)
    assert segment(checkpoint, tmp_path / "out", film) == 0
    assert re.search(r"film: 6 frames, about \d+ s and \d+ MiB of memory, processed at 36 x 24\n", capsys.readouterr().out)


def test_small_objects_do_not_undo_the_size_that_fits(
    checkpoint: Path, film: Path, tmp_path: Path, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMVOS's rule keeps a video's own size where a given mask is small; it is the size that would not fit."""

    def strict(hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        hyper_parameters["evaluation"]["min_object_pixels"] = 10_000
        return hyper_parameters

    path = changed(checkpoint, tmp_path / "strict.ckpt", hyper_parameters=strict)
    with_free(monkeypatch, 2**33)
    assert segment(path, tmp_path / "whole", film) == 0
    assert sizes == [(32, 48)] * NUM_FRAMES
    sizes.clear()
    with_free(monkeypatch, 1)
    assert segment(path, tmp_path / "out", film) == 0
    assert sizes == [(8, 12)] * NUM_FRAMES


@pytest.mark.parametrize("first", [1, 2**33])
def test_a_resumed_run_keeps_the_size_of_the_first_one(
    first: int,
    checkpoint: Path,
    film: Path,
    tmp_path: Path,
    sizes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    with_free(monkeypatch, first)
    assert segment(checkpoint, tmp_path / "whole", film) == 0
    take = PredictionFiles.take

    def stopped(files: PredictionFiles, video: Any, prediction: Any, stored: bool = False) -> None:
        take(files, video, prediction, stored)
        if prediction.frame_index == 2 and not stored:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFiles, "take", stopped)
        assert segment(checkpoint, tmp_path / "out", film) == 75
    sizes.clear()
    capsys.readouterr()
    with_free(monkeypatch, 2**33 if first == 1 else 1)
    assert segment(checkpoint, tmp_path / "out", film, "--resume") == 0
    output = capsys.readouterr().out
    assert "film: 3 frames, about " in output
    assert "film: frames are processed" not in output
    assert ("film: memory may not suffice" in output) == (first != 1)
    assert set(sizes) == {(8, 12) if first == 1 else (24, 36)}
    for path in sorted((tmp_path / "whole" / "masks" / "film").iterdir()):
        assert torch.equal(read_label_map(path), read_label_map(tmp_path / "out" / "masks" / "film" / path.name))
