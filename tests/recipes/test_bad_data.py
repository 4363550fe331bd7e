"""Broken data gives one line that names the file and the mend, and a non-zero exit code; what was done before is kept."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.layouts import write_davis_layout
from tests.recipes.experiments import fit
from vos_lightning.app.cli import main
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.runs import Run

ANNOTATIONS = Path("Annotations") / "480p"
IMAGES = Path("JPEGImages") / "480p"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    fit("emvos_smoke", directory, "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=0")
    return Run(directory).checkpoint()


@pytest.fixture
def davis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAVIS layout with two test videos, and an experiment ``davis.yaml`` on it."""
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "DAVIS"
    write_davis_layout(root, 4)
    config = copy.deepcopy(dict(load_experiment("emvos_smoke").config))
    config["data"] = {
        "class_path": "data_modules.datasets.davis.DAVISDataModule",
        "init_args": {"root": str(root), "loading": {"num_workers": 0}},
    }
    config["data"]["init_args"]["recipe"] = {"num_frames": 3, "short_side": None, "crop": "none", "max_objects": 2}
    config["trainer"]["enable_progress_bar"] = False
    Path("davis.yaml").write_text(yaml.safe_dump(config))
    return root


def videos(root: Path) -> list[str]:
    return (root / "ImageSets" / "2017" / "val.txt").read_text().split()


def test_a_sound_layout_is_scored(davis: Path, checkpoint: Path) -> None:
    assert main(["test", "davis.yaml", "--checkpoint", str(checkpoint)]) == 0
    assert (Path("runs") / "davis" / "scores" / "test.json").is_file()


def missing_frame(root: Path, video: str) -> Path:
    path = sorted((root / IMAGES / video).iterdir())[2]
    path.unlink()
    return Path(path.stem)


def truncated_jpeg(root: Path, video: str) -> Path:
    path = sorted((root / IMAGES / video).iterdir())[2]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def first_mask(root: Path, video: str) -> Path:
    return sorted((root / ANNOTATIONS / video).iterdir())[0]


def empty_first_mask(root: Path, video: str) -> Path:
    path = first_mask(root, video)
    Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    return path


def smooth_first_mask(root: Path, video: str) -> Path:
    path = first_mask(root, video)
    noise = np.random.default_rng(0).integers(0, 256, (*np.asarray(Image.open(path)).shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def first_mask_of_another_size(root: Path, video: str) -> Path:
    path = first_mask(root, video)
    Image.open(path).resize((20, 20), Image.Resampling.NEAREST).save(path)
    return path


def missing_first_mask(root: Path, video: str) -> Path:
    path = first_mask(root, video)
    path.unlink()
    return Path(video)


@pytest.mark.parametrize(
    "damage",
    [missing_frame, truncated_jpeg, empty_first_mask, smooth_first_mask, first_mask_of_another_size, missing_first_mask],
)
def test_damage_is_named(
    davis: Path, checkpoint: Path, damage: Callable[[Path, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    named = damage(davis, videos(davis)[-1])
    capfd.readouterr()
    assert main(["test", "davis.yaml", "--checkpoint", str(checkpoint)]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert str(named) in errors[0]


def test_predictions_before_the_damage_are_kept(davis: Path, checkpoint: Path) -> None:
    first, last = videos(davis)[0], videos(davis)[-1]
    truncated_jpeg(davis, last)
    assert main(["test", "davis.yaml", "--checkpoint", str(checkpoint)]) == 2
    written = {path.parent.name for path in (Path("runs") / "davis" / "predictions" / "test").rglob("*.png")}
    assert first in written


@pytest.mark.parametrize(
    "damage", [truncated_jpeg, empty_first_mask, smooth_first_mask, first_mask_of_another_size, missing_first_mask]
)
def test_prediction_passes_over_a_bad_video(
    davis: Path, checkpoint: Path, damage: Callable[[Path, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """All others are written, the code says that something is missing, and a second start does what is left."""
    bad, good = videos(davis)
    masks = Path("runs") / "davis" / "predictions" / "predict" / "masks"
    backup = Path(shutil.copytree(davis, davis.with_name("backup")))
    named = damage(davis, bad)
    capfd.readouterr()
    assert main(["predict", "davis.yaml", "--checkpoint", str(checkpoint)]) == 3
    errors = capfd.readouterr().err.splitlines()
    assert any(line.startswith(f"{bad} is passed over: ") and str(named) in line for line in errors)
    assert errors[-2].startswith(f"missing: {bad}: ")
    assert errors[-1] == (
        "error: 1 of 2 videos are missing; all others are written. Mend them and start the command again with "
        "--predictions.resume=true"
    )
    assert [path.name for path in masks.iterdir()] == [good]
    written = {path: path.stat().st_mtime_ns for path in masks.rglob("*.png")}
    shutil.rmtree(davis)
    backup.rename(davis)
    resumed = ["predict", "davis.yaml", "--predictions.resume=true", "--checkpoint"]
    assert main([*resumed, str(checkpoint)]) == 0
    assert sorted(path.name for path in masks.iterdir()) == [bad, good]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert sorted(path.name for path in masks.parent.glob("*.png")) == ["contact_sheet.png", "contact_sheet_start2.png"]
    # Of other weights, nothing is mixed in.
    other = torch.load(checkpoint, weights_only=True)
    torch.save({**other, "global_step": 7}, "other.ckpt")
    assert main([*resumed, "other.ckpt"]) == 2
    assert "holds results of another checkpoint, or with other options" in capfd.readouterr().err


def test_damage_in_training_is_named(davis: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train = (davis / "ImageSets" / "2017" / "train.txt").read_text().split()
    named = {str(truncated_jpeg(davis, video)) for video in train}
    for workers in (0, 1):
        capfd.readouterr()
        options = ["--trainer.max_steps=40", "--trainer.val_check_interval=40", f"--data.init_args.loading.num_workers={workers}"]
        assert main(["train", "davis.yaml", "--run-dir", f"run{workers}", *options]) == 2
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert any(name in errors[0] for name in named)
