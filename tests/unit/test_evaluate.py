"""Scoring folders, and every way in which they can be wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vos_lightning import cli, evaluate
from vos_lightning.evaluate import EvaluationError, evaluate_folder, main
from vos_lightning.io.label_maps import PALETTE, read_label_map, write_label_map
from vos_lightning.metrics import evaluate_video

VIDEOS = {"bear": 2, "cat": 1}
NUM_FRAMES = 6


def label_maps(num_objects: int, shift: int) -> torch.Tensor:
    """Blocks that move to the right."""
    maps = torch.zeros(NUM_FRAMES, 24, 40, dtype=torch.uint8)
    for t in range(NUM_FRAMES):
        for object_id in range(1, num_objects + 1):
            maps[t, 10 * object_id - 8 : 10 * object_id, 5 + t + shift : 17 + t] = object_id
    return maps


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truth, and predictions without first and last frame."""
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for video, num_objects in VIDEOS.items():
        for t, (true, pred) in enumerate(zip(label_maps(num_objects, 0), label_maps(num_objects, 2), strict=True)):
            write_label_map(truth / video / f"{t:05d}.png", true)
            if 0 < t < NUM_FRAMES - 1:
                write_label_map(predictions / video / f"{t:05d}.png", pred)
    (truth / "cat" / "._00000.png").write_bytes(b"left by a file manager")
    (truth / "notes.txt").touch()
    return truth, predictions


def problems(truth: Path, predictions: Path, protocol: str = "davis17", **options: object) -> tuple[str, ...]:
    with pytest.raises(EvaluationError) as caught:
        evaluate_folder(truth, predictions, protocol, **options)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


# Right folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["davis16", "davis17"])
def test_folder_equals_tensors(folders: tuple[Path, Path], protocol: str) -> None:
    expected = [row for v, n in VIDEOS.items() for row in evaluate_video(label_maps(n, 2), label_maps(n, 0), protocol, v)]
    assert list(evaluate_folder(*folders, protocol).rows) == expected
    assert len(expected) == (3 if protocol == "davis17" else 2)
    assert 0.5 < expected[0].J < 1


def test_processes_change_nothing(folders: tuple[Path, Path]) -> None:
    assert evaluate_folder(*folders, "davis17", workers=2) == evaluate_folder(*folders, "davis17")


