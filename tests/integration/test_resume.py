"""A killed run goes on from its last checkpoint with the samples that it would have drawn, in the same directory and W&B run."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest
import torch

from tests.integration.runs import Started, quick_run
from tests.tolerances import assert_close

OPTIONS = (
    "--trainer.max_steps=12",
    "--trainer.val_check_interval=12",
    "--trainer.log_every_n_steps=1",
    "--last_checkpoint.every_n_train_steps=1",
    "--trainer.enable_progress_bar=false",
    "--panels.videos=[]",
)


def losses(directory: Path, column: str = "train/loss") -> dict[int, float]:
    """Step -> training loss, or another logged value, over all starts of a run."""
    found = {}
    for path in sorted(directory.glob("logs/start_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get(column):
                    found[int(row["step"])] = float(row[column])
    return found


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("experiment", "kill"), [("emvos_smoke", signal.SIGKILL), ("emvos_smoke", signal.SIGUSR1), ("pmnet_smoke", signal.SIGKILL)]
)
def test_killed_and_started_again(tmp_path: Path, experiment: str, kill: signal.Signals) -> None:
    code, output = quick_run("train", experiment, "--run-dir", "straight", *OPTIONS, cwd=tmp_path)
    assert code == 0, output
    process = Started("train", experiment, "--run-dir", "killed", *OPTIONS, cwd=tmp_path, signal_after=(5, kill))
    code, output = process.wait()
    assert code == (75 if kill == signal.SIGUSR1 else -kill), output
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert not (tmp_path / "killed" / "finished").exists()
    done = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 5 <= done < 12
    # What the killed start has logged is there; the row of its last step comes after its last checkpoint.
    assert sorted(losses(tmp_path / "killed"))[: done - 1] == list(range(done - 1))
    code, output = quick_run("train", experiment, "--run-dir", "killed", *OPTIONS, cwd=tmp_path)
    assert code == 0, output
    assert "going on from" in output
    assert (tmp_path / "killed" / "finished").is_file()
    for name, value in weights(tmp_path / "straight").items():
        assert_close(weights(tmp_path / "killed")[name], value)
    # The second start logged only what was left to do, and what it drew is what the straight run drew.
    expected = losses(tmp_path / "straight")
    again = losses(tmp_path / "killed")
    assert max(again) == max(expected)
    for step, value in again.items():
        assert value == pytest.approx(expected[step], rel=1e-9)
    code, output = quick_run("train", experiment, "--run-dir", "killed", *OPTIONS, cwd=tmp_path)
    assert code == 0
    assert "is finished" in output
