"""Scoring folders, and every way in which they can be wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vos_lightning.app import cli
from vos_lightning.evaluation import folders as evaluate
from vos_lightning.evaluation import reading, tasks
from vos_lightning.evaluation.command import main
from vos_lightning.evaluation.folders import evaluate_folder, read_videos
from vos_lightning.evaluation.tasks import EvaluationError, Task
from vos_lightning.io.label_maps import PALETTE, read_label_map, write_label_map
from vos_lightning.io.plain_png import read_plain_png
from vos_lightning.metrics.protocols import evaluate_video
from vos_lightning.metrics.scores import Protocol

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
    alone = evaluate_folder(*folders, "davis17")
    assert evaluate_folder(*folders, "davis17", workers=2) == alone
    assert evaluate_folder(*folders, "davis17", workers=None) == alone
    assert problems(*folders, workers=0) == ("0 workers: at least 1 is needed",)


def test_few_frames_start_no_process_and_many_not_all_processors(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Pool:
        def __init__(self, workers: int, context: object) -> None:
            started.append(workers)

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

        map = staticmethod(map)

    monkeypatch.setattr(evaluate, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(evaluate, "_available_cpus", lambda: 128)
    evaluate_folder(*folders, "davis17", workers=None)
    assert started == []
    monkeypatch.setattr(evaluate, "FRAMES_PER_WORKER", 6)
    evaluate_folder(*folders, "davis17", workers=None)
    assert started == [2]
    many = [Task(str(n), (Path("x"),) * 300, (None,) * 300, "davis17") for n in range(40)]
    monkeypatch.setattr(evaluate, "_score", lambda task: task.name)
    assert list(evaluate._score_all(many, None)) == [str(n) for n in range(40)]
    assert started == [2, evaluate.MAX_WORKERS]


def test_the_command_imports_no_pytorch(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """To import it takes longer than to score a data set, and its threads would wait for work at full speed."""
    arguments = ["--truth", str(folders[0]), "--predictions", str(folders[1]), "--output", str(tmp_path / "scores")]
    for protocol in ("davis17", "youtube_vos19"):
        if protocol == "youtube_vos19":
            for video in VIDEOS:
                shutil.copyfile(folders[0] / video / "00005.png", folders[1] / video / "00005.png")
        code = f"""
