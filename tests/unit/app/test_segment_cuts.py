"""``vos segment`` on a video with two scenes: objects are let go at the cut, and asked for in words."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.dummies import Camera
from vos_lightning.app.cli import main
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import VideoWriter
from vos_lightning.predictions.stored import StoredPredictions
from vos_lightning.predictions.writer import PredictionFiles

SIZE = (48, 64)
CUT, LENGTH = 5, 9
LINE = "film: let go at a scene cut: frame 00005 (00:00:00.500) objects 1, 2\n"


def picture(index: int) -> Tensor:
    """A dark green scene with a bright square, and a bright blue one with a dark square, both with noise."""
    ground, square = ((20, 90, 30), (230, 200, 60)) if index < CUT else ((90, 120, 230), (60, 20, 20))
    noise = np.random.default_rng(index).integers(0, 6, (*SIZE, 3))
    frame = (np.array(ground) + noise).astype(np.uint8)
    frame[10:26, 10 + index : 26 + index] = square
    return torch.from_numpy(frame.transpose(2, 0, 1).copy())


def mask(*ids: int) -> Tensor:
    found = torch.zeros(SIZE, dtype=torch.uint8)
    for i in ids:
        found[12 * i : 12 * i + 10, 12:34] = i
    return found


@pytest.fixture
def film(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "film.mp4", 10) as writer:
        for index in range(LENGTH):
            writer.write(picture(index))
    write_label_map(tmp_path / "film.png", mask(1, 2))
    return tmp_path / "film.mp4"


def segment(checkpoint: Path | None, output: Path, *arguments: str | Path) -> int:
    options: tuple[str | Path, ...] = ("--output", output, "--device", "cpu", "--short-side", "0", "--formats", "masks")
    if checkpoint is not None:
        options = (*options, "--checkpoint", checkpoint)
    return main(["segment", *map(str, arguments), *map(str, options)])


def ids_of(output: Path) -> list[list[int]]:
    return [[i for i in read_label_map(path).unique().tolist() if i] for path in sorted((output / "masks" / "film").iterdir())]


def cuts_in(output: Path) -> list[tuple[int, int]]:
    with (output / "index" / "film.csv").open(newline="") as file:
        return [(int(row["frame"]), int(row["object_id"])) for row in csv.DictReader(file) if "scene_cut" in row["flags"]]


def content(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*.*") if path.suffix != ".jsonl"}


def test_objects_are_let_go_and_a_mask_of_that_frame_goes_on(checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert segment(checkpoint, out, film) == 0
    assert ids_of(out) == [[1, 2]] * CUT + [[]] * (LENGTH - CUT)
    assert cuts_in(out) == [(CUT, 1), (CUT, 2)]
    said = capsys.readouterr().out
    assert LINE in said
    assert "(as 00005.png in a folder that --mask names, with film.png as 00000.png in it) and run again with --resume" in said
    assert "1 frame to look at" in said
    # What the lines advise.
    (tmp_path / "film_masks").mkdir()
    (tmp_path / "film.png").rename(tmp_path / "film_masks" / "00000.png")
    write_label_map(tmp_path / "film_masks" / "00005.png", mask(2))
    assert segment(checkpoint, out, film, "--resume") == 0
    assert ids_of(out) == [[1, 2]] * CUT + [[2]] * (LENGTH - CUT)
    assert cuts_in(out) == [(CUT, 1)]
    assert "frame 00005 (00:00:00.500) object 1\n" in capsys.readouterr().out


def test_follow_goes_on_through_cuts(checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert segment(checkpoint, out, film) == 0
    assert segment(checkpoint, out, film, "--at-cut", "follow", "--resume") == 2
    assert "with other options" in capsys.readouterr().err
    assert segment(checkpoint, out, film, "--at-cut", "follow", "--overwrite") == 0
    assert ids_of(out) == [[1, 2]] * LENGTH
    assert "let go" not in capsys.readouterr().out
    assert cuts_in(out) == [(CUT, 1), (CUT, 2)]  # the index says where it is, all the same


def test_an_object_that_is_said_to_be_gone_is_not_asked_for(checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
    """An answer that there is nothing in the other scene, and objects that were gone before."""
    for at in (3, CUT):
        masks = tmp_path / f"m{at}"
        write_label_map(masks / "0.png", mask(1, 2))
        write_label_map(masks / f"{at}.png", mask())
        assert segment(checkpoint, tmp_path / f"out{at}", film, "--mask", masks) == 0
        assert ids_of(tmp_path / f"out{at}") == [[1, 2]] * at + [[]] * (LENGTH - at)
        assert cuts_in(tmp_path / f"out{at}") == []
    masks = tmp_path / "m3"
    write_label_map(masks / "4.png", mask(2))
    capsys.readouterr()
    assert segment(checkpoint, tmp_path / "out", film, "--mask", masks) == 0
    said = capsys.readouterr().out
    assert "let go at a scene cut: frame 00005 (00:00:00.500) object 2\n" in said
    assert f"(as 00005.png in {masks})" in said
    assert cuts_in(tmp_path / "out") == [(CUT, 2)]


@pytest.mark.parametrize(
    ("direction", "given", "expected", "asked"),
    [
        ("backward", {LENGTH - 1: (1,)}, [[]] * CUT + [[1]] * 4, [(CUT - 1, 1)]),
        ("both", {2: (1,)}, [[1]] * CUT + [[]] * 4, [(CUT, 1)]),
        ("both", {6: (2,)}, [[]] * CUT + [[2]] * 4, [(CUT - 1, 2)]),
        ("both", {2: (1,), 7: (2,)}, [[1]] * CUT + [[2]] * 4, [(CUT, 1)]),
    ],
)
def test_a_cut_is_one_backwards_too(
    direction: str,
    given: dict[int, tuple[int, ...]],
    expected: list[list[int]],
    asked: list[tuple[int, int]],
    checkpoint: Path,
    film: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    for index, ids in {0: (), **given}.items():
        write_label_map(tmp_path / "m" / f"{index}.png", mask(*ids))
    (tmp_path / "m" / "0.png").unlink()
    assert segment(checkpoint, tmp_path / "out", film, "--mask", tmp_path / "m", "--direction", direction) == 0
    assert ids_of(tmp_path / "out") == expected
    assert cuts_in(tmp_path / "out") == asked
    assert f"film: let go at a scene cut: frame {asked[0][0]:05d}" in capsys.readouterr().out


def test_names_of_masks_follow_the_numbering(checkpoint: Path, film: Path, tmp_path: Path, capsys: Any) -> None:
    write_label_map(tmp_path / "m" / "1.png", mask(1))
    assert segment(checkpoint, tmp_path / "out", film, "--mask", tmp_path / "m") == 0
    assert f"(as 00006.png in {tmp_path / 'm'})" in capsys.readouterr().out
    write_label_map(tmp_path / "m" / "00006.png", mask(1))
    assert segment(checkpoint, tmp_path / "out", film, "--mask", tmp_path / "m", "--resume") == 0
    assert ids_of(tmp_path / "out") == [[1]] * LENGTH
    part = ("--start", "1", "--stride", "2")
    assert segment(checkpoint, tmp_path / "part", film, "--mask", tmp_path / "film.png", *part) == 0
    said = capsys.readouterr().out
    assert "frame 00005 (00:00:00.500)" in said
    assert "as 00005.png in a folder that --mask names, with film.png as 00001.png in it" in said


@pytest.mark.parametrize("at", [CUT - 1, CUT, CUT + 1])
@pytest.mark.parametrize("how", ["sigterm", "kill"])
def test_an_interrupted_run_finds_the_same_cuts(
    how: str, at: int, checkpoint: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class KilledError(BaseException):
        pass

    assert segment(checkpoint, tmp_path / "whole", film) == 0
    take = PredictionFiles.take

    def interrupted(files: PredictionFiles, video: Any, prediction: Any, stored: bool = False) -> None:
        take(files, video, prediction, stored)
        if prediction.frame_index == at and how == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        elif prediction.frame_index == at + 1:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("vos_lightning.app.segmenting.SNAPSHOT_SECONDS", -1.0)
        patch.setattr("vos_lightning.app.segmenting.SAVING_SHARE", float("inf"))
        patch.setattr(PredictionFiles, "take", interrupted)
        if how == "kill":
            patch.setattr(PredictionFiles, "finish", lambda files, error=None: None)
            with pytest.raises(KilledError):
                segment(checkpoint, tmp_path / "out", film)
        else:
            assert segment(checkpoint, tmp_path / "out", film) == 75
    capsys.readouterr()
    assert segment(checkpoint, tmp_path / "out", film, "--resume") == 0
    said = capsys.readouterr().out
    assert f"film: goes on after frame {at:05d}" in said
    assert LINE in said
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_without_pytorch_as_with_it(film: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnxruntime")
    for direction in ("forward", "backward"):
        folder = tmp_path / direction
        write_label_map(folder / "m" / f"{0 if direction == 'forward' else LENGTH - 1}.png", mask(1, 2))
        arguments = (film, "--mask", folder / "m", "--backend", "onnxruntime", "--direction", direction)
        assert segment(None, folder / "out", *arguments) == 0
        at = CUT if direction == "forward" else CUT - 1
        assert cuts_in(folder / "out") == [(at, 1), (at, 2)]
        seen = [bool(ids) for ids in ids_of(folder / "out")]
        assert not any(seen[CUT:] if direction == "forward" else seen[:CUT])
        assert f"frame {at:05d} (00:00:00.{at}00) objects 1, 2" in capsys.readouterr().out


def test_nobody_looks_for_cuts_without_an_object(
    checkpoint: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr("vos_lightning.propagation.streaming.SceneCuts.is_next", lambda cuts, frame: bool(looked.append(1)))
    write_label_map(tmp_path / "m" / "6.png", mask(1))
    assert segment(checkpoint, tmp_path / "out", film, "--mask", tmp_path / "m") == 0
    assert len(looked) == 3
    assert segment(checkpoint, tmp_path / "follow", film, "--mask", tmp_path / "m", "--at-cut", "follow") == 0
    assert len(looked) == 3


def test_stored_predictions_tell_objects_that_were_let_go(film: Path, tmp_path: Path) -> None:
    from vos_lightning.predictions.drift import SCENE_CUT, ObjectRow

    rows = [ObjectRow(3, "3", 1, 0, 0.0, SCENE_CUT), ObjectRow(3, "3", 2, 5, 0.9, SCENE_CUT), ObjectRow(4, "4", 2, 5, 0.9, "")]
    stored = StoredPredictions(lambda index: mask(2), rows)
    assert (stored(3, picture(3)).object_ids, stored(3, picture(3)).scene_cut) == ((2,), True)
    assert (stored(4, picture(4)).object_ids, stored(4, picture(4)).scene_cut) == ((2,), False)


def test_streams_are_followed_through(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Nobody can be asked for a mask of what comes only once."""
    import cv2

    def sent(index: int) -> np.ndarray:
        return np.ascontiguousarray(picture(index).permute(1, 2, 0).numpy())

    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera(sent, LENGTH))
    write_label_map(tmp_path / "m.png", mask(1))
    for options, found in (((), [1]), (("--at-cut", "ask"), [])):
        out = tmp_path / f"out{len(options)}"
        assert segment(checkpoint, out, "camera:0", "--mask", tmp_path / "m.png", *options) == 0
        last = sorted((out / "masks" / "camera_0").iterdir())[-1]
        assert [i for i in read_label_map(last).unique().tolist() if i] == found
    assert "to follow objects through cuts of a stream, leave --at-cut out" in capsys.readouterr().out
