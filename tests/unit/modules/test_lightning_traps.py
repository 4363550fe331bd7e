"""Known traps of Lightning, W&B and SLURM that touch this project, each held by a test."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from tests.recipes.experiments import fit
from vos_lightning import structures
from vos_lightning.app import lightning_cli
from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.lightning_cli import condense, has_wandb_key
from vos_lightning.app.runs import Run
from vos_lightning.app.training import build


def built(directory: Path, *overrides: str) -> Any:
    return build(load_experiment("emvos_smoke"), Run(directory), ["--trainer.enable_progress_bar=false", *overrides], "fit")


def test_contracts_can_be_moved_and_pinned() -> None:
    """Lightning refuses frozen dataclasses without ``.to``; PyTorch returns those without ``.pin_memory`` unpinned, silently."""
    for contract in (structures.ClipBatch, structures.FrameInput, structures.Given, structures.Proposals, structures.VideoSample):
        assert callable(getattr(contract, "to", None)), contract
        assert dataclasses.fields(contract)
    moved = structures.FrameInput(torch.zeros(1, 3, 2, 2)).to(torch.float64)
    assert moved.image.dtype == torch.float64
    assert hasattr(structures.ClipBatch, "pin_memory")


def test_a_wandb_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for _ in range(2):
        loggers = built(tmp_path, "--wandb.mode=offline").trainer.loggers
        wandb_logger = next(logger for logger in loggers if isinstance(logger, WandbLogger))
        assert any(isinstance(logger, CSVLogger) for logger in loggers)
        ids.append(wandb_logger._id)
    assert ids[0] == ids[1] == (tmp_path / "wandb_id").read_text()


class WandbStandIn(CSVLogger):
    """Takes what a WandbLogger is given, so that these tests run without wandb."""

    settings: ClassVar[list[dict[str, Any]]] = []
    configuration: ClassVar[dict[str, Any]] = {}

    def __init__(self, save_dir: Path, **settings: Any) -> None:
        super().__init__(save_dir, name="stand_in")
        self.settings.append(settings)

    def log_hyperparams(self, params: Any) -> None:  # type: ignore[override]
        self.configuration.update(params)


@pytest.fixture
def wandb_settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(lightning_cli, "WandbLogger", WandbStandIn)
    monkeypatch.setattr(lightning_cli, "has_wandb", lambda: True)
    monkeypatch.setattr(WandbStandIn, "settings", [])
    monkeypatch.setattr(WandbStandIn, "configuration", {})
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, "")  # so that it is restored, whatever a run sets
        monkeypatch.delenv(variable)
    return WandbStandIn.settings


def test_wandb_groups_seeds_and_stages(tmp_path: Path, wandb_settings: list[dict[str, Any]]) -> None:
    built(tmp_path / "seed0", "--wandb.mode=offline")
    built(tmp_path / "seed1", "--wandb.mode=offline", "--seed_everything=1")
    built(tmp_path / "stage", "--wandb.mode=offline", "--wandb.group=emvos_davis17")
    assert [settings["group"] for settings in wandb_settings] == ["emvos_smoke", "emvos_smoke", "emvos_davis17"]
    assert {settings["name"] for settings in wandb_settings} == {"emvos_smoke"}
    assert len({settings["id"] for settings in wandb_settings}) == 3


def test_wandb_resumes_under_the_same_id(tmp_path: Path, wandb_settings: list[dict[str, Any]]) -> None:
    for mode in ("offline", "online"):
        built(tmp_path, f"--wandb.mode={mode}")
    first, second = wandb_settings
    assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text()
    assert (first["offline"], second["offline"]) == (True, False)
    for settings in wandb_settings:
        assert settings["resume"] == "allow"  # "never" and "must" fail on the first or on a later start
        assert settings["log_model"] is False  # raises offline, uploads every checkpoint online


def test_wandb_is_online_only_with_a_key(
    tmp_path: Path, wandb_settings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    built(tmp_path / "without", "--wandb.mode=auto")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    built(tmp_path / "with", "--wandb.mode=auto")
    assert [settings["offline"] for settings in wandb_settings] == [True, False]


def test_one_process_names_the_wandb_run(
    tmp_path: Path, wandb_settings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_cli.rank_zero_only, "rank", 1, raising=False)
    built(tmp_path, "--wandb.mode=offline")
    assert wandb_settings[0]["id"] is None
    assert not (tmp_path / "wandb_id").exists()


def test_wandb_gets_the_whole_configuration(
    tmp_path: Path, wandb_settings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vos_lightning.app.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    options = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=1", "--seed_everything=3"]
    options += ["--wandb.mode=offline", "--trainer.enable_progress_bar=false"]
    assert main(["train", "emvos_smoke", "--run-dir", "run", *options]) == 0
    (settings,) = wandb_settings
    assert settings["offline"]
    for logged in (WandbStandIn.configuration, yaml.safe_load(Path("run/logs/start_0/hparams.yaml").read_text())):
        assert logged["experiment"] == "emvos_smoke"
        assert logged["overrides"] == options
        assert logged["seed"] == [3, 0]
        assert logged["batch_size"] == 2
        assert logged["data"].startswith("SyntheticDataModule")
        assert logged["identity"]
        config = logged["config"]
        assert config == yaml.safe_load(Path("run/config.yaml").read_text())
        assert config["trainer"]["max_steps"] == 1
        assert config["data"]["init_args"]["loading"]["batch_size"] == 2
        assert config["model"]["class_path"] == "vos_lightning.modules.emvos.EMVOSModule"
        start = logged["start"]
        assert set(start["commit"] or {"id": None, "changed": None}) == {"id", "changed"}
        assert {"python", "torch", "lightning", "torchmetrics", "numpy", "opencv-python-headless"} <= set(start["packages"])
        assert start["packages"]["torch"] == importlib.metadata.version("torch")
        assert start["hardware"].startswith("1 x ")
        assert (start["processes"], start["nodes"]) == (1, 1)
    assert Run(Path("run")).record()["starts"][-1]["packages"] == start["packages"]


@pytest.mark.parametrize(("known", "expected"), [(True, {"x_transaction_log_flush_interval": 1.0}), (False, {})])
def test_wandb_writes_every_second(
    known: bool,
    expected: dict[str, float],
    tmp_path: Path,
    wandb_settings: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default a killed training leaves an empty file; versions before 0.31 have no such setting."""
    fields = dict.fromkeys(expected) if known else {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Settings=SimpleNamespace(model_fields=fields)))
    built(tmp_path, "--wandb.mode=offline")
    assert wandb_settings[0]["settings"] == expected


