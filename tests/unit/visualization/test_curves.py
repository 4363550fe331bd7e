"""J of every frame over time."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vos_lightning.app.cli import main
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.metrics.protocols import evaluate_video
from vos_lightning.visualization.curves import COLOURS, HEIGHT, WIDTH, FrameScore, draw_curves, frame_scores


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Truth and two systems: "good" is true everywhere, "bad" loses object 2 from the fourth frame on."""
    for video, length in (("one", 6), ("two", 5)):
        for t in range(length):
            truth = torch.zeros(20, 30, dtype=torch.uint8)
            truth[2:10, 2 + t : 12 + t] = 1
            truth[12:18, 5:15] = 2
            bad = truth.clone()
            bad[2:4][bad[2:4] == 1] = 0
            if t >= 3:
                bad[bad == 2] = 0
            for name, label_map in (("truth", truth), ("good", truth), ("bad", bad)):
                write_label_map(tmp_path / name / video / f"{t:05d}.png", label_map)
    return {name: tmp_path / name for name in ("truth", "good", "bad")}


def test_scores_are_those_of_every_frame(folders: dict[str, Path]) -> None:
    rows = frame_scores("bad", folders["truth"], folders["bad"], "davis17", ["one"])
    assert [(row.frame, row.object_id) for row in rows] == [(f"{t:05d}", n) for n in (1, 2) for t in range(1, 5)]
    assert [row.J for row in rows if row.object_id == 1] == [0.75] * 4
    assert [row.J for row in rows if row.object_id == 2] == [1, 1, 0, 0]


def test_their_mean_is_the_benchmarks(folders: dict[str, Path]) -> None:
    from vos_lightning.evaluation.folders import read_videos

    rows = frame_scores("bad", folders["truth"], folders["bad"], "davis16")
    for video, _, preds, target in read_videos(folders["truth"], folders["bad"], "davis16"):
        (scores,) = evaluate_video(preds, target, "davis16", video)
        values = [row.J for row in rows if row.video == video]
        assert sum(values) / len(values) == pytest.approx(scores.J)


def test_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "curves"
    named = [f"{name}={folders[name]}" for name in ("good", "bad")]
    assert main(["curves", "--truth", str(folders["truth"]), "--predictions", *named, "--output", str(output)]) == 0
    with (output / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (4 + 3)
    assert {row["system"] for row in rows} == {"good", "bad"}
    with Image.open(output / "curves.png") as picture:
        assert picture.size == (2 * WIDTH, HEIGHT)
    assert str(output / "frames.csv") in capsys.readouterr().out


def test_the_command_imports_no_pytorch(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in ``evaluate``: to import it takes longer than to score the files."""
    arguments = ["--truth", str(folders["truth"]), "--predictions", f"bad={folders['bad']}", "--output", str(tmp_path / "x")]
    code = f"""
import sys
from vos_lightning.app.cli import main
code = main(['curves', *{arguments}])
heavy = {{'torch', 'torchmetrics', 'cv2', 'lightning', 'scipy'}} & set(sys.modules)
sys.exit(code or (f'imported {{heavy}}' if heavy else 0))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_line_runs_where_the_scores_are() -> None:
    rows = [FrameScore("a", "v", str(t), 1, 1.0) for t in range(4)] + [FrameScore("b", "v", str(t), 1, 0.0) for t in range(4)]
    picture = draw_curves(rows)
    top, bottom = ([y for y in range(40, HEIGHT) if picture.getpixel((300, y)) == colour] for colour in COLOURS[:2])
    assert top
    assert bottom
    assert max(top) < min(bottom) - 100


def test_errors_are_named(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["curves", "--truth", str(folders["truth"]), "--output", str(tmp_path / "x"), "--predictions"]
    assert main([*command, str(folders["bad"])]) == 2
    assert "write NAME=DIR" in capsys.readouterr().err
    (folders["bad"] / "one" / "00002.png").unlink()
    assert main([*command, f"bad={folders['bad']}"]) == 2
    assert "1 of 4 frames are missing" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_neither_inputs_nor_other_files_are_written_over(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["curves", "--truth", str(folders["truth"]), "--predictions", f"bad={folders['bad']}", "--output"]
    for output in (folders["truth"], folders["bad"] / "one", tmp_path):
        assert main([*command, str(output)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    output = tmp_path / "curves"
    assert main([*command, str(output)]) == 0
    assert main([*command, str(output)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*command, str(output), "--overwrite", "--videos", "two"]) == 0
    assert "one" not in (output / "frames.csv").read_text()


def test_needs_neither_networks_nor_lightning() -> None:
    """Curves are drawn from files; what draws networks is in another module of the package."""
    code = """
import sys
import vos_lightning.visualization.curves
heavy = {"lightning", "torchmetrics", "torchvision", "vos_lightning.networks", "vos_lightning.propagation"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
