"""Whole runs of ``vos segment``: many videos, parts of them, what is written, and going on after an interruption."""

from __future__ import annotations

import csv
import json
import os
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.dummies import Camera, make_frames, make_label_map
from vos_lightning.app.cli import main
from vos_lightning.app.torch_backend import autocast_type
from vos_lightning.io.given_masks import GivenMasks
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import VideoWriter, open_frames
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.propagation import budget
from vos_lightning.propagation.engine import InferenceEngine

TIMES = [Fraction(t, 100) for t in (0, 10, 70, 80, 95, 130)]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Six frames at times that vary, with its mask beside it."""
    write_film(tmp_path / "film.mp4")
    write_label_map(tmp_path / "film.png", mask_of(1, 2))
    return tmp_path / "film.mp4"


def mask_of(*ids: int) -> Tensor:
    mask = make_label_map((1, 2), height=32, width=48)
    return mask * torch.isin(mask, torch.tensor(ids, dtype=torch.uint8))


def write_film(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with VideoWriter(path, 10) as writer:
        for frame, time in zip(make_frames(len(TIMES), height=32, width=48), TIMES, strict=True):
            writer.write(frame, time)


def segment(checkpoint: Path, output: Path, *arguments: str | Path) -> int:
    options = ("--checkpoint", checkpoint, "--output", output, "--device", "cpu", "--short-side", "0")
    return main(["segment", *map(str, arguments), *map(str, options)])


def content(folder: Path) -> dict[str, bytes]:
    """Files of an output that say what was found; records and videos hold identifiers of their own."""
    files = (path for path in folder.rglob("*") if path.suffix in (".png", ".csv", ".json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def ids_of(folder: Path) -> list[list[int]]:
    return [read_label_map(path).unique().tolist() for path in sorted(folder.iterdir())]


class TestManyVideos:
    def test_one_that_is_bad_does_not_stop_the_rest(self, checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
        cut = film.read_bytes()
        (tmp_path / "bad.mp4").write_bytes(cut[:-500])
        write_film(tmp_path / "other.mp4")
        masks = tmp_path / "masks"
        for name in ("film", "bad", "other/0"):
            write_label_map(masks / f"{name}.png", mask_of(1))
        code = segment(checkpoint, tmp_path / "out", film, tmp_path / "bad.mp4", tmp_path / "other.mp4", "--mask", masks)
        assert code == 1
        error = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
        assert "bad.mp4 is passed over: " in error[0]
        assert "500 bytes at the end are missing" in error[0]
        assert error[1] == "1 of 3 videos are passed over; see above"
        assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["film", "other"]
        assert ids_of(tmp_path / "out" / "masks" / "other") == [[0, 1]] * 6

    def test_what_was_written_of_a_bad_one_is_kept(self, checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
        folder = tmp_path / "frames"
        folder.mkdir()
        for index, frame in enumerate(make_frames(5, height=32, width=48)):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{index}.webp", lossless=True)
        (folder / "3.webp").write_bytes((folder / "3.webp").read_bytes()[:-40])
        masks = tmp_path / "masks"
        for name in ("film", "frames"):
            write_label_map(masks / f"{name}.png", mask_of(1))
        arguments = (folder, film, "--mask", masks)
        assert segment(checkpoint, tmp_path / "out", *arguments) == 1
        assert len(list((tmp_path / "out" / "masks" / "frames").iterdir())) == 3
        assert len(list(open_frames(tmp_path / "out" / "overlays" / "frames.mp4"))) == 3
        # Mended, it is segmented again, and the other one is not.
        Image.fromarray(make_frames(5, height=32, width=48)[3].permute(1, 2, 0).numpy()).save(folder / "3.webp", lossless=True)
        capsys.readouterr()
        assert segment(checkpoint, tmp_path / "out", *arguments, "--resume") == 0
        assert "film: done already, kept" in capsys.readouterr().out
        assert len(list((tmp_path / "out" / "masks" / "frames").iterdir())) == 5

    @pytest.mark.parametrize("kind", ["file", "folder", "json"])
    def test_masks_lie_beside_the_video(self, kind: str, checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
        mask = tmp_path / "film.png"
        if kind == "folder":
            (tmp_path / "film_masks").mkdir()
            mask = mask.rename(tmp_path / "film_masks" / "0.png").parent
        elif kind == "json":
            mask.unlink()
            mask = tmp_path / "film.json"
            shape = {"label": "a", "points": [[4, 4], [20, 4], [20, 20]], "shape_type": "polygon"}
            mask.write_text(json.dumps({"version": "5", "shapes": [shape]}))
        assert segment(checkpoint, tmp_path / "out", film) == 0
        assert f"{film}: masks from {mask}" in capsys.readouterr().out

    def test_no_mask_or_two(self, checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "film_masks").mkdir()
        assert segment(checkpoint, tmp_path / "out", film) == 2
        assert "film.png and film_masks are both its masks; keep one" in capsys.readouterr().err
        (tmp_path / "film_masks").rmdir()
        (tmp_path / "film.png").unlink()
        assert segment(checkpoint, tmp_path / "out", film) == 2
        assert "film.mp4: no mask says what to cut out (there is no film.png, film.json, film.xml or film_masks/" in (
            capsys.readouterr().err
        )
        assert not (tmp_path / "out").exists()


class TestWhatIsWritten:
    def test_every_format(self, checkpoint: Path, film: Path, tmp_path: Path) -> None:
        formats = ("overlay", "objects", "coco", "cutouts", "webm", "prores", "green")
        assert segment(checkpoint, tmp_path / "out", film, "--formats", *formats, "--labels", "--dim", "0.5") == 0
        out, mask = tmp_path / "out", read_label_map(tmp_path / "film.png")
        pictures = list(open_frames(film))
        cut = np.asarray(Image.open(out / "cutouts" / "film" / "00003.png"))
        assert np.array_equal(cut[..., 3] == 255, mask.numpy() > 0)
        assert np.array_equal(cut[..., :3], pictures[3].permute(1, 2, 0).numpy())
        for object_id in (1, 2):
            plane = np.asarray(Image.open(out / "objects" / "film" / str(object_id) / "00005.png"))
            assert np.array_equal(plane, (mask == object_id).numpy() * np.uint8(255))
        for name in ("overlays/film.mp4", "green/film.mp4", "cutouts/film.webm", "cutouts/film.mov"):
            frames = open_frames(out / name)
            assert len(list(frames)) == 6
            assert [round(frames.time_of(i) * 100) for i in range(6)] == [round(t * 100) for t in TIMES]
        green = list(open_frames(out / "green" / "film.mp4"))[2].float()
        assert (green[:, 28:, :4].mean(dim=(1, 2)) - torch.tensor([0.0, 177.0, 64.0])).abs().max() < 12
        dimmed = list(open_frames(out / "overlays" / "film.mp4"))[2].float()
        assert (dimmed[:, 26:, :6].mean() - pictures[2][:, 26:, :6].float().mean() * 0.5).abs() < 15
        # What was written can be given as masks again.
        again = GivenMasks(out / "coco" / "film.json", open_frames(film))
        assert list(again) == list(range(6))
        assert all(torch.equal(again[t], mask) for t in again)

    def test_numbers_and_times_of_a_part(self, checkpoint: Path, film: Path, tmp_path: Path) -> None:
        assert segment(checkpoint, tmp_path / "out", film, "--start", "0.5s", "--end", "6", "--stride", "2") == 0
        assert sorted(path.name for path in (tmp_path / "out" / "masks" / "film").iterdir()) == ["00002.png", "00004.png"]
        with (tmp_path / "out" / "index" / "film.csv").open(newline="") as file:
            rows = [(row["name"], row["time"]) for row in csv.DictReader(file)]
        assert rows == [(name, time) for name, time in (("00002", "00:00:00.700"), ("00004", "00:00:00.950")) for _ in range(2)]
        overlay = open_frames(tmp_path / "out" / "overlays" / "film.mp4")
        assert len(list(overlay)) == 2
        assert overlay.time_of(1) == Fraction(1, 4)

    def test_black_means_gone(self, checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
        mask = read_label_map(tmp_path / "film.png")
        for number, drawn in ((0, mask), (2, mask * 0), (4, mask * (mask == 2))):
            write_label_map(tmp_path / "masks" / f"{number}.png", drawn)
        assert segment(checkpoint, tmp_path / "out", film, "--mask", tmp_path / "masks") == 0
        assert ids_of(tmp_path / "out" / "masks" / "film") == [[0, 1, 2], [0, 1, 2], [0], [0], [0, 2], [0, 2]]
        assert "2.png (frame 00002): objects 1, 2 are gone from here on" in capsys.readouterr().out

    @pytest.mark.parametrize(("direction", "expected"), [("backward", [[0, 1]] * 4 + [[0]] * 2), ("both", [[0, 1]] * 6)])
    def test_directions(
        self, direction: str, expected: list[list[int]], checkpoint: Path, film: Path, tmp_path: Path, capsys: Any
    ) -> None:
        """Frames come in another order; pictures and table are in the order of time."""
        write_label_map(tmp_path / "masks" / "3.png", mask_of(1))
        options = ("--mask", tmp_path / "masks", "--direction", direction)
        assert segment(checkpoint, tmp_path / "out", film, *options) == 0
        assert ids_of(tmp_path / "out" / "masks" / "film") == expected
        assert segment(checkpoint, tmp_path / "forward", film, "--mask", tmp_path / "out" / "masks" / "film") == 0
        overlay, forward = (open_frames(tmp_path / name / "overlays" / "film.mp4") for name in ("out", "forward"))
        assert torch.equal(torch.stack(list(overlay)), torch.stack(list(forward)))
        with (tmp_path / "out" / "index" / "film.csv").open(newline="") as file:
            frames = [int(row["frame"]) for row in csv.DictReader(file)]
        assert frames == sorted(frames)
        assert segment(checkpoint, tmp_path / "out", film, *options, "--resume") == 0
        assert "done already" in capsys.readouterr().out

    def test_a_camera_until_a_signal(
        self, checkpoint: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera(lambda index: np.full((32, 48, 3), 90, np.uint8), 4))
        assert segment(checkpoint, tmp_path / "out", "camera:0", "--mask", tmp_path / "film.png") == 0
        assert "camera_0: 4 frames" in capsys.readouterr().out
        assert len(list(open_frames(tmp_path / "out" / "overlays" / "camera_0.mp4"))) == 4
        assert '"finished": true' in (tmp_path / "out" / "written.jsonl").read_text()
        assert segment(checkpoint, tmp_path / "no", "camera:0", "--mask", tmp_path / "film.png", "--direction", "both") == 2
        assert "camera:0: a stream can be followed forwards only" in capsys.readouterr().err


class TestGoingOn:
    FORMATS = ("--formats", "overlay", "coco", "cutouts")

    @pytest.fixture
    def steps(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Indices of the frames that the network has seen; those of the estimate before the start are left out."""
        monkeypatch.setattr(budget, "_measure", lambda engine, size, count: budget._Sample(size[0] * size[1], 1, 0.1, 1))
        seen: list[int] = []
        step = InferenceEngine.step

        def counted(engine: InferenceEngine, *arguments: Any, **options: Any) -> Any:
            prediction = step(engine, *arguments, **options)
            seen.append(prediction.frame_index)
            return prediction

        monkeypatch.setattr(InferenceEngine, "step", counted)
        return seen

    def interrupt(self, monkeypatch: pytest.MonkeyPatch, steps: list[int], at: int, act: Any) -> None:
        take = PredictionFiles.take
        waiting = [act]

        def interrupted(files: PredictionFiles, video: Any, prediction: Any, stored: bool = False) -> None:
            take(files, video, prediction, stored)
            if prediction.frame_index == at and len(steps) == at + 1 and waiting:
                waiting.pop()()

        monkeypatch.setattr(PredictionFiles, "take", interrupted)

    def test_after_sigterm_nothing_is_computed_twice(
        self, checkpoint: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], capsys: Any
    ) -> None:
        write_label_map(tmp_path / "m" / "0.png", mask_of(1))
        write_label_map(tmp_path / "m" / "4.png", mask_of(2))
        arguments = (film, "--mask", tmp_path / "m", *self.FORMATS)
        assert segment(checkpoint, tmp_path / "whole", *arguments) == 0
        steps.clear()
        self.interrupt(monkeypatch, steps, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert segment(checkpoint, tmp_path / "out", *arguments) == 75
        assert "stopped; the same command with --resume goes on" in capsys.readouterr().err
        assert len(list(open_frames(tmp_path / "out" / "overlays" / "film.mp4"))) == 3
        assert len(json.loads((tmp_path / "out" / "coco" / "film.json").read_text())["images"]) == 3
        assert segment(checkpoint, tmp_path / "out", *arguments) == 2  # not without --resume
        assert segment(checkpoint, tmp_path / "out", *arguments, "--resume") == 0
        assert "film: goes on after frame 00002" in capsys.readouterr().out
        assert steps == list(range(6))
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        overlays = [torch.stack(list(open_frames(tmp_path / name / "overlays" / "film.mp4"))) for name in ("out", "whole")]
        assert torch.equal(*overlays)
        assert not (tmp_path / "out" / "resume").exists()
        assert '"finished": true' in (tmp_path / "out" / "written.jsonl").read_text()
        assert segment(checkpoint, tmp_path / "out", *arguments, "--resume") == 0
        assert len(steps) == 6

    def test_after_a_kill_the_last_snapshot_counts(
        self, checkpoint: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
    ) -> None:
        """A killed process finishes nothing: neither the files nor the record."""

        class KilledError(BaseException):
            pass

        def killed() -> None:
            raise KilledError

        arguments = (film, "--formats", "overlay", "cutouts")
        assert segment(checkpoint, tmp_path / "whole", *arguments) == 0
        steps.clear()
        with monkeypatch.context() as patch:
            patch.setattr("vos_lightning.app.segmenting.SNAPSHOT_SECONDS", -1.0)
            patch.setattr("vos_lightning.app.segmenting.SAVING_SHARE", float("inf"))
            patch.setattr(PredictionFiles, "finish", lambda files, error=None: None)
            self.interrupt(patch, steps, 3, killed)
            with pytest.raises(KilledError):
                segment(checkpoint, tmp_path / "out", *arguments)
        assert not (tmp_path / "out" / "overlays" / "film.mp4").exists()
        assert segment(checkpoint, tmp_path / "out", *arguments, "--resume") == 0
        assert steps == [0, 1, 2, 3, 3, 4, 5]
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        assert not list((tmp_path / "out").rglob("*.tmp"))

    @pytest.mark.parametrize("change", ["mask", "option", "snapshot"])
    def test_changed_inputs_begin_anew(
        self,
        change: str,
        checkpoint: Path,
        film: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        steps: list[int],
        capsys: Any,
    ) -> None:
        self.interrupt(monkeypatch, steps, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert segment(checkpoint, tmp_path / "out", film) == 75
        capsys.readouterr()
        options: tuple[str, ...] = ()
        if change == "mask":
            write_label_map(tmp_path / "film.png", mask_of(1, 2).flip(1))
        elif change == "option":
            options = ("--stride", "2")
        else:
            (tmp_path / "out" / "resume" / "film.pt").write_bytes(b"PK nothing")
        code = segment(checkpoint, tmp_path / "out", film, *options, "--resume")
        output = capsys.readouterr()
        if change == "mask":
            assert code == 0
            assert "film: begins anew, as the video or its masks have changed" in output.out
            assert steps == [0, 1, 2, 0, 1, 2, 3, 4, 5]
        elif change == "option":
            assert code == 2
            assert "holds results of another checkpoint, or with other options" in output.err
        else:
            assert code == 0
            assert "film: begins anew, as its state cannot be read" in output.out

    def test_a_finished_video_with_a_new_mask(self, checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
        assert segment(checkpoint, tmp_path / "out", film) == 0
        write_label_map(tmp_path / "film.png", mask_of(2))
        assert segment(checkpoint, tmp_path / "out", film, "--resume") == 0
        assert "film: the video or its masks have changed; it is segmented anew" in capsys.readouterr().out
        assert ids_of(tmp_path / "out" / "masks" / "film") == [[0, 2]] * 6


def test_the_old_command_says_the_new_one(film: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["predict", "--video", str(film), "--masks", "m.png", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: your own videos are segmented by: vos segment VIDEO --mask MASK --output DIR\n"


@pytest.mark.parametrize(
    ("name", "fast", "expected"),
    [("auto", True, torch.bfloat16), ("auto", False, None), ("16-mixed", False, torch.float16), ("32-true", True, None)],
)
def test_precision(name: str, fast: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert autocast_type(name, torch.device("cuda")) == expected
    assert autocast_type("auto", torch.device("cpu")) is None
