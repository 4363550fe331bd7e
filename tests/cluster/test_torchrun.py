"""Trainings that `torchrun` has started: one launcher, and one on each of two nodes, which are both this machine."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed import TCPStore

from tests.integration.runs import environment
from vos_lightning.app.clusters import TorchrunEnvironment

OPTIONS = (
    "--trainer.max_steps=3",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


def torchrun(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """Standard output and errors go to a file, as the launcher leaves processes behind that hold a pipe open."""
    with (cwd / f"torchrun-{len(list(cwd.glob('torchrun-*')))}.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *arguments],
            cwd=cwd,
            env=environment(OMP_NUM_THREADS="1"),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def printed(cwd: Path) -> str:
    return "".join(path.read_text() for path in sorted(cwd.glob("torchrun-*.txt")))


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    (tmp_path / "staged.yaml").write_text(yaml.safe_dump({"stages": ["emvos_smoke", "emvos_smoke"]}))
    return tmp_path


def check(folder: Path) -> None:
    """Both stages have finished, each with both processes and in one start."""
    assert (folder / "run" / "finished").is_file(), printed(folder)
    stages = json.loads((folder / "run" / "stages.json").read_text())["stages"]
    for stage in stages:
        record = json.loads((folder / "run" / stage["run"] / "record.json").read_text())
        assert record["finished"]
        assert [start["hardware"][:4] for start in record["starts"]] == ["2 x "]


def test_every_training_has_a_store_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other, with two trainings each."""
    launcher = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launcher.port), "WORLD_SIZE": "2"}
    environments, ports = [], []
    for rank in ("0", "1"):
        for _ in range(2):
            for name, value in {**variables, "RANK": rank, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
                monkeypatch.setenv(name, value)
            environments.append(TorchrunEnvironment())  # which keeps its store open
            ports.append(environments[-1].main_port)
            assert environments[-1].main_port == ports[-1]
    assert ports[:2] == ports[2:]
    assert len({launcher.port, *ports}) == 3


@pytest.mark.slow
def test_stages_one_after_the_other(staged: Path) -> None:
    """The second training does not meet what the first one has left in the store of the launcher, which lives on."""
    launch = ("--standalone", "--nproc-per-node", "2", "-m", "vos_lightning")
    process = torchrun(staged, *launch, "train", "staged.yaml", "--run-dir", "run", "--trainer.devices=2", *OPTIONS)
    try:
        assert process.wait(timeout=200) == 0, printed(staged)
    finally:
        process.terminate()
    check(staged)


@pytest.mark.slow
def test_two_nodes(staged: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    options = ("--run-dir", "run", "--trainer.devices=1", "--trainer.num_nodes=2", *OPTIONS)
    nodes = [torchrun(staged, *launch, "-m", "vos_lightning", "train", "staged.yaml", *options) for _ in range(2)]
    try:
        assert [node.wait(timeout=200) for node in nodes] == [0, 0], printed(staged)
    finally:
        for node in nodes:
            node.terminate()
    check(staged)


@pytest.mark.slow
def test_a_signal_stops_the_training_and_it_goes_on(tmp_path: Path) -> None:
    signals = "SIGUSR1,SIGTERM,SIGINT,SIGHUP,SIGQUIT"
    launch = ("--standalone", "--signals-to-handle", signals, "--nproc-per-node", "2", "-m", "vos_lightning")
    arguments = ("train", "emvos_smoke", "--run-dir", "run", "--trainer.devices=2", *OPTIONS)
    process = torchrun(tmp_path, *launch, *arguments, "--trainer.max_steps=200")
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=100) == 1  # whatever the code of the processes
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert 0 < record["steps"] < 200, printed(tmp_path)
    assert not (tmp_path / "run" / "finished").exists()
    process = torchrun(tmp_path, *launch, *arguments, f"--trainer.max_steps={record['steps'] + 1}")
    assert process.wait(timeout=100) == 0, printed(tmp_path)
    assert (tmp_path / "run" / "finished").is_file()