def test_evaluations_do_not_log_to_wandb(tmp_path: Path, wandb_settings: list[dict[str, Any]]) -> None:
    build(load_experiment("emvos_smoke"), Run(tmp_path), ["--wandb.mode=offline"], "test")
    assert wandb_settings == []


def test_every_run_can_be_synchronised(tmp_path: Path) -> None:
    """Offline runs lie in the directory of the run, those of stages too."""
    makefile = (Path(__file__).resolve().parents[3] / "Makefile").read_text()
    patterns = next(line for line in makefile.splitlines() if "wandb sync" in line).split()
    patterns = [pattern for pattern in patterns if pattern.startswith("runs/")]
    for run in ("runs/emvos_demo", "runs/emvos_davis17_main-1a2b3c4d"):
        (tmp_path / run / "wandb" / "offline-run-1").mkdir(parents=True)
    found = {path for pattern in patterns for path in tmp_path.glob(pattern)}
    assert len(found) == 2


def test_wandb_is_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert not has_wandb_key()
    logger = next(logger for logger in built(tmp_path, "--wandb.mode=auto").trainer.loggers if isinstance(logger, WandbLogger))
    assert logger._offline
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert has_wandb_key()


def test_no_wandb_when_disabled(tmp_path: Path) -> None:
    assert not any(isinstance(logger, WandbLogger) for logger in built(tmp_path, "--wandb.mode=disabled").trainer.loggers)


def test_csv_metrics_survive_a_restart(tmp_path: Path) -> None:
    """CSVLogger deletes the metrics of a folder that exists: every start has its own."""
    fit("emvos_smoke", tmp_path, "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1")
    before = (tmp_path / "logs" / "start_0" / "metrics.csv").read_text()
    fit("emvos_smoke", tmp_path, "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1")
    assert (tmp_path / "logs" / "start_0" / "metrics.csv").read_text() == before
    assert (tmp_path / "logs" / "start_1" / "metrics.csv").is_file()


