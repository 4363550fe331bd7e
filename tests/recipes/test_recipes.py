"""Every experiment parses and builds; every smoke recipe fits, tests and predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from tests.recipes.experiments import EXPERIMENTS, NAMES, SMOKE, fit, without_pretrained
from vos_lightning.app.cli import main
from vos_lightning.app.composition import ExperimentError, with_overrides
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.app.finetuning import with_model_of
from vos_lightning.app.runs import Run
from vos_lightning.app.training import build
from vos_lightning.checkpoints.loading import load_engine, load_weights
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.proposal_detector import ProposalDetectorModule

SINGLE = [name for name in NAMES if not EXPERIMENTS[name].stages]
FINE_TUNING = [name for name in NAMES if EXPERIMENTS[name].fine_tunes]


def first_of_each(names: Sequence[str], kept: Callable[[str], bool]) -> list[str]:
    """Names of experiments with a section that none before has: a top-level key, of those that are kept, with its value."""
    seen: set[str] = set()
    found = []
    for name in names:
        sections = {yaml.safe_dump({key: value}) for key, value in EXPERIMENTS[name].config.items() if kept(key)}
        if not sections <= seen:
            found.append(name)
        seen |= sections
    return found


# The sections of a configuration are checked and built independently of each other, so that each has to be built once only.
WHOLE = first_of_each(SINGLE, lambda key: key != "model")
MODELS = [name for name in first_of_each([*WHOLE, *SINGLE], lambda key: key == "model") if name not in WHOLE]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small system, for experiments that take theirs from a checkpoint."""
    directory = tmp_path_factory.mktemp("checkpoint")
    fit("emvos_smoke", directory, "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=0")
    return Run(directory).checkpoint()


def assert_has_parts_with_own_rates(model: LightningModule) -> None:
    if isinstance(model, VOSModule):
        optimizer = model.optimisation.build(model.network, [{"params": list(model.network.parameters())}])
        assert {group["lr"] for group in optimizer.param_groups} >= {model.optimisation.learning_rate}


