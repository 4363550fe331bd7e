"""A loss that is NaN costs a step, several in a row stop the training, and no checkpoint ever holds NaN."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from tests.integration.runs import run_on_two
from tests.unit.callbacks.helpers import Data, fit, make_clips
from tests.unit.dummies import DummyModule
from vos_lightning.app import cli
from vos_lightning.app.experiments import experiments_folder
from vos_lightning.callbacks import finite
from vos_lightning.callbacks.finite import FiniteCheckpoint, FiniteNumbers
from vos_lightning.modules.processes import StepMeans

NAN = float("nan")


class SomeBad(Data):
    """Clips of which those at the given steps make the loss NaN."""

    def __init__(self, batches: int, *bad: int) -> None:
        super().__init__(batches)
        self.bad = bad

    def train_dataloader(self) -> DataLoader:
        good = make_clips()
        return DataLoader(dataset=[replace(good, video_names=self.names_of(t)) for t in range(self.batches)], batch_size=None)

    def names_of(self, step: int) -> tuple[str, str]:
        return ("bad" if step in self.bad else "good", f"step{step}")


@pytest.fixture(autouse=True)
def _nan_for_bad_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = DummyModule.clip_loss

    def clip_loss(self: DummyModule, outputs: Any, batch: Any) -> Any:
        losses = loss(self, outputs, batch)
        # The network of the tests needs a gradient in every step.
        extra = self.network.scale * (NAN if batch.video_names[0] == "bad" else 1.0)
        return {**losses, "loss": losses["loss"] + extra}

    monkeypatch.setattr(DummyModule, "clip_loss", clip_loss)


class Parameters(FiniteNumbers):
    """Keeps the parameter after every step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.seen = [*getattr(self, "seen", []), float(pl_module.network.scale.detach())]


def train(root: Path, callback: FiniteNumbers, batches: int, *bad: int, **options: Any) -> DummyModule:
    settings = {"max_steps": batches, "limit_val_batches": 0, "val_check_interval": batches, "log_every_n_steps": 3, **options}
    return fit(root, callback, data=SomeBad(batches, *bad), **settings)


def test_a_single_bad_batch_costs_a_step(tmp_path: Path) -> None:
    callback = Parameters()
    module = train(tmp_path, callback, 6, 2)
    assert all(torch.isfinite(torch.tensor(callback.seen)))
    assert callback.in_a_row == 0
    assert len(set(callback.seen)) == 6  # every other step moved the parameter
    (entry,) = json.loads((tmp_path / "non_finite.json").read_text())
    assert entry["step"] == 2
    assert entry["rank"] == 0
    assert entry["loss"] == entry["gradient_norm"] == "nan"
    assert entry["clips"] == [{"video": "bad", "frames": [0, 0, 0]}, {"video": "step2", "frames": [0, 0, 0]}]
    assert torch.isfinite(module.network.scale)


def test_a_first_bad_step_changes_nothing(tmp_path: Path) -> None:
    """The optimiser remembers no earlier step that it could follow."""
    callback = Parameters(patience=9)
    with pytest.raises(ValueError, match="3 steps in a row, from step 0 on"):
        train(tmp_path, callback, 3, 0, 1, 2)
    assert callback.seen == [8.0, 8.0, 8.0]


def test_a_good_training_leaves_no_record(tmp_path: Path) -> None:
    train(tmp_path, FiniteNumbers(), 4)
    assert not (tmp_path / "non_finite.json").exists()


