"""Weights to pass on: what is written, what is read again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.unit.app.test_segment import changed, run
from vos_lightning.app.cli import main
from vos_lightning.app.export import without_places
from vos_lightning.checkpoints import portable
from vos_lightning.checkpoints.loading import describe_model, load_engine
from vos_lightning.checkpoints.portable import read_card, write_portable
from vos_lightning.io.label_maps import write_label_map


def export(checkpoint: Path, output: Path, *options: str) -> int:
    return main(["export", str(checkpoint), "--output", str(output), *options])


def test_the_network_is_the_same_up_to_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    assert export(checkpoint, tmp_path / "w.safetensors", "--licence", "Data=CC BY 4.0") == 0
    card = read_card(tmp_path / "w.safetensors")
    assert card["model"] == describe_model(checkpoint)
    assert card["licences"] == {"Data": "CC BY 4.0"}
    before, after = (load_engine(path, device="cpu") for path in (checkpoint, tmp_path / "w.safetensors"))
    assert (before.propagation, before.short_side) == (after.propagation, after.short_side)
    stored = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert stored
    for name, value in before.network.state_dict().items():
        other = after.network.state_dict()[name]
        assert other.dtype == value.dtype
        assert torch.equal(other, value.half().to(value.dtype) if value.is_floating_point() else value), name
        assert stored[f"network.{name}"].dtype == (torch.float16 if value.is_floating_point() else value.dtype)


def test_what_a_run_says_of_itself_goes_with_its_weights(checkpoint: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    for folder in ("checkpoints", "scores"):
        (run_folder / folder).mkdir(parents=True)
    own = run_folder / "checkpoints" / "last.ckpt"
    own.write_bytes(checkpoint.read_bytes())
    (run_folder / "record.json").write_text(json.dumps({"experiment": "stcn_lite", "seed": 3}))
    (run_folder / "scores" / "test.json").write_text(json.dumps({"metrics": {"J&F": 73.2}}))
    assert export(own, tmp_path / "w.safetensors") == 0
    card = read_card(tmp_path / "w.safetensors")
    assert card["training"]["experiment"] == "stcn_lite"
    assert card["scores"]["test"]["metrics"] == {"J&F": 73.2}
    assert export(own, tmp_path / "w.safetensors") == 2
    assert export(own, tmp_path / "w.safetensors", "--overwrite") == 0


def test_folders_of_the_machine_stay_out_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOS_DATA", "/home/me/data/")
    found = without_places(
        {
            "data": "Images root=/home/me/data/bsds500/images + 70 x DAVIS root=/mnt/disk 2/DAVIS",
            "n": [1, "runs/a/last.ckpt", "/x/y.ckpt"],
        }
    )
    assert found == {
        "data": "Images root=${VOS_DATA}/bsds500/images + 70 x DAVIS root=disk 2/DAVIS",
        "n": [1, "runs/a/last.ckpt", "y.ckpt"],
    }


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("w.pth", (), "choose a name that ends so"),
        ("w.safetensors", ("--licence", "free"), "write NAME=TERMS"),
    ],
)
def test_wrong_arguments(output: str, options: Any, message: str, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert export(checkpoint, tmp_path / output, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / output).exists()


def test_files_that_are_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert export(checkpoint, tmp_path / "whole.safetensors") == 0
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-8])
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "card.safetensors", {"vos_lightning": json.dumps({"model": 1})})
    write_portable(tmp_path / "evil.safetensors", {"a": torch.zeros(1)}, {"model": {"class_path": "os.system"}, "step": 0})
    for name, message in (
        ("text", "this is no file of safetensors, or it is damaged"),
        ("cut", "this is no file of safetensors, or it is damaged"),
        ("bare", "does not say which network"),
        ("card", "model must be a mapping"),
        ("evil", "the checkpoint needs os.system"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_engine(tmp_path / f"{name}.safetensors", device="cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no such checkpoint"):
        load_engine(tmp_path / "nowhere.safetensors")


def test_weights_that_half_precision_cannot_hold_are_not_written(checkpoint: Path, tmp_path: Path) -> None:
    large = changed(checkpoint, tmp_path / "c.ckpt", state_dict=lambda state: {k: v * 0 + 1e6 for k, v in state.items()})
    assert export(large, tmp_path / "w.safetensors") == 2
    assert not (tmp_path / "w.safetensors").exists()


def test_predict_takes_the_librarys_own_weights(
    checkpoint: Path,
    video: Path,
    mask: Any,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_label_map(tmp_path / "m.png", mask)
    assert export(checkpoint, tmp_path / "lite.safetensors") == 0
    monkeypatch.setattr(portable, "LITE_FILE", tmp_path / "lite.safetensors")
    arguments = [str(video), "--mask", str(tmp_path / "m.png"), "--device", "cpu", "--short-side", "0"]
    assert main(["segment", *arguments, "--output", str(tmp_path / "lite")]) == 0
    assert "weights: lite (Dummy, a small network that comes with the library" in capsys.readouterr().out
    code, output = run(tmp_path / "lite.safetensors", video, tmp_path / "m.png")
    assert code == 0
    assert "weights: lite" not in capsys.readouterr().out
    for one, other in zip(
        sorted((tmp_path / "lite/masks").rglob("*.png")), sorted((output / "masks").rglob("*.png")), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


def test_nothing_is_written_for_a_network_without_graphs(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(checkpoint), "--format", "onnx", "--output", str(tmp_path / "out")]) == 2
    assert "is written as ONNX, not DummyNetwork" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