@pytest.mark.parametrize("name", WHOLE)
def test_every_experiment_builds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    experiment = EXPERIMENTS[name]
    if name in FINE_TUNING:
        experiment = with_model_of(request.getfixturevalue("checkpoint"), experiment)
    overrides = [*without_pretrained(experiment), "--wandb.mode=disabled", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    # Every argument is checked and every layer made; only the numbers are left out, which takes most of the time.
    with torch.device("meta"):
        cli = build(experiment, Run(tmp_path), overrides, "fit")
    assert cli.trainer.max_steps > 0
    assert cli.datamodule.loading.batch_size > 0
    assert_has_parts_with_own_rates(cli.model)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_builds(name: str) -> None:
    """As the command line does, but for the other sections, which take three quarters of the time."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    config = with_overrides(EXPERIMENTS[name].config, without_pretrained(EXPERIMENTS[name]))
    with torch.device("meta"):
        model = parser.instantiate(parser.parse_object({"model": config["model"]})).model
    assert isinstance(model, VOSModule | ProposalDetectorModule)
    assert_has_parts_with_own_rates(model)


def test_every_section_of_every_experiment_is_built() -> None:
    def sections(names: Sequence[str], *, model: bool = True) -> set[tuple[str, str]]:
        pairs = (pair for name in names for pair in EXPERIMENTS[name].config.items())
        return {(key, yaml.safe_dump(value)) for key, value in pairs if model or key != "model"}

    assert sections(SINGLE) == sections(WHOLE) | {pair for pair in sections(MODELS) if pair[0] == "model"}
    assert sections(SINGLE, model=False) == sections(WHOLE, model=False)


def test_stages_are_experiments() -> None:
    for name in NAMES:
        for stage in EXPERIMENTS[name].stages:
            assert stage in SINGLE, f"{name} has a stage {stage} that is no experiment"


def test_evaluated_checkpoints_are_trained() -> None:
    for name in NAMES:
        evaluated = EXPERIMENTS[name].checkpoint_of
        assert evaluated is None or (evaluated in NAMES and EXPERIMENTS[evaluated].checkpoint_of is None), name


def test_published_blocks_say_what_they_are() -> None:
    for name in NAMES:
        published = EXPERIMENTS[name].published
        if published:
            assert {"paper", "table", "row", "dataset", "metrics"} <= published.keys(), name
            assert all(isinstance(value, (int, float)) for value in published["metrics"].values()), name


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_recipes_fit_test_and_predict(name: str, tmp_path: Path) -> None:
    trained = fit(name, tmp_path)
    checkpoint = Run(tmp_path).checkpoint()
    for stage in ("test", "predict"):
        cli = build(EXPERIMENTS[name], Run(tmp_path), ["--trainer.enable_progress_bar=false"], stage)  # type: ignore[arg-type]
        load_weights(cli.model, checkpoint)
        getattr(cli.trainer, stage)(cli.model, datamodule=cli.datamodule)
    pngs = list((tmp_path / "predictions").rglob("*.png"))
    assert pngs
    assert "val_jf" in trained.trainer.callback_metrics
    assert list((tmp_path / "panels").glob("step=*.png"))
    video = cli.datamodule.test_videos()[0].name
    folder = tmp_path / "visuals"
    arguments = [name, "--run-dir", str(tmp_path), "--video", video, "--frame", "1", "2", "--output", str(folder)]
    assert main(["visualize", *arguments]) == 0
    assert len(list(folder.glob("*/sheet.png"))) == 2
    # The checkpoint describes itself.
    engine = load_engine(checkpoint, device="cpu")
    for key, value in trained.model.network.state_dict().items():
        if "num_batches" not in key:
            assert engine.network.state_dict()[key].shape == value.shape


def test_every_paper_has_a_smoke_recipe() -> None:
    folders = {path.name for path in experiments_folder().iterdir() if path.is_dir() and not path.name.startswith("_")}
    folders -= {EXPERIMENTS[name].path.parent.name for name in FINE_TUNING}
    assert {name.removesuffix("_smoke") for name in SMOKE} == folders


# Composition ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path))
    (tmp_path / "p").mkdir()
    return tmp_path / "p"


def write(folder: Path, name: str, **content: object) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def test_extends_merges_mappings_and_replaces_the_rest(folder: Path) -> None:
    write(folder, "_base", data={"a": 1, "b": [1, 2], "c": {"d": 1}})
    write(
        folder,
        "one",
        extends=["p/_base"],
        data={"b": [3], "c": {"e": "${VOS_DATA}/x"}},
        published={"paper": "P", "table": 1, "row": "R", "dataset": "D", "metrics": {"J&F": 80.0}},
    )
    write(folder, "two", extends=["p/one"], data={"a": 2})
    assert load_experiment("p_one").config == {"data": {"a": 1, "b": [3], "c": {"d": 1, "e": "data/x"}}}
    assert load_experiment("p_two").config["data"]["a"] == 2
    assert load_experiment("p_two").published == {}


def test_a_part_is_replaced_as_a_whole(folder: Path) -> None:
    backbone = {"class_path": "a.Old", "init_args": {"size": 1}}
    write(folder, "_base", model={"class_path": "a.B", "init_args": {"backbone": backbone, "x": 1}})
    new = {"class_path": "a.New", "init_args": {}}
    write(folder, "one", extends=["p/_base"], model={"init_args": {"backbone": new}})
    assert load_experiment("p_one").config["model"]["init_args"] == {"backbone": new, "x": 1}
    write(folder, "two", extends=["p/_base"], model={"init_args": {"backbone": {"class_path": "a.New"}}})
    with pytest.raises(ExperimentError, match=r"from a\.Old to a\.New: name its init_args too"):
        load_experiment("p_two")


def test_extending_files_do_not_change_a_class(folder: Path) -> None:
    write(folder, "_base", model={"class_path": "a.B", "init_args": {"x": 1}})
    write(folder, "one", extends=["p/_base"], model={"class_path": "a.C"})
    with pytest.raises(ExperimentError, match=r"one\.yaml changes model\.class_path from a\.B to a\.C"):
        load_experiment("p_one")


def test_circles_and_missing_files_are_named(folder: Path) -> None:
    write(folder, "one", extends=["p/two"])
    write(folder, "two", extends=["p/one"])
    write(folder, "three", extends=["p/nothing"])
    with pytest.raises(ExperimentError, match="extends itself"):
        load_experiment("p_one")
    with pytest.raises(ExperimentError, match=r"three\.yaml extends .*nothing\.yaml"):
        load_experiment("p_three")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "emvos_smok"], "did you mean emvos_smoke"),
        (["train", "nothing_like_it"], "`vos list --plain` prints all names"),
        (["trian", "emvos_smoke"], "did you mean train"),
        (["train", "emvos_smoke", "--trainer.max_stepz=3"], "max_stepz"),
        (["train", "emvos_smoke", "--model.init_args.optimisation.learning_rat=3"], "learning_rat"),
        (["train", "emvos_smoke", "--model.init_args.optimisation.learning_rate=fast"], "learning_rate"),
        (["train", "emvos_smoke", "--model.init_args.network.init_args.matching=both"], "matching"),
        (["train", "emvos_smoke", "--trainer.max_steps=-1"], "trainer.max_steps"),
        (
            ["train", "emvos_davis17_only", *without_pretrained(load_experiment("emvos_davis17_only")), "--wandb.mode=disabled"],
            "data/DAVIS",
        ),
        (["test", "emvos_smoke"], "no checkpoint"),
        (["visualize", "emvos_smoke", "--video", "v", "--frame", "1", "--output", "o"], "no checkpoint"),
        (["visualize", "--video", "v.mp4", "--frame", "1", "--output", "o"], "--checkpoint and --masks"),
        (["visualize", "emvos_smoke", "--video", "v", "--frame", "-1", "--output", "o"], "frames count from 0"),
        (["test", "emvos_smoke", "--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.delenv("VOS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_foreign_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(3)}, "foreign.ckpt")
    assert main(["test", "emvos_smoke", "--checkpoint", "foreign.ckpt"]) == 2
    assert "foreign.ckpt: this is no Lightning checkpoint" in capfd.readouterr().err


def test_lists_and_help_print(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["list"], ["list", "--plain"], ["show", "emvos_smoke"], ["--help"]):
        assert main(arguments) == 0
        assert "emvos" in capsys.readouterr().out or arguments == ["--help"]
    assert main([]) == 2
