"""A staged experiment goes on where it was killed, in any stage; a stage is a run of its own, found by what it computes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.integration.runs import ROOT, environment
from tests.integration.test_resume import weights
from tests.recipes.experiments import fit
from tests.tolerances import assert_close
from vos_lightning.app import cli, runs, scoring, stages, training
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.results.scores import read_scores, why_not_ours
from vos_lightning.app.runs import Run
from vos_lightning.callbacks.stopping import StopRequest

OPTIONS = [
    "--trainer.max_steps=40",
    "--trainer.limit_val_batches=0",
    "--last_checkpoint.every_n_train_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    (tmp_path / "staged.yaml").write_text(yaml.safe_dump({"stages": ["emvos_smoke", "emvos_smoke"]}))
    return tmp_path


def planned(name: str, folder: Path, *overrides: str) -> list[Path]:
    """Directories of the stages of an experiment."""
    return [stage.run.directory for stage in stages.plan(load_experiment(name), folder, overrides)]


def start(cwd: Path) -> subprocess.Popen[str]:
    """With its children in a process group of their own, which a cluster kills as one."""
    command = [sys.executable, "-m", "vos_lightning", "train", "staged.yaml", "--run-dir", "run", *OPTIONS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    variables = environment(VOS_EXPERIMENTS=str(ROOT / "experiments"), COLUMNS="200")
    return subprocess.Popen(command, cwd=cwd, env=variables, text=True, start_new_session=True, **pipes)


def kill_in(stage: Path, process: subprocess.Popen[str]) -> int:
    """Kill everything once the stage has a checkpoint; return its step."""
    checkpoint = stage / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not checkpoint.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    step = int(torch.load(checkpoint, weights_only=True)["global_step"])
    assert 0 < step < 40
    return step


@pytest.mark.slow
def test_killed_in_every_stage(staged: Path) -> None:
    first, second = planned(str(staged / "staged.yaml"), staged, *OPTIONS)
    assert first.parent == second.parent == staged
    step = kill_in(first, start(staged))
    kill_in(second, start(staged))
    # The second start went on in the first stage and began the second one from its last weights.
    record = json.loads((first / "record.json").read_text())
    assert [start["from_step"] for start in record["starts"]] == [0, step]
    assert record["finished"]
    assert record["steps"] == 40
    untouched = (first / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    process = start(staged)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"Stage 1 of 2, emvos_smoke: {first.name} is finished, not repeated" in output
    assert "going on from" in output
    assert (first / "checkpoints" / "last.ckpt").stat().st_mtime_ns == untouched
    assert (staged / "run" / "finished").is_file()
    # Three starts end where one start of each stage ends.
    fit("emvos_smoke", staged / "straight1", *OPTIONS)
    handed = staged / "straight1" / "checkpoints" / "last.ckpt"
    fit("emvos_smoke", staged / "straight2", f"--initial_weights={handed}", *OPTIONS)
    for stage, straight in ((first, "straight1"), (second, "straight2")):
        for name, value in weights(staged / straight).items():
            assert_close(weights(stage)[name], value)
    record = json.loads((second / "record.json").read_text())
    assert record["initial"]["run"]["experiment"] == "emvos_smoke"
    assert record["initial"]["step"] == 40
    assert (second / "wandb_id").exists() is False  # the recipe switches W&B off


def test_signals_reach_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster signals the command; the process that trains has to hear of it, and to be waited for."""
    ready, child = tmp_path / "ready", tmp_path / "child"
    child.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(100)\n"
    )
    child.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(child))
    before = signal.getsignal(signal.SIGUSR1)

    def signal_when_ready() -> None:
        while not ready.is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=signal_when_ready)
    thread.start()
    request = StopRequest()
    with request.listening():
        assert runs.run_command(["train"], request=request) == 75
    thread.join()
    assert request.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


