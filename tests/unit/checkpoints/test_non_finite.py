"""Weights that are NaN or infinite are neither written nor read, by anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoints.test_released import pmvos_file
from tests.unit.proposals.test_detector import tiny
from vos_lightning.app import training
from vos_lightning.app.cli import main
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.checkpoints.saving import AtomicCheckpointIO, write_checkpoint
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.weights import first_non_finite

QUICK = ("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--panels.videos=[]")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint as a training writes it, with a NaN in its second weights; and their name."""
    folder = tmp_path_factory.mktemp("poisoned")
    cli = training.build(load_experiment("emvos_smoke"), Run(folder / "unused"), [], "test")
    cli.trainer.strategy.connect(cli.model)
    path = folder / "good.ckpt"
    cli.trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    name = [key for key, value in content["state_dict"].items() if value.is_floating_point()][1]
    content["state_dict"][name].view(-1)[-1] = float("nan")
    torch.save(content, folder / "nan.ckpt")
    return folder / "nan.ckpt", name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(path: Path) -> list[str]:
    return ["segment", "v", "--checkpoint", str(path), "--mask", "m", "--output", "o", "--device", "cpu"]


def resume(path: Path) -> list[str]:
    last = Path("run/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    shutil.copy(path, last)
    return ["train", "emvos_smoke", "--run-dir", "run", *QUICK]


@pytest.mark.parametrize(
    "command",
    [
        predict,
        resume,
        lambda path: ["validate", "emvos_smoke", "--checkpoint", str(path)],
        lambda path: ["train", "emvos_smoke", f"--initial_weights={path}", *QUICK],
    ],
    ids=["predict", "resume", "validate", "initial weights"],
)
def test_commands_refuse_them(
    command: Callable[[Path], list[str]], poisoned: tuple[Path, str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, name = poisoned
    write_label_map(folder / "v" / "0.png", torch.ones(64, 64, dtype=torch.uint8))
    write_label_map(folder / "m" / "0.png", torch.ones(64, 64, dtype=torch.uint8))
    arguments = command(path)
    assert main(arguments) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    file = "run/checkpoints/last.ckpt" if "run" in arguments else str(path)
    assert error.endswith(f"{file}: the weights {name} are not finite (NaN or infinity): take another checkpoint, or train again")


def test_load_engine_refuses_them(poisoned: tuple[Path, str]) -> None:
    path, name = poisoned
    with pytest.raises(ValueError, match=name):
        load_engine(path, device="cpu")
    load_engine(path.with_name("good.ckpt"), device="cpu")


def test_released_weights(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = {**pmvos_file()}
    key = "vos.pm.conv_in.conv.bias"
    state[key] = torch.full_like(state[key], float("inf"))
    torch.save(state, "released.pth")
    assert main(["import-checkpoint", "released.pth", "--paper", "pmvos", "--output", "out.ckpt"]) == 2
    assert f"error: released.pth: the weights {key} are not finite" in capfd.readouterr().err
    assert not Path("out.ckpt").exists()


def test_weights_of_a_detector(tmp_path: Path) -> None:
    state: dict[str, Tensor] = tiny().model.state_dict()
    key = "roi_heads.box_predictor.cls_score.bias"
    state[key] = torch.full_like(state[key], float("nan"))
    torch.save(state, tmp_path / "detector.pth")
    with pytest.raises(ValueError, match=rf"detector\.pth: the weights {key} are not finite"):
        tiny(weights=str(tmp_path / "detector.pth"))


def test_they_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    good = {"state_dict": {"a": torch.ones(2), "count": torch.tensor(3)}, "global_step": 1}
    AtomicCheckpointIO().save_checkpoint(good, path)
    bad = {"state_dict": {"a": torch.ones(2), "b": torch.tensor([1.0, float("-inf")])}, "global_step": 2}
    for write in (AtomicCheckpointIO().save_checkpoint, lambda content, target: write_checkpoint(target, content)):
        with pytest.raises(ValueError, match=r"last\.ckpt: this checkpoint is not written, because the weights b are not finite"):
            write(bad, path)
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_first_is_named() -> None:
    nan = torch.tensor([float("nan")])
    assert first_non_finite({"a": torch.ones(1), "b": torch.tensor([1]), "c": "text", "d": nan.half(), "e": nan}) == "d"
    assert first_non_finite({"a": torch.empty(0), "b": torch.tensor(True)}) is None
