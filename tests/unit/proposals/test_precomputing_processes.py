"""Several processes compute the files that one process computes, each of them once, and can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vos_lightning.app import precompute as command
from vos_lightning.app.cli import main
from vos_lightning.proposals import processes
from vos_lightning.proposals.detector import ProposalDetector

NUM_VIDEOS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder of videos with the weights of a tiny detector, and the files that one process makes."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    state = ProposalDetector("resnet18", num_classes=2, min_size=32, max_size=64).model.state_dict()
    torch.save(state, folder / "detector.pth")
    rng = np.random.default_rng(0)
    for video in range(NUM_VIDEOS):
        for frame in range(1 + video):
            path = folder / "images" / f"v{video}" / f"{frame:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(path)
    assert main(arguments(folder, "one")) == 0
    return folder, contents(folder / "one")


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    detector = ["--weights", str(folder / "detector.pth"), "--architecture", "resnet18", "--num-classes", "2"]
    sizes = ["--min-size", "32", "--max-size", "64", "--device", "cpu"]
    places = ["--images", str(folder / "images"), "--output", str(folder / output)]
    return ["precompute-proposals", *places, *detector, *sizes, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def started(folder: Path, output: str, *more: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vos_lightning", *arguments(folder, output, *more)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_one_process_makes_them_all(made: tuple[Path, dict[str, bytes]]) -> None:
    assert sorted(made[1]) == [f"v{video}.npz" for video in range(NUM_VIDEOS)]


def test_two_that_a_command_starts(made: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, expected = made
    (folder / "two").mkdir()
    (folder / "two" / "v1.npz").write_bytes(expected["v1.npz"])
    capsys.readouterr()
    assert main(arguments(folder, "two", "--processes", "2")) == 0
    assert f"{NUM_VIDEOS - 1} computed, 1 there already: " in capsys.readouterr().out
    assert contents(folder / "two") == expected


@pytest.mark.slow
def test_two_that_torchrun_has_started(made: tuple[Path, dict[str, bytes]]) -> None:
    """At the same time, in one folder."""
    folder, expected = made
    variables = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    both = [started(folder, "launched", **variables, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    printed = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "3 computed, 0 there already (process 1 of 2): " in printed[0][0]
    assert "2 computed, 0 there already (process 2 of 2): " in printed[1][0]
    assert contents(folder / "launched") == expected


def test_parts_that_tasks_of_slurm_share(
    made: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other: nothing is computed twice, and nothing is left out."""
    folder, expected = made
    variables = {"SLURM_JOB_NAME": "job", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    before: dict[str, bytes] = {}
    for part, rank, number in (("2/2", "1", 1), ("2/2", "0", 1), ("1/2", "1", 1), ("1/2", "0", 2)):
        for name, value in {**variables, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert main(arguments(folder, "parts", "--shard", part)) == 0
        share = f"(part {part[0]} of 2) (process {int(rank) + 1} of 2)"
        assert f"{number} computed, 0 there already {share}: {folder}/parts" in capsys.readouterr().out
        after = contents(folder / "parts")
        assert len(after) == len(before) + number
        assert before.items() <= after.items()
        before = after
    assert before == expected


@pytest.mark.slow
def test_killed_processes_leave_nobody_behind_and_are_continued(made: tuple[Path, dict[str, bytes]]) -> None:
    folder, expected = made
    process = started(folder, "killed", "--processes", "2")
    deadline = time.monotonic() + 300
    while not list((folder / "killed").glob("v*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # until the last process that it has started has closed its output
    there = {name: content for name, content in contents(folder / "killed").items() if not name.startswith(".")}
    assert there
    assert there.items() <= expected.items()
    assert main(arguments(folder, "killed")) == 0
    assert expected.items() <= contents(folder / "killed").items()


@pytest.mark.slow
def test_errors_of_a_process_are_one_line(
    made: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, expected = made
    (folder / "other").mkdir()
    (folder / "other" / "v0.npz").write_bytes(expected["v0.npz"])
    cpu = [torch.device("cpu")]
    monkeypatch.setattr(command, "_devices", lambda *_: cpu * 2)
    real = processes.precompute_in_processes
    monkeypatch.setattr(processes, "precompute_in_processes", lambda make, videos, output, *_: real(make, videos, output, cpu))
    assert main(arguments(folder, "other", "--top-k", "5")) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {folder}/other/v0.npz was made with other settings (top_k): remove it, or choose another --output"]


@pytest.mark.slow
def test_a_process_that_dies(
    made: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = made
    dying = processes.precompute_in_processes(die, [("v0", folder)], folder / "dead", [torch.device("cpu")])
    monkeypatch.setattr(processes, "precompute_in_processes", lambda *_: dying)
    assert main(arguments(folder, "dead", "--processes", "2")) == 71
    assert "a process has died, often for lack of memory: start the same command again" in capfd.readouterr().err


def die() -> ProposalDetector:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_mistakes(made: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, message in (
        *(("--shard", value, "write 1/8 to 8/8") for value in ("0/2", "3/2", "2", "a/b", "1/", "-1/2")),
        ("--processes", "0", "must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main(arguments(made[0], "out", f"{option}={value}"))
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "count", "local_rank", "expected"),
    [
        (("auto", 1), 4, 0, ["meta:0"]),
        (("auto", 1), 4, 5, ["meta:1"]),
        (("auto", 3), 2, 0, ["meta:0", "meta:1", "meta:0"]),
        (("auto", 2), 4, 1, ["meta:2", "meta:3"]),
        (("auto", 2), 0, 1, ["cpu", "cpu"]),
        (("cpu", 2), 4, 1, ["cpu", "cpu"]),
    ],
)
def test_processes_take_the_accelerators_in_turn(
    asked: tuple[str, int], count: int, local_rank: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch, "zeros", lambda *_, device: SimpleNamespace(device=torch.device(device)))
    assert [str(device) for device in command._devices(*asked, local_rank)] == expected