# What a stage is -----------------------------------------------------------------------------------------------------

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two experiments that share their first stage, and evaluations."""
    smoke = (experiments_folder() / "emvos" / "smoke.yaml").resolve()
    files = tmp_path / "experiments" / "p"
    files.mkdir(parents=True)
    shutil.copytree(smoke.parent, tmp_path / "experiments" / "emvos")
    content = yaml.safe_load(smoke.read_text())
    content["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    published = {"paper": "P", "table": 1, "row": "A", "dataset": "S", "metrics": {"J&F": 1.0}}
    for name, more in {"first": {}, "second": {"trainer": {"gradient_clip_val": 1.0}}, "third": {"seed_everything": 3}}.items():
        trainer = {**content["trainer"], **more.get("trainer", {})}
        (files / f"{name}.yaml").write_text(yaml.safe_dump({**content, **more, "trainer": trainer}))
    for name, keys in {
        "one": {"stages": ["p_first", "p_second"], "published": published},
        "other": {"stages": ["p_first", "p_third"]},
        "evaluates_a_stage": {"checkpoint_of": "p_first", "extends": ["p/second"]},
        "evaluates_the_last": {"checkpoint_of": "p_one", "extends": ["p/second"], "published": published},
        "alone": {"checkpoint_of": "p_second", "extends": ["p/second"]},
        "flatters": {"stages": ["p_first", "p_second"], "select": "best", "hand_over": "best"},
    }.items():
        (files / f"{name}.yaml").write_text(yaml.safe_dump(keys))
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages train in this process; the list says which."""
    started: list[str] = []

    def in_process(arguments: Sequence[str], environment: Any = None, request: Any = None) -> int:
        started.append(arguments[1])
        return cli.main(arguments)

    monkeypatch.setattr(training, "run_command", in_process)
    return started


def error_of(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def scored(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "scores" / "test.json").read_text())
    return content


def test_experiments_share_a_stage(folder: Path, trainings: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "p_one", *QUICK]) == 0
    assert cli.main(["train", "p_other", *QUICK]) == 0
    assert trainings == ["p_first", "p_second", "p_third"]
    # The first stage is what `train p_first` is; the others are not what `train` alone would make.
    runs_of = {path.name.partition("-")[0]: path for path in (folder / "runs").iterdir() if (path / "record.json").is_file()}
    assert set(runs_of) == {"p_first", "p_second", "p_third"}
    assert runs_of["p_first"].name == "p_first"
    assert runs_of["p_second"].name != "p_second"
    assert Run(runs_of["p_second"]).record()["initial"]["checkpoint"] == "runs/p_first/checkpoints/last.ckpt"
    # Evaluations find the last stage, and a stage that they name; without the list of stages too.
    second = runs_of["p_second"]
    for _ in range(2):
        for name, run in (("p_one", second), ("p_evaluates_the_last", second), ("p_evaluates_a_stage", runs_of["p_first"])):
            found = stages.trained_run(load_experiment(name), Path("runs") / name)
            assert found.directory.resolve() == run
        shutil.rmtree(folder / "runs" / "p_one", ignore_errors=True)
    assert cli.main(["test", "p_evaluates_the_last", *QUICK]) == 0
    found = scored(folder / "runs" / "p_evaluates_the_last")
    assert Path(found["checkpoint"]).resolve() == second / "checkpoints" / "last.ckpt"
    assert found["weights"] == "last"
    # The second stage alone was never trained: its weights are not those after the first.
    assert "holds no checkpoint" in error_of(["test", "p_alone", *QUICK], capfd)
    # Provenance is judged by the chain of stages.
    score = next(score for score in read_scores(folder / "runs") if score.experiment == "p_evaluates_the_last")
    assert [record["experiment"] for record in score.trainings] == ["p_second", "p_first"]
    reason = why_not_ours(score, load_experiment("p_evaluates_the_last"))
    assert reason is not None
    assert "scored by its server" in reason  # and not: trained by something else


def test_best_weights_only_on_request(folder: Path, trainings: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "p_flatters", *QUICK]) == 0
    second = next((folder / "runs").glob("p_second-*"))
    assert Run(second).record()["initial"]["weights"] == "best"
    assert cli.main(["test", "p_flatters", *QUICK]) == 0
    assert scored(folder / "runs" / "p_flatters")["weights"] == "best"
    assert "weights: best, step 1, " in capfd.readouterr().err
    experiment = load_experiment("p_flatters")
    for select, name in (("last", "last.ckpt"), (None, "best-")):
        assert scoring._checkpoint_of(experiment, Path("runs/p_flatters"), select).name.startswith(name)  # type: ignore[arg-type]
    assert cli.main(["test", "p_flatters", "--select=last", "--trainer.max_stepz=1"]) == 2  # the option is known, the other not
    assert "max_stepz" in capfd.readouterr().err
    for best in (second / "checkpoints").glob("best*"):
        best.unlink()
    assert "keeps no best checkpoint" in error_of(["test", "p_flatters", *QUICK], capfd)


