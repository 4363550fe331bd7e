"""A training that is stopped, or loses a process or its disk, says so, keeps its checkpoint, and goes on to the same end."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.damage import with_a_wrong_bit
from tests.integration.runs import quick_run, run_on_two, start
from tests.integration.test_resume import weights
from vos_lightning.app import cli, training
from vos_lightning.app.experiments import experiments_folder
from vos_lightning.app.runs import Run, run_command
from vos_lightning.callbacks.stopping import LOST_PROCESS, STOPPED, Stopped, StopRequest
from vos_lightning.checkpoints import saving

OPTIONS = (
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--panels.videos=[]",
)


def faulty(folder: Path, *signals: str, **arguments: Any) -> str:
    """The file of an experiment that is emvos_smoke, but for the signals, see :class:`SignalledDataModule`."""
    content = yaml.safe_load((experiments_folder() / "emvos" / "smoke.yaml").read_text())
    data = content["data"]
    data["class_path"] = "tests.integration.faults.SignalledDataModule"
    data["init_args"] |= {"signals": list(signals), **arguments}
    path = folder / "faulty.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def train(cwd: Path, directory: str, *options: str, experiment: str = "emvos_smoke") -> tuple[int | None, str]:
    return quick_run("train", experiment, "--run-dir", directory, *OPTIONS, *options, cwd=cwd)


def scores(directory: Path) -> dict[str, list[str]]:
    """Step -> J&F in every start."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.glob("logs/start_*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("val_jf"):
                    found.setdefault(row["step"], []).append(row["val_jf"])
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    code, output = train(folder, "run")
    assert code == 0, output
    return folder / "run"


def assert_same_end(straight: Path, run: Path) -> None:
    assert (run / "finished").is_file()
    expected, found = weights(straight), weights(run)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert scores(run) == scores(straight)
    best = [sorted(path.name for path in place.glob("checkpoints/best*")) for place in (straight, run)]
    assert best[0] == best[1]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_the_step_and_starts_no_validation(tmp_path: Path, straight: Path, name: str) -> None:
    code, output = train(tmp_path, "run", experiment=faulty(tmp_path, name, clip=8))  # read ahead in step 3
    assert code == STOPPED, output
    assert f"Stopped by {name}; the same command goes on." in output
    assert "run: step 3 is saved in run/checkpoints/last.ckpt" in output
    assert Run(tmp_path / "run").record()["finished"] is None
    assert not (tmp_path / "run" / "finished").exists()
    assert list(scores(tmp_path / "run")) == ["1"]
    code, output = train(tmp_path, "run")
    assert code == 0, output
    assert_same_end(straight, tmp_path / "run")


# The last step has a validation too: the loop of Lightning is not entered any more when it is left to do.
@pytest.mark.parametrize(("name", "video"), [("SIGTERM", 2), ("SIGKILL", 2), ("SIGUSR1", 4), ("SIGKILL", 4)])
def test_a_stopped_validation_is_repeated(tmp_path: Path, straight: Path, name: str, video: int) -> None:
    code, output = train(tmp_path, "run", experiment=faulty(tmp_path, name, video=video))
    assert code == (-signal.SIGKILL if name == "SIGKILL" else STOPPED), output
    assert len(scores(tmp_path / "run")) == video // 2 - 1
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == video  # nothing that was trained is lost
    code, output = train(tmp_path, "run")
    assert code == 0, output
    assert_same_end(straight, tmp_path / "run")


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    code, output = train(tmp_path, "run", experiment=faulty(tmp_path, "SIGINT", "SIGINT", clip=8))
    assert code == -signal.SIGINT, output
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_the_parts_of_a_step_are_not_divided(tmp_path: Path) -> None:
    parts = ["--data.init_args.loading.max_device_batch=1", "--trainer.limit_val_batches=0"]
    assert train(tmp_path, "straight", *parts)[0] == 0
    code, output = train(
        tmp_path, "run", *parts, experiment=faulty(tmp_path, "SIGTERM", clip=4)
    )  # a part ahead: read after the first part of step 2
    assert code == STOPPED, output
    assert train(tmp_path, "run", *parts)[0] == 0
    for name, value in weights(tmp_path / "straight").items():
        assert torch.equal(weights(tmp_path / "run")[name], value)


# Before and after a training ---------------------------------------------------------------------------------------