@pytest.mark.parametrize(
    ("patience", "bad", "message"),
    [
        (1, (4,), "in 1 step, from step 4 on"),
        (2, (1, 4, 5), "in 2 steps in a row, from step 4 on"),
        (3, (2, 3, 4), "in 3 steps in a row, from step 2 on"),  # across the steps at which the results are read
        (9, (7, 8), "in 2 steps in a row, from step 7 on"),  # the training would have ended
    ],
)
def test_several_in_a_row_stop(tmp_path: Path, patience: int, bad: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train(tmp_path, FiniteNumbers(patience), 9, *bad)
    assert str(tmp_path / "non_finite.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry["step"] for entry in json.loads((tmp_path / "non_finite.json").read_text())] == list(bad)


def test_apart_they_do_not_stop(tmp_path: Path) -> None:
    callback = FiniteNumbers(patience=2)
    train(tmp_path, callback, 9, 1, 3, 5)
    assert callback.in_a_row == 0


def test_patience_is_positive() -> None:
    with pytest.raises(ValueError, match=r"finite\.patience must be at least 1 step, not 0"):
        FiniteNumbers(0)


def test_batches_of_one_step_belong_together(tmp_path: Path) -> None:
    """One of two batches is bad: the step is left out, and both are named."""
    train(tmp_path, FiniteNumbers(), 8, 2, accumulate_grad_batches=2, max_steps=4)
    (entry,) = json.loads((tmp_path / "non_finite.json").read_text())
    assert entry["step"] == 1
    assert [clip["video"] for clip in entry["clips"]] == ["bad", "step2", "good", "step3"]


def test_checkpoints_from_before_the_series_stay(tmp_path: Path) -> None:
    class Both(FiniteNumbers):
        """Saves as a command line object does: after this callback."""

        saved = FiniteCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            self.saved.on_train_batch_end(trainer, pl_module, *args)

    with pytest.raises(ValueError, match="from step 4 on"):
        train(tmp_path, Both(patience=2), 9, 1, 4, 5, 6, log_every_n_steps=50)
    content = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert content["global_step"] == 4  # after step 3
    (state,) = (value for key, value in content["callbacks"].items() if "Both" in key)
    assert state == {"in_a_row": 0}


class StandIn(Trainer):
    global_step, precision_plugin = 5, None  # type: ignore[assignment]

    def __init__(self, scaler: Any = None) -> None:
        self.precision_plugin = SimpleNamespace(scaler=scaler)


class Logged(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, Any] = {}

    def log(self, name: str, value: Any, **options: Any) -> None:  # type: ignore[override]
        self.logged[name] = value


def step(callback: FiniteNumbers, trainer: Any, loss: float, gradient: float) -> tuple[torch.Tensor, dict[str, Any]]:
    module = Logged()
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([3.0, gradient])
    callback.on_before_backward(trainer, module, torch.tensor(loss))
    callback.on_before_optimizer_step(trainer, module, torch.optim.SGD([parameter], lr=1.0))
    return parameter.grad, module.logged


@pytest.mark.parametrize(
    ("loss", "gradient", "scale", "good"),
    [
        (1.0, 4.0, None, True),
        (NAN, 4.0, None, False),
        (float("inf"), 4.0, None, False),
        (1.0, NAN, None, False),
        (1.0, float("inf"), None, False),
        (1.0, 1e30, None, False),  # its square is infinite
        (1.0, float("inf"), 65536.0, True),  # the scaler leaves this step out by itself
        (1.0, float("inf"), 1.0, False),  # it is not the scale that is too large
        (NAN, NAN, 65536.0, False),
    ],
)
def test_what_counts(loss: float, gradient: float, scale: float | None, good: bool) -> None:
    callback = FiniteNumbers()
    trainer = StandIn(None if scale is None else SimpleNamespace(get_scale=lambda: scale))
    left, logged = step(callback, trainer, loss, gradient)
    assert bool(callback._unread[0].numbers[0]) == good
    if not good:
        assert left.tolist() == [0.0, 0.0]
    if gradient == 4.0:
        assert logged["train/grad_norm"] == 5.0


def test_the_loss_of_another_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "sum_over_processes", lambda loss: loss + NAN)
    callback = FiniteNumbers()
    left, _ = step(callback, StandIn(), 1.0, 4.0)
    assert left.tolist() == [0.0, 0.0]
    assert callback._unread[0].numbers.tolist() == [0.0, 1.0, 5.0]  # not counted, though its own loss is fine


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    callback, trainer, means = FiniteNumbers(), StandIn(), StepMeans()
    values = {"loss": torch.tensor(2.0), "iou": torch.tensor(0.5)}
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"waits in {name}"))
    step(callback, trainer, 1.0, 4.0)
    means.add(values, {"iou": torch.tensor(3)}, first=True)


def test_means_of_a_step() -> None:
    means = StepMeans()
    batches = [({"loss": 2.0, "iou": 0.5}, 1), ({"loss": 4.0, "iou": 0.9}, 3), ({"loss": 7.0, "iou": 0.0}, 0)]
    found = [
        means.add({k: torch.tensor(v) for k, v in values.items()}, {"iou": torch.tensor(weight)}, first=index != 1)
        for index, (values, weight) in enumerate(batches)
    ]
    assert [float(mean["loss"]) for mean in found] == [2.0, 3.0, 7.0]
    assert [float(mean["iou"]) for mean in found] == pytest.approx([0.5, 0.8, 0.0])


# The command ----------------------------------------------------------------------------------------------------------

DIVERGES = (
    "--model.init_args.optimisation.learning_rate=1e36",
    "--trainer.max_steps=6",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=2",
    "--panels.videos=[]",
)


def test_a_training_that_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # it is not marked as finished, and goes on from what it has kept
        assert cli.main(["train", "emvos_smoke", "--run-dir", "run", "--finite.patience=2", *DIVERGES]) == 2
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "2 steps in a row, from step 1 on; run/non_finite.json names the clips" in errors[0]
    assert not Path("run/finished").exists()
    assert json.loads(Path("run/record.json").read_text())["finished"] is None
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 1
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    entries = json.loads(Path("run/non_finite.json").read_text())
    assert [entry["step"] for entry in entries] == [1, 2, 1, 2]  # read before every checkpoint
    assert entries[0]["seed"] == ["0", 0]
    assert entries[:2] == entries[2:]  # the same clips are drawn
    assert len(entries[0]["clips"]) == 2


def test_two_processes_decide_alike(tmp_path: Path) -> None:
    code, output = run_on_two("train", "emvos_smoke", "--run-dir", "run", "--finite.patience=2", *DIVERGES, cwd=tmp_path)
    assert code == 2, output
    assert sum(line.startswith("error:") for line in output.splitlines()) == 1, output
    entries = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert sorted((entry["step"], entry["rank"]) for entry in entries) == [(t, rank) for t in (1, 2) for rank in (0, 1)]
    assert len({json.dumps(entry["clips"]) for entry in entries if entry["step"] == 1}) == 2
    assert not (tmp_path / "run" / "finished").exists()
