"""Jobs of `vos slurm`, run by stand-ins for `sbatch`, `srun` and `scontrol` on this machine."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.runs import ROOT
from vos_lightning.app.cli import main

BIN = Path(__file__).parent / "bin"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which the stand-ins keep what they do."""
    state = tmp_path / "state"
    state.mkdir()
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VOS_EXPERIMENTS", str(ROOT / "experiments"))
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.chdir(tmp_path)
    return state


def submit(cluster: Path, events: str, *options: str, codes: str | None = None) -> list[str]:
    """Submit, wait for the end, and return how every start has ended."""
    (cluster / "events").write_text(events)
    if codes is not None:
        (cluster / "codes").write_text(codes)
    assert main(["slurm", "emvos_smoke", "--grace", "60", *options]) == 0
    return (cluster / "ended").read_text().splitlines()


def test_a_job_on_two_nodes_is_preempted_twice_and_finishes(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, then in the middle of the training; it ends where it would have ended."""
    run = tmp_path / "runs" / "emvos_smoke"
    monkeypatch.setenv("FAKE_SLURM_CHECKPOINT", str(run / "checkpoints" / "last.ckpt"))
    steps = ("--trainer.max_steps=40", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false")
    ended = submit(cluster, "first checkpoint none", "--nodes", "2", "--gpus", "1", *steps)
    log = (tmp_path / "runs" / "slurm-emvos_smoke-4711.log").read_text()
    assert ended == ["first requeued", "checkpoint requeued", "none 0"], log
    assert "job 4711 is requeued: asked to stop before the first step" in log
    assert "job 4711 is requeued: the training was stopped by a signal, and goes on" in log
    record = json.loads((run / "record.json").read_text())
    assert record["starts"][0]["hardware"].startswith("2 x ")
    (first, second) = (start["from_step"] for start in record["starts"])
    assert first == 0 < second < 40
    assert record["steps"] == 40
    assert (run / "finished").is_file()


@pytest.mark.parametrize(
    ("codes", "events", "ended"),
    [
        ("0", "none none", ["none 0"]),
        ("1", "none none", ["none 1"]),
        ("2", "none none", ["none 2"]),
        ("75 0", "none none", ["none requeued", "none 0"]),
        ("wait 0", "step none", ["step requeued", "none 0"]),
        # A process that was still starting dies of the signal; SIGUSR1 is 10 on every Linux but Alpha, MIPS and SPARC.
        ("signal 0", "step none", ["step requeued", "none 0"]),
        ("138", "none none", ["none 138"]),
        # One that validates for longer than the grace period goes on from its last checkpoint.
        ("hang 0", "step none", ["step requeued", "none 0"]),
    ],
)
def test_which_ends_are_requeued(
    cluster: Path, codes: str, events: str, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLURM_PATIENCE", "1")
    assert submit(cluster, events, codes=codes) == ended


def test_the_job_that_is_printed(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of tasks and CPUs are those of the experiment; nothing is written or submitted; it is valid for bash."""
    options = ["--nodes", "2", "--gpus", "4", "--time", "1:00:00", "--sbatch=--partition=gpu", "--sbatch=--account=a"]
    changed = ["--data.init_args.loading.num_workers=7", "--trainer.precision=bf16-mixed"]
    assert main(["slurm", "emvos_davis17", "--dry-run", *options, *changed]) == 0
    script = capsys.readouterr().out
    for line in (
        "#SBATCH --job-name=emvos_davis17",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=1:00:00",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=runs/slurm-%x-%j.log",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=a",
    ):
        assert f"{line}\n" in script
    assert "train emvos_davis17 --trainer.num_nodes=2 --trainer.devices=4 --data.init_args.loading.num_workers=7" in script
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert not list(cluster.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emvos_smok"], "there is no experiment 'emvos_smok': did you mean emvos_smoke"),
        (["emvos_davis16"], "emvos_davis16 evaluates the checkpoint of"),
        (["emvos_smoke", "--gpus", "3"], "cannot be shared by 3 devices"),
        (["emvos_smoke", "--nodes", "2", "--gpus", "2"], "cannot be shared by 2 devices on each of 2 nodes"),
        (
            ["emvos_smoke", "--trainer.devices=2"],
            "--trainer.devices: the number of nodes and devices is that of --nodes and --gpus",
        ),
        (["emvos_smoke", "--trainer.max_step=2"], "unknown option trainer.max_step"),
        (["finetune_own"], "finetune_own fine-tunes: name what it starts from with --checkpoint FILE"),
    ],
)
def test_refused_before_submission(
    cluster: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_an_empty_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", ""]) == 2
    assert "error: there is no experiment ''" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["slurm"])
    assert ended.value.code == 2


def test_without_slurm(cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(cluster))
    assert main(["slurm", "emvos_smoke"]) == 2
    assert "error: there is no sbatch here" in capsys.readouterr().err


def test_slurm_refuses(cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sbatch = cluster / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{os.environ['PATH']}")
    assert main(["slurm", "emvos_smoke"]) == 2
    assert "error: sbatch refused the job (exit code 1)" in capsys.readouterr().err