import sys
from vos_lightning.app.cli import main
code = main(['evaluate', *{arguments}, '--protocol', '{protocol}'])
heavy = {{'torch', 'torchmetrics', 'cv2', 'lightning', 'scipy'}} & set(sys.modules)
sys.exit(code or (f'imported {{heavy}}' if heavy else 0))
"""
        finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (finished.returncode, finished.stderr) == (0, "")


def test_frames_are_read_once_and_only_if_they_are_scored(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        reading, "read_plain_png", lambda path: read.append(f"{path.parts[-3][0]}{path.stem[-1]}") or read_plain_png(path)
    )
    evaluate_folder(*folders, "davis16", videos=["cat"])
    assert read == [f"{side}{t}" for t in range(1, 5) for side in "tp"]
    read.clear()
    evaluate_folder(*folders, "davis17", videos=["cat"])
    assert read == ["t0", "t0", *(f"{side}{t}" for t in range(1, 5) for side in "tp")]


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
    (predictions / "bear" / "00003.png").unlink()
    (predictions / "cat" / "00002.png").unlink()
    (predictions / "cat" / "00001.png").write_bytes(b"")  # not read as long as files are missing
    output = tmp_path / "scores"
    arguments = ["--truth", str(truth), "--predictions", str(predictions), "--protocol", "davis17", "--output", str(output)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines == [
        f"error: {predictions / 'bear'}: 1 of 4 frames are missing (00003); predict every frame",
        f"error: {predictions / 'cat'}: 1 of 4 frames are missing (00002); predict every frame",
    ]
    shutil.copyfile(truth / "bear" / "00003.png", predictions / "bear" / "00003.png")
    shutil.copyfile(truth / "cat" / "00002.png", predictions / "cat" / "00002.png")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {predictions / 'cat' / '00001.png'}: the image is damaged or truncated")
    assert captured.out == ""
    assert not output.exists()


def test_missing_frames_are_listed_and_counted(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "NUM_NAMED", 2)
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
    write_label_map(path, read_label_map(path) * 200)
    (found,) = problems(*folders)
    assert found.startswith(f"{path}: holds id 200, but the first true frame has ids up to 1; write the ids of the truth")


@pytest.mark.parametrize("side", [0, 1])
def test_white_is_object_1_without_void(folders: tuple[Path, Path], side: int) -> None:
    expected = evaluate_folder(*folders, "davis17")
    for path in (folders[side] / "cat").glob("0*.png"):
        write_label_map(path, read_label_map(path) * 255)
    assert evaluate_folder(*folders, "davis17") == expected
    assert len(evaluate_folder(*folders, "davis16").rows) == 2


def add_last_predictions(truth: Path, predictions: Path) -> None:
    """YouTube-VOS scores the last frame too."""
    for video in VIDEOS:
        shutil.copy(truth / video / f"{NUM_FRAMES - 1:05d}.png", predictions / video)


@pytest.mark.parametrize("protocol", ["davis16", "davis17", "youtube_vos18"])
@pytest.mark.parametrize("side", [0, 1])
def test_black_and_white_is_object_1_on_either_side(folders: tuple[Path, Path], protocol: Protocol, side: int) -> None:
    add_last_predictions(*folders)
    expected = evaluate_folder(*folders, protocol).rows
    for path in (folders[side] / "cat").glob("0*.png"):
        write_label_map(path, read_label_map(path) * 255)
    assert evaluate_folder(*folders, protocol).rows == expected


def test_255_beside_ids_is_void_in_the_truth_alone(folders: tuple[Path, Path]) -> None:
    add_last_predictions(*folders)
    expected = evaluate_folder(*folders, "davis17").rows
    for path in (folders[0] / "cat").glob("0*.png"):
        label_map = read_label_map(path)
        assert (label_map[:1] == 0).all()
        label_map[:1] = 255
        write_label_map(path, label_map)
    assert evaluate_folder(*folders, "davis17").rows == expected
    path = folders[1] / "cat" / "00002.png"
    label_map = read_label_map(path)
    label_map[:1] = 255
    write_label_map(path, label_map)
    for protocol in ("davis17", "youtube_vos18"):
        (found,) = problems(*folders, protocol)
        assert found.startswith(f"{path}: id 255 beside the ids 1: number the objects")


def test_the_order_of_frames_does_not_depend_on_leading_zeros(tmp_path: Path) -> None:
    """The first and the last frame are not scored: which they are, decides over the score."""
    truth = torch.zeros(12, 24, 40, dtype=torch.uint8)
    truth[:, 4:20, 6:30] = 1
    scores = {}
    for name in ("{:05d}", "{}", "frame_{}", "{}a"):
        folders = [tmp_path / name.format(7) / side for side in ("truth", "predictions")]
        for t in range(12):
            preds = truth[t].roll(t, dims=1)
            for folder, label_map in zip(folders, (truth[t], preds), strict=True):
                write_label_map(folder / "cat" / f"{name.format(t + 1)}.png", label_map)
        scores[name] = [evaluate_folder(*folders, protocol).rows for protocol in ("davis16", "davis17", "youtube_vos18")]
        assert [stems[0] for _, stems, *_ in read_videos(*folders, "davis17")] == [name.format(1)]
    assert scores["{}"] == scores["frame_{}"] == scores["{}a"] == scores["{:05d}"]


def test_white_beside_ids_is_void_in_the_truth_and_an_error_in_predictions(folders: tuple[Path, Path]) -> None:
    expected = evaluate_folder(*folders, "davis17")
    true, predicted = (folder / "bear" / "00002.png" for folder in folders)
    label_map = read_label_map(true)
    label_map[23] = 255
    write_label_map(true, label_map)
    # A frame of void and background alone is no white mask.
    label_map = torch.zeros_like(label_map)
    label_map[23] = 255
    write_label_map(folders[0] / "bear" / "00000.png", read_label_map(folders[0] / "bear" / "00000.png").clamp(max=2))
    write_label_map(folders[0] / "bear" / "00005.png", label_map)
    assert evaluate_folder(*folders, "davis17") == expected
    label_map = read_label_map(predicted)
    label_map[23] = 255
    write_label_map(predicted, label_map)
    (found,) = problems(*folders)
    assert found.startswith(f"{predicted}: id 255 beside the ids 1, 2")


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


# What is too much or missing ------------------------------------------------------------------------------------------


def thin_out(folder: Path, keep: Callable[[int], bool]) -> None:
    for path in folder.glob("*/0*.png"):
        if not keep(int(path.stem)):
            path.unlink()


@pytest.mark.parametrize("protocol", ["davis16", "davis17", "youtube_vos18"])
def test_predicted_frames_without_truth_are_ignored_and_counted(folders: tuple[Path, Path], protocol: str) -> None:
    truth, predictions = folders
    for video in VIDEOS:
        for t in (0, 5):
            shutil.copyfile(truth / video / f"{t:05d}.png", predictions / video / f"{t:05d}.png")
    thin_out(truth, lambda t: t in (1, 2, 4))  # every other frame, from the second to the last but one
    sparse = predictions.parent / "sparse"
    shutil.copytree(predictions, sparse)
    thin_out(sparse, lambda t: t in (1, 2, 4))
    expected = evaluate_folder(truth, sparse, protocol)
    assert expected.notes == ()
    evaluation = evaluate_folder(truth, predictions, protocol)
    assert evaluation.rows == expected.rows
    assert evaluation.notes == ("6 predicted frames without a true one are ignored, in 2 videos (bear, cat)",)


def test_predicted_videos_without_truth_are_ignored_and_named(folders: tuple[Path, Path]) -> None:
    expected = evaluate_folder(*folders, "davis17")
    for name in ("dog", ".cache"):
        shutil.copytree(folders[1] / "cat", folders[1] / name)
    (folders[1] / "cat" / ".00009.png").touch()
    (folders[1] / "cat" / "00001.png").rename(folders[1] / "cat" / "00001.PNG")
    (folders[1] / "cat" / "00009.txt").touch()
    evaluation = evaluate_folder(*folders, "davis17")
    assert evaluation.rows == expected.rows
    assert evaluation.notes == ("1 predicted videos without a true one are ignored (dog)",)
    assert evaluate_folder(*folders, "davis17", videos=["cat"]).notes == ()


def test_objects_that_are_never_predicted_score_0_and_are_named(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for path in (folders[1] / "bear").iterdir():
        label_map = read_label_map(path)
        write_label_map(path, label_map * (label_map != 2))
    shutil.rmtree(folders[1] / "cat")
    evaluation = evaluate_folder(*folders, "davis17")
    assert [(row.video, row.object_id, row.J, row.F, row.missing) for row in evaluation.rows][1:] == [
        ("bear", 2, 0.0, 0.0, True),
        ("cat", 1, 0.0, 0.0, True),
    ]
    assert not evaluation.rows[0].missing
    assert evaluation.missing == {"bear": [2], "cat": [1]}
    output = tmp_path / "scores"
    arguments = ["--truth", str(folders[0]), "--predictions", str(folders[1]), "--protocol", "davis17", "--output", str(output)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == [
        "missing: 2 of 3 objects are never predicted and score 0 wherever the truth shows them (bear 2; cat 1)",
        "note: nothing is predicted for 1 of 2 videos (cat); they count as blank predictions",
    ]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["missing_objects"] == {"bear": [2], "cat": [1]}
    assert summary["notes"] == ["nothing is predicted for 1 of 2 videos (cat); they count as blank predictions"]
    assert [row["missing"] for row in summary["objects"]] == [False, True, True]


def test_an_object_that_leaves_scores_1_while_it_is_away(folders: tuple[Path, Path]) -> None:
    for t in (3, 4):
        write_label_map(folders[0] / "cat" / f"{t:05d}.png", torch.zeros(24, 40, dtype=torch.uint8))
    for path in (folders[1] / "cat").iterdir():
        write_label_map(path, torch.zeros(24, 40, dtype=torch.uint8))
    (row,) = evaluate_folder(*folders, "davis17", videos=["cat"]).rows
    assert (row.J, row.missing) == (0.5, True)
    for t in (1, 2):
        write_label_map(folders[0] / "cat" / f"{t:05d}.png", torch.zeros(24, 40, dtype=torch.uint8))
    (row,) = evaluate_folder(*folders, "davis17", videos=["cat"]).rows
    assert (row.J, row.missing) == (1.0, False)


def test_ids_that_the_truth_does_not_have_are_named(folders: tuple[Path, Path]) -> None:
    for video in VIDEOS:
        shutil.copyfile(folders[0] / video / "00005.png", folders[1] / video / "00005.png")
    expected = evaluate_folder(*folders, "youtube_vos18")
    label_map = read_label_map(folders[1] / "cat" / "00002.png")
    label_map[20:22, :5] = 9
    write_label_map(folders[1] / "cat" / "00002.png", label_map)
    evaluation = evaluate_folder(*folders, "youtube_vos18")
    assert evaluation.rows == expected.rows
    assert evaluation.notes == ("predicted ids that the truth does not have are ignored (cat 9)",)


@pytest.mark.parametrize("protocol", ["davis17", "youtube_vos18"])
def test_videos_without_any_object_are_left_out_and_named(folders: tuple[Path, Path], protocol: str) -> None:
    shutil.copyfile(folders[0] / "bear" / "00005.png", folders[1] / "bear" / "00005.png")
    shutil.copyfile(folders[0] / "cat" / "00005.png", folders[1] / "cat" / "00005.png")
    for path in (folders[0] / "cat").glob("0*.png"):
        write_label_map(path, torch.zeros(24, 40, dtype=torch.uint8))
    evaluation = evaluate_folder(*folders, protocol)
    assert {row.video for row in evaluation.rows} == {"bear"}
    assert evaluation.notes[-1] == "1 videos without an object to score are left out (cat)"
    (found,) = problems(*folders, protocol=protocol, videos=["cat"])
    assert found.endswith(f"shows no object that {protocol} could score in any of its 1 videos")


def test_predictions_that_are_numbered_from_1(folders: tuple[Path, Path]) -> None:
    for video in VIDEOS:
        shutil.rmtree(folders[1] / video)
        for t in range(NUM_FRAMES):
            write_label_map(folders[1] / video / f"{t + 1:05d}.png", label_maps(1, 0)[t])
    (found,) = problems(*folders)
    assert found.startswith(f"{folders[1]}: has frames 00001 to 00006 where the truth begins with 00000, and so in every video")


def test_sparse_truth_and_full_predictions_in_each_others_place(folders: tuple[Path, Path]) -> None:
    thin_out(folders[1], lambda t: t == 2)
    found = problems(*folders)
    assert len(found) == 2
    assert found[0].endswith(
        "3 of 4 frames are missing (00001, 00003, 00004); predict every frame (or have truth and predictions been swapped?)"
    )


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