def test_command_writes_and_shows(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    truth, predictions = folders
    shutil.rmtree(predictions / "cat")
    names, output = tmp_path / "list.txt", tmp_path / "new" / "scores"
    names.write_text("bear\n\n")
    arguments = ["--truth", str(truth), "--predictions", str(predictions), "--protocol", "davis17", "--workers", "1"]
    assert main([*arguments, "--videos", str(names), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    line = "DAVIS 2017 semi-supervised: first and last frame skipped, 2 objects in 1 videos"
    assert line in shown
    assert "bear 1" in shown
    with open(output / "objects.csv") as file:
        rows = list(csv.DictReader(file))
    expected = evaluate_folder(truth, predictions, "davis17", videos=["bear"]).rows
    assert [(row["video"], int(row["object_id"]), float(row["J"]), float(row["F"])) for row in rows] == [
        (row.video, row.object_id, row.J, row.F) for row in expected
    ]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["description"] == line
    assert summary["global"]["J"] == pytest.approx(sum(row.J for row in expected) / 2)
    assert list(summary["sequences"]) == ["bear"]
    assert sorted(os.listdir(output)) == ["objects.csv", "summary.json"]


# Wrong folders --------------------------------------------------------------------------------------------------------


def test_every_problem_is_a_line_on_stderr(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    truth, predictions = folders
    shutil.rmtree(predictions / "bear")
    (predictions / "cat" / "00002.png").unlink()
    output = tmp_path / "scores"
    arguments = ["--truth", str(truth), "--predictions", str(predictions), "--protocol", "davis17", "--output", str(output)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines == [
        f"error: {predictions / 'bear'}: no predictions for this video; predict it, or leave it out with a list of videos",
        f"error: {predictions / 'cat'}: 1 of 4 frames are missing (00002); predict every frame",
    ]
    assert captured.out == ""
    assert not output.exists()


def test_missing_frames_are_listed_and_counted(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "NUM_NAMED", 2)
    for path in (folders[1] / "cat").iterdir():
        path.unlink()
    (found,) = problems(*folders)
    assert found == f"{folders[1] / 'cat'}: 4 of 4 frames are missing (00001, 00002 and 2 more); predict every frame"


def test_wrong_size(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "cat" / "00003.png"
    write_label_map(path, torch.zeros(12, 20, dtype=torch.uint8))
    (found,) = problems(*folders)
    assert found == f"{path}: 20 x 12 pixels where the truth has 40 x 24; write predictions at the size of the truth"


def test_ids_beyond_the_truth(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "cat" / "00002.png"
    write_label_map(path, read_label_map(path) * 255)
    (found,) = problems(*folders)
    assert found.startswith(f"{path}: holds id 255, but the first true frame has ids up to 1; write the ids of the truth")


def test_binary_truth_scored_as_davis17(folders: tuple[Path, Path]) -> None:
    for path in (folders[0] / "cat").glob("0*.png"):
        write_label_map(path, read_label_map(path) * 255)
    (found,) = problems(*folders)
    assert found.startswith(f"{folders[0] / 'cat' / '00000.png'}: is a mask of 0 and 255;")
    assert found.endswith("score such truth with davis16")
    assert len(evaluate_folder(*folders, "davis16").rows) == 2


def test_truth_without_ids(folders: tuple[Path, Path]) -> None:
    write_label_map(folders[0] / "cat" / "00000.png", torch.zeros(24, 40, dtype=torch.uint8))
    (found,) = problems(*folders)
    assert "holds no object id" in found


def test_colour_masks_and_broken_files_are_counted(folders: tuple[Path, Path]) -> None:
    smoothed = np.full((24, 40, 3), 77, dtype=np.uint8)
    for stem in ("00001", "00002", "00004"):
        Image.fromarray(smoothed).save(folders[1] / "bear" / f"{stem}.png")
    (folders[1] / "cat" / "00001.png").write_bytes(b"")
    bear, cat = problems(*folders)
    assert bear.startswith(f"{folders[1] / 'bear' / '00001.png'}: 1 stray colours (as #4d4d4d) in 960 pixels")
    assert bear.endswith("(and 2 more files of this video)")
    assert cat.startswith(f"{folders[1] / 'cat' / '00001.png'}: the image is damaged or truncated")


def test_colour_masks_in_the_palette_are_fine(folders: tuple[Path, Path]) -> None:
    before = evaluate_folder(*folders, "davis17")
    for path in folders[1].glob("*/*.png"):
        Image.fromarray(PALETTE[read_label_map(path).numpy()]).save(path)
    assert evaluate_folder(*folders, "davis17") == before


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda truth, predictions: (truth / "x", predictions), "truth/x: the truth folder does not exist"),
        (lambda truth, predictions: (truth, predictions / "x"), "predictions/x: the predictions folder does not exist"),
        (lambda truth, predictions: (truth, truth / ".." / "truth"), "are the same folder"),
        (lambda truth, predictions: (truth / "cat", predictions), "holds PNG files where video folders are expected"),
        (lambda truth, predictions: (truth, predictions / "cat"), "holds PNG files where video folders are expected"),
        (lambda truth, predictions: (truth, truth.parent), "holds folders predictions, truth; give the folder of video folders"),
        (lambda truth, predictions: (predictions, truth), "have truth and predictions been swapped?"),
    ],
)
def test_wrong_folders(folders: tuple[Path, Path], choose: Callable[[Path, Path], tuple[Path, Path]], message: str) -> None:
    found = problems(*choose(*folders))
    assert message in found[0]


def test_empty_truth_and_root_of_a_data_set(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (found,) = problems(tmp_path / "empty", folders[1])
    assert found.endswith("empty: holds no video folders; give the folder of video folders as truth")
    root = tmp_path / "DAVIS"
    shutil.copytree(folders[0], root / "Annotations" / "480p")
    found = problems(root, folders[1])
    assert f"{root}: has no video folders at its top; give {root}/Annotations/480p as truth" in found[0]


def test_wrong_lists(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "truth of this video is missing" in problems(*folders, videos=["cat", "dog"])[0]
    arguments = ["--truth", str(folders[0]), "--predictions", str(folders[1]), "--protocol", "davis17"]
    names = tmp_path / "list.txt"
    assert main([*arguments, "--videos", str(names)]) == 2
    names.write_text("\n")
    assert main([*arguments, "--videos", str(names)]) == 2
    assert [line.split(": ", 2)[2] for line in capsys.readouterr().err.splitlines()] == [
        "the list of videos does not exist",
        "the list of videos is empty; write one name a line",
    ]


def test_scores_do_not_go_among_the_masks(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, predictions = folders
    command = ["evaluate", "--truth", str(truth), "--predictions", str(predictions), "--protocol", "davis17", "--output"]
    for output in (truth, predictions / "bear"):
        assert cli.main([*command, str(output)]) == 2
        assert "lies in the input" in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.csv"), *tmp_path.rglob("*.json")]


def test_short_video(folders: tuple[Path, Path]) -> None:
    for t in range(2, NUM_FRAMES):
        (folders[0] / "cat" / f"{t:05d}.png").unlink()
    (found,) = problems(*folders)
    assert "cat: 2 PNG files; the first and the last frame are skipped" in found