def test_a_signal_before_the_training_stops_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(training, "build", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert cli.main(["train", "emvos_smoke"]) == STOPPED
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_is_kept_where_it_cannot_stop() -> None:
    request = StopRequest()
    with request.listening():
        with request.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"), request.deferred():
            pass


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "staged.yaml").write_text(yaml.safe_dump({"stages": ["emvos_smoke", "emvos_smoke"]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stage_is_done_if_it_says_so(staged: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training, "run_command", lambda *_, **__: 0)
    assert cli.main(["train", "staged.yaml"]) == 2
    assert "does not record that it is finished" in capfd.readouterr().err


def test_no_stage_starts_after_a_stop(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def finish(arguments: list[str], environment: Any = None, request: StopRequest | None = None) -> int:
        started.append(arguments)
        assert request is not None
        with request.deferred():
            os.kill(os.getpid(), signal.SIGTERM)  # the stage was already about to end
        directory = Path(arguments[3])
        directory.mkdir()
        (directory / "finished").touch()
        return 0

    monkeypatch.setattr(training, "run_command", finish)
    assert cli.main(["train", "staged.yaml"]) == STOPPED
    assert len(started) == 1


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_the_code_of_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: int) -> None:
    child = tmp_path / "child"
    child.write_text(f"#!{sys.executable}\nimport os, sys\n{code}\n")
    child.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(child))
    assert run_command(["train"]) == expected


# Processes that die -------------------------------------------------------------------------------------------------


def error_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_a_worker_that_dies(tmp_path: Path) -> None:
    options = ["--data.init_args.loading.num_workers=1", "--trainer.limit_val_batches=0", "--trainer.max_steps=20"]
    code, output = train(tmp_path, "run", *options, experiment=faulty(tmp_path, "SIGKILL", clip=20, in_worker=True))
    assert code == LOST_PROCESS, output
    assert len(error_lines(output)) == 1
    assert "a process that reads the training data has died (DataLoader worker" in error_lines(output)[0]
    assert "Traceback" not in output
    assert Run(tmp_path / "run").last_checkpoint is not None


def test_a_worker_survives_the_signals_that_stop_a_training(tmp_path: Path) -> None:
    options = ["--data.init_args.loading.num_workers=1", "--trainer.limit_val_batches=0"]
    code, output = train(
        tmp_path, "run", *options, experiment=faulty(tmp_path, "SIGTERM", "SIGUSR1", "SIGINT", clip=2, in_worker=True)
    )
    assert code == 0, output


def test_a_process_of_another_device_that_dies(tmp_path: Path) -> None:
    experiment = faulty(tmp_path, "SIGKILL", clip=8, rank=1)
    code, output = run_on_two("train", experiment, "--run-dir", "run", *OPTIONS, "--trainer.max_steps=20", cwd=tmp_path)
    assert code == LOST_PROCESS, output
    assert error_lines(output) == ["error: the process of another device has ended: start the same command again"]
    assert Run(tmp_path / "run").last_checkpoint is not None


def test_all_processes_stop_in_a_validation(tmp_path: Path) -> None:
    experiment = faulty(tmp_path, "SIGTERM", video=1)
    code, output = run_on_two("train", experiment, "--run-dir", "run", *OPTIONS, cwd=tmp_path)
    assert code == STOPPED, output
    assert not error_lines(output)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank"), [("SIGKILL", 1), ("SIGTERM", 0)])
def test_processes_that_lightning_starts(tmp_path: Path, name: str, rank: int) -> None:
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=20"]
    experiment = faulty(tmp_path, name, clip=8, rank=rank)
    process = start("train", experiment, "--run-dir", "run", *OPTIONS, *devices, cwd=tmp_path)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == (STOPPED if name == "SIGTERM" else LOST_PROCESS), output
    assert len(error_lines(output)) == (0 if name == "SIGTERM" else 1), output


# Disks --------------------------------------------------------------------------------------------------------------


def main(*options: str) -> int:
    return cli.main(["train", "emvos_smoke", "--run-dir", "run", *OPTIONS, *options])


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save, count = torch.save, 0

    def fill(*arguments: Any, **keywords: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **keywords)

    monkeypatch.setattr(saving.torch, "save", fill)
    assert main() == 2
    place = Path("run") / "checkpoints"
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1
    assert "checkpoints/" in lines[0]
    assert "No space left on device" in lines[0]
    assert torch.load(place / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main() == 0


def test_a_place_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").write_text("a file")
    assert main() == 2
    assert len(error_lines(capfd.readouterr().err)) == 1


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """The checkpoints of a run whose training has not finished."""
    monkeypatch.chdir(tmp_path)
    assert main() == 0
    Path("run/finished").unlink()
    capfd.readouterr()
    return Path("run/checkpoints")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = weights(Path("run"))
    (stopped / "last.ckpt").write_bytes(with_a_wrong_bit(stopped / "last.ckpt"))
    assert main() == 0
    message = "run/checkpoints/last.ckpt is damaged (now last.ckpt.damaged): the training goes on from the checkpoint before it"
    assert message in capfd.readouterr().err
    assert all(torch.equal(weights(Path("run"))[name], value) for name, value in expected.items())
    assert (stopped / "last.ckpt.damaged").is_file()


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_deleted_checkpoint_is_not_made_anew(stopped: Path, capfd: pytest.CaptureFixture[str], whole_folder: bool) -> None:
    if whole_folder:
        shutil.rmtree(stopped)
        record = Run(Path("run")).record()
        Run(Path("run")).write_record({**record, "steps": 0})  # as it is after a kill
    else:
        for name in ("last.ckpt", "before_last.ckpt"):
            (stopped / name).unlink()
    assert main() == 2
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1
    assert "last.ckpt is missing, and there is no whole checkpoint before it: put back a copy of it" in lines[0]


def test_both_checkpoints_are_damaged(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("last.ckpt", "before_last.ckpt"):
        (stopped / name).write_bytes(b"half")
    assert main() == 2
    assert "last.ckpt is damaged, and there is no whole checkpoint before it" in error_lines(capfd.readouterr().err)[0]


def test_a_training_without_a_checkpoint_yet_says_that_it_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Run(Path("run")).write_record({"starts": [{"from_step": 0}], "steps": 0})
    assert main() == 0
    assert "which has no checkpoint yet: from the first step" in capfd.readouterr().err
