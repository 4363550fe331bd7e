"""A staged experiment goes on where it was killed, in any stage; finished stages are not repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.runs import ROOT, environment
from tests.integration.test_resume import weights
from tests.recipes.experiments import fit
from tests.tolerances import assert_close
from vos_lightning import runs

OPTIONS = [
    "--trainer.max_steps=40",
    "--trainer.limit_val_batches=0",
    "--last_checkpoint.every_n_train_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
STAGES = ("1_emvos_smoke", "2_emvos_smoke")


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    (tmp_path / "staged.yaml").write_text(yaml.safe_dump({"stages": ["emvos_smoke", "emvos_smoke"], "hand_over": "last"}))
    return tmp_path


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
    first, second = (staged / "run" / name for name in STAGES)
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
    assert "Stage 1 of 2, emvos_smoke: finished, not repeated" in output
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
    assert runs.run_command(["train"]) == 75
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) == before