def test_what_changes_the_result_makes_another_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(*overrides: str, name: str = "p_one") -> str:
        return planned(name, folder / "runs", *overrides)[0].name

    def second(*overrides: str, name: str = "p_one") -> str:
        return planned(name, folder / "runs", *overrides)[1].name

    assert first() == "p_first"
    assert first("--trainer.devices=2", "--wandb.mode=offline", "--seed_everything=0") == "p_first"
    changed = {first(option) for option in ("--trainer.max_steps=2", "--seed_everything=1", "--data.init_args.loading.seed=1")}
    assert len(changed) == 3
    assert all(name.startswith("p_first-") for name in changed)
    assert second() == second("--data.init_args.loading.num_workers=3")
    assert len({second(), second("--trainer.max_steps=2"), second(name="p_flatters"), "p_second"}) == 4
    before = second()
    monkeypatch.setenv("VOS_DATA", "/elsewhere")
    assert second() == before
    weights = folder / "start.ckpt"
    weights.write_bytes(b"one")
    one = [first(f"--initial_weights={weights}"), second(f"--initial_weights={weights}")]
    weights.write_bytes(b"two")
    two = [first(f"--initial_weights={weights}"), second(f"--initial_weights={weights}")]
    assert len({"p_first", before, *one, *two}) == 6


def record(directory: Path, **content: Any) -> None:
    directory.mkdir(parents=True)
    (directory / "record.json").write_text(json.dumps(content))


def test_folders_that_hold_something_else(folder: Path, trainings: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    record(folder / "runs" / "p_first", identity="somebody else's")
    assert planned("p_one", folder / "runs")[0].name.startswith("p_first-")
    shutil.rmtree(folder / "runs")
    # A run in any folder is found by what it computes, a finished one first.
    identity = stages.plan(load_experiment("p_one"), folder / "runs")[0].identity
    record(folder / "runs" / "a", identity=identity)
    record(folder / "runs" / "b", identity=identity)
    (folder / "runs" / "b" / "finished").touch()
    assert planned("p_one", folder / "runs")[0].name == "b"
    shutil.rmtree(folder / "runs")
    # Runs of older versions are neither taken nor trained again without a word.
    record(folder / "runs" / "p_first", experiment="p_first")
    assert "older version" in error_of(["train", "p_one", *QUICK], capfd)
    shutil.rmtree(folder / "runs")
    old = folder / "runs" / "p_one" / "2_p_second" / "checkpoints"
    old.mkdir(parents=True)
    for command in ("train", "test"):
        message = error_of([command, "p_one", *QUICK], capfd)
        assert "runs/p_one/2_p_second/checkpoints/last.ckpt" in message
    shutil.rmtree(folder / "runs")
    # The list of stages belongs to one training.
    one = load_experiment("p_one")
    stages.claim(one, folder / "runs" / "p_one", stages.plan(one, folder / "runs"))
    assert "with other settings" in error_of(["train", "p_one", "--trainer.max_steps=2", *QUICK], capfd)
    assert trainings == []


def test_two_want_the_same_stage(folder: Path, trainings: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with Run(folder / "runs" / "p_first").lock():
        assert cli.main(["train", "p_one", *QUICK]) == 2
    message = capfd.readouterr().err
    assert f"runs/p_first is being trained by process {os.getpid()}" in message
    assert "start this again when that has finished" in message


def test_a_run_that_goes_on_with_other_settings_is_no_stage(folder: Path) -> None:
    directory = folder / "runs" / "p_first"
    fit_options = ["--last_checkpoint.every_n_train_steps=1", *QUICK]
    assert cli.main(["train", "p_first", *fit_options]) == 0
    assert Run(directory).identity == stages.plan(load_experiment("p_one"), folder / "runs")[0].identity
    (directory / "finished").unlink()
    assert cli.main(["train", "p_first", "--trainer.max_steps=2", *fit_options]) == 0
    assert planned("p_one", folder / "runs")[0].name.startswith("p_first-")
