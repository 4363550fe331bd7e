"""Any system goes on from its checkpoint on one's own videos, with the scores before and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.datasets.own_videos import OwnVideosDataModule
from tests.layouts import write_davis_layout
from tests.recipes.experiments import fit
from vos_lightning.app import cli, finetuning, training
from vos_lightning.app.experiments import load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.checkpoints.loading import load_engine

OPTIONS = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--wandb.mode=disabled",
    "--data.init_args.loading.num_workers=0",
    "--data.init_args.loading.batch_size=2",
    "--data.init_args.recipe.short_side=null",
    "--data.init_args.recipe.crop=none",
    "--data.init_args.recipe.num_frames=2",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of six frames, every one annotated."""
    root = tmp_path_factory.mktemp("own")
    write_davis_layout(root / "davis", 4)
    for folder in ("JPEGImages", "Annotations"):
        shutil.move(root / "davis" / folder / "480p", root / folder)
    shutil.rmtree(root / "davis")
    return root


@pytest.fixture(scope="module", params=["emvos"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    fit(
        f"{request.param}_smoke",
        directory,
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        "--trainer.val_check_interval=1",
    )
    return Run(directory).checkpoint()


@pytest.fixture
def commands(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands run in this process; the list says which."""
    monkeypatch.setenv("VOS_EXPERIMENTS", str(Path(__file__).resolve().parents[3] / "experiments"))
    monkeypatch.setenv("VOS_DATA", str(videos))
    monkeypatch.chdir(tmp_path)
    started: list[str] = []

    def in_process(arguments: Sequence[str], environment: Any = None, request: Any = None) -> int:
        started.append(arguments[0])
        return cli.main(arguments)

    monkeypatch.setattr(finetuning, "run_command", in_process)
    return started


def trained_parameters(checkpoint: Path) -> list[tuple[str, torch.nn.Parameter]]:
    """Named as in the checkpoint of the module."""
    return [(f"network.{name}", value) for name, value in load_engine(checkpoint, device="cpu").network.named_parameters()]


def test_before_and_after(
    checkpoint: Path, commands: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "finetune_own", "--checkpoint", str(checkpoint), "--run-dir", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_one", lambda *_: 75)  # stopped while it trains
        assert cli.main([*arguments, *OPTIONS]) == 75
    assert commands == ["test"]
    assert not Path("run/comparison.json").exists()
    assert cli.main([*arguments[:2], *arguments[4:], *OPTIONS]) == 0  # it knows what it was started from
    assert commands == ["test", "test"]
    output = capsys.readouterr().out
    assert "J&F before" in output
    comparison = json.loads(Path("run/comparison.json").read_text())
    assert list(comparison["videos"]) == ["video-02"]
    assert set(comparison["all"]) == {"copy", "before", "after"}
    assert comparison["checkpoints"]["after"].endswith("last.ckpt")
    for name, path in (("before", "run/before/scores/test.json"), ("after", "run/scores/test.json")):
        scores = json.loads(Path(path).read_text())
        assert scores["experiment"] == "finetune_own"
        assert comparison["all"][name] == pytest.approx(scores["summary"]["J&F"])
    # It went on from the checkpoint, at the rate of the experiment, with the network of the checkpoint.
    record = json.loads(Path("run/record.json").read_text())
    assert record["initial"]["checkpoint"] == str(checkpoint)
    trained = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert trained["hyper_parameters"]["optimisation"]["learning_rate"] == 1e-5
    start = torch.load(checkpoint, weights_only=True)
    assert trained["hyper_parameters"]["network"] == start["hyper_parameters"]["network"]
    assert start["hyper_parameters"]["evaluation"]["short_side"] is None  # which the class has otherwise
    assert trained["hyper_parameters"]["evaluation"] == start["hyper_parameters"]["evaluation"]
    moved = [(trained["state_dict"][name] - start["state_dict"][name]).abs().max() for name, _ in trained_parameters(checkpoint)]
    assert 0 < max(moved) < 1e-4  # two steps at 1e-5
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["before_last.ckpt", "last.ckpt"]
    assert cli.main([*arguments, *OPTIONS]) == 0
    assert commands == ["test", "test"]
    # The results name the run and what it was, and take it for no published row.
    assert cli.main(["results", "--runs", "run"]) == 0
    line = next(line for line in Path("run/results.md").read_text().splitlines() if line.startswith("| finetune_own"))
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert cells[3:6] == ["no published row", "last", "2"]
    assert cells[6].startswith("OwnVideosDataModule root=")
    assert cells[6].endswith("(3 items)")


@pytest.mark.parametrize("checkpoint", ["pmvos"], indirect=True)
def test_another_system(checkpoint: Path, commands: list[str], tmp_path: Path) -> None:
    experiment = finetuning.with_model_of(checkpoint, load_experiment("finetune_own"))
    module = training.build(experiment, Run(tmp_path / "run"), OPTIONS, "fit").model
    start = torch.load(checkpoint, weights_only=True)
    assert type(module.network).__name__ == "PMVOS"
    assert {name: value.shape for name, value in module.state_dict().items()} == {
        name: value.shape for name, value in start["state_dict"].items()
    }
    # Only what the experiment says is other than in the checkpoint: the rate, and the rules of scoring.
    described = start["hyper_parameters"]
    assert described["optimisation"]["schedule"]["kind"] == "exponential"
    assert described["optimisation"]["learning_rate"] != 1e-5
    assert module.hparams["optimisation"] == {**described["optimisation"], "learning_rate": 1e-5}
    assert module.hparams["evaluation"] == {**described["evaluation"], "protocol": "davis17"}
    assert module.optimisation.learning_rate == 1e-5


def test_what_cannot_be_fine_tuned(checkpoint: Path, commands: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["train", "finetune_own"], "--checkpoint FILE"),
        (["train", "finetune_own", "--checkpoint", "nowhere.ckpt"], "there is no such checkpoint"),
        (["train", "emvos_smoke", "--checkpoint", str(checkpoint)], "--initial_weights=FILE"),
        (
            ["train", "finetune_own", "--checkpoint", str(checkpoint), "--run-dir", str(checkpoint.parent.parent)],
            "choose another --run-dir",
        ),
        (["train", "emvos_davis16"], "evaluates the checkpoint of emvos_davis17"),
    ]
    for arguments, message in cases:
        assert cli.main(arguments) == 2
        assert message in capfd.readouterr().err
    assert not Path("runs").exists()
    assert load_experiment("finetune_own").fine_tunes


# The data -------------------------------------------------------------------------------------------------------------


def names(root: Path, held_out: bool, share: float = 0.25) -> list[str]:
    return [record.name for record in OwnVideosDataModule(str(root), share).records(held_out)]


def test_parts(videos: Path, tmp_path: Path) -> None:
    assert names(videos, True) == ["video-02"]
    assert names(videos, False) == ["video-00", "video-01", "video-03"]
    assert names(videos, True, 0.5) == ["video-01", "video-03"]
    root = Path(shutil.copytree(videos, tmp_path / "own"))
    (root / "val.txt").write_text("video-00\n")
    assert names(root, True) == ["video-00"]
    (root / "val.txt").write_text("video-07\n")
    with pytest.raises(ValueError, match=r"val\.txt names video-07"):
        names(root, True)
    (root / "val.txt").write_text("".join(f"video-0{i}\n" for i in range(4)))
    with pytest.raises(ValueError, match="holds out every video"):
        names(root, False)


def test_few_masks(videos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(videos, tmp_path / "own"))
    for number in (0, 2):
        (root / "Annotations" / "video-02" / f"{number:05d}.png").unlink()
    video = OwnVideosDataModule(str(root)).val_videos()[0]
    assert video.frame_names[0] == "00001"  # what lies before the first mask is not used
    assert len(video.frames) == 5
    assert sorted(video.targets) == [0, 2, 3, 4]
    for number in (3, 4):
        (root / "Annotations" / "video-02" / f"{number:05d}.png").unlink()
    with pytest.raises(ValueError, match="holds 2 masks: a held-out video needs at least 3"):
        OwnVideosDataModule(str(root)).val_videos()


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder JPEGImages"):
        OwnVideosDataModule(str(tmp_path)).val_videos()
    (tmp_path / "JPEGImages" / "one").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds 1 videos"):
        OwnVideosDataModule(str(tmp_path)).val_videos()
    with pytest.raises(ValueError, match="share of the videos"):
        OwnVideosDataModule(str(tmp_path), 1.5)