def test_slurm_does_not_requeue_from_a_signal_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own requeueing saves inside the handler, and its checkpoint is ignored when another one is named."""
    for name, value in (
        ("NTASKS", "1"),
        ("JOB_NAME", "train"),
        ("JOB_ID", "1"),
        ("LOCALID", "0"),
        ("PROCID", "0"),
        ("NODEID", "0"),
    ):
        monkeypatch.setenv(f"SLURM_{name}", value)
    environment = built(tmp_path).trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue


def test_checkpoint_names_hold_no_slashes(tmp_path: Path) -> None:
    trained = fit("emvos_smoke", tmp_path)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert "last.ckpt" in names
    assert any(name.startswith("best-step=000002-jf=0.") for name in names)
    assert all((tmp_path / "checkpoints" / name).is_file() for name in names)
    assert trained.trainer.global_step == 2


def test_checkpoints_load_without_pickled_code(tmp_path: Path) -> None:
    fit("emvos_smoke", tmp_path, "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=1")
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["network"]["class_path"] == "vos_lightning.networks.emvos.EMVOS"


def test_null_means_null_at_any_depth(tmp_path: Path) -> None:
    """The argument parser turns ``--a.b.c=null`` into the text "None" two levels deep."""
    key = "model.init_args.network.init_args.backbone.init_args.weights"
    cli = built(tmp_path, f"--{key}=null", "--model.init_args.optimisation.learning_rate=1e-4")
    value = cli.config
    for part in key.split("."):
        value = value[part]
    assert value is None
    assert cli.model.optimisation.learning_rate == 1e-4


@pytest.mark.parametrize("argument", ["learning_rate=1", "--", "--trainer.max_steps", "--trainer.max_steps=[1"])
def test_malformed_options(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ExperimentError, match=r"option|YAML"):
        built(tmp_path, argument)


def test_initial_weights_start_a_run_but_not_a_resumed_one(tmp_path: Path) -> None:
    fit("emvos_smoke", tmp_path / "one", "--trainer.limit_val_batches=0")
    checkpoint = tmp_path / "one" / "checkpoints" / "last.ckpt"
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    second = built(tmp_path / "two", f"--initial_weights={checkpoint}", "--seed_everything=7")
    assert all(torch.equal(value, trained[name]) for name, value in second.model.state_dict().items())
    (tmp_path / "two" / "checkpoints").mkdir(parents=True)
    (tmp_path / "two" / "checkpoints" / "last.ckpt").write_bytes(checkpoint.read_bytes())
    resumed = built(tmp_path / "two", f"--initial_weights={checkpoint}", "--seed_everything=7")
    assert any(not torch.equal(value, trained[name]) for name, value in resumed.model.state_dict().items())


def test_parser_messages_become_one_line() -> None:
    message = "\n".join(
        [
            'Parser key "model":',
            "  Does not validate against any of the Union subtypes",
            "  Errors:",
            "    - Problem with given class_path 'a.B':",
            '        Parser key "rate":',
            "          Expected a <class 'float'>. Got value: fast",
            "    - Expected a <class 'NoneType'>",
            "  Given value type: <class 'dict'>",
        ]
    )
    assert condense(message) == "model.rate: Expected a <class 'float'>. Got value: fast"
    assert "\n" not in condense("first\nsecond")


def test_training_ends_with_a_checkpoint_of_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of steps need not be a multiple of the interval at which checkpoints are written."""
    from vos_lightning.app.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOS_EXPERIMENTS", str(Path(__file__).resolve().parents[3] / "experiments"))
    options = [
        "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false",
        "--last_checkpoint.every_n_train_steps=200",
    ]
    assert main(["train", "emvos_smoke", "--run-dir", "run", *options]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_one_training_a_directory(tmp_path: Path) -> None:
    """The child of a killed command may still train; a second training beside it would spoil both."""
    run = Run(tmp_path / "run")
    with run.lock(), pytest.raises(ExperimentError, match=r"is being trained by process \d+"), Run(tmp_path / "run").lock():
        pass
    with run.lock():
        pass


def test_stages_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage starts from the weights of the one before; finished ones are not repeated."""
    from vos_lightning.app import cli, training

    source = experiments_folder().resolve()
    (tmp_path / "experiments" / "emvos").mkdir(parents=True)
    for path in source.glob("*/*.yaml"):
        target = tmp_path / "experiments" / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text())
    (tmp_path / "experiments" / "emvos" / "staged.yaml").write_text("stages: [emvos_smoke, emvos_smoke]\n")
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def in_process(command: list[str], request: Any = None) -> int:
        commands.append(command)
        return cli.main(command)

    monkeypatch.setattr(training, "run_command", in_process)
    options = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    assert cli.main(["train", "emvos_staged", *options]) == 0
    assert not any("initial_weights" in argument for argument in commands[0])
    assert any(argument.startswith("--initial_weights=runs/emvos_smoke-") for argument in commands[1])
    assert all("--wandb.group=emvos_staged" in command for command in commands)
    assert (tmp_path / "runs" / "emvos_staged" / "finished").is_file()
    commands.clear()
    assert cli.main(["train", "emvos_staged", *options]) == 0
    assert not commands


def test_every_log_call_names_its_batch_size() -> None:
    """Lightning would infer 3, the RGB channels, from a video."""
    from vos_lightning.modules import base

    source = inspect.getsource(base)
    assert source.count("self.log(") + source.count("self.log_dict(") == source.count("batch_size=size") + source.count(
        "batch_size=1"
    )
