"""What is evaluated is what was trained: a checkpoint of another system than the experiment's is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.error import URLError

import pytest
import torch

from tests.clips import proposals_of
from tests.layouts import write_davis_layout
from tests.networks import NETWORKS
from tests.recipes.experiments import NAMES, SMOKE, without_pretrained
from tests.tolerances import assert_close
from vos_lightning.app import lightning_cli, training
from vos_lightning.app.cli import main
from vos_lightning.app.composition import ExperimentError, differing_keys
from vos_lightning.app.experiments import Experiment, experiments_folder, load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.app.scoring import _require_same_system
from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.densenet import DenseNetPyramid
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.checkpoints import loading
from vos_lightning.checkpoints.loading import decisive_arguments
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.modules.base import VOSModule
from vos_lightning.propagation.engine import InferenceEngine

NETWORK = "model.init_args.network.init_args"
SWITCHES = {
    "dmn_aoa": ("model.init_args.memory", "first"),
    "emvos": ("model.init_args.eval_aggregation", "product"),
    "munet": (f"{NETWORK}.motion.temperature", "0.1"),
    "pmnet": (f"{NETWORK}.sampling.source", "probabilities"),
    "pmvos": (f"{NETWORK}.medial", "released"),
    "stcn": (f"{NETWORK}.top_k", "7"),
    "stm": (f"{NETWORK}.pad_colour", "mean"),
}
"""For every paper, something that changes what a network with the same parameters predicts."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, an empty cache of pretrained weights."""
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("VOS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_checkpoint(path: Path, name: str, *overrides: str) -> None:
    """A checkpoint of an experiment's system with other settings, which it describes as an imported one does."""
    built = training.build(load_experiment(name), Run(path.parent / "unused"), overrides, "test")
    built.trainer.strategy.connect(built.model)
    built.trainer.save_checkpoint(path, weights_only=True)


@functools.cache
def system_of(name: str) -> Experiment:
    """What an experiment evaluates: its last stage, where it has any."""
    experiment = load_experiment(name)
    return load_experiment(experiment.stages[-1]) if experiment.stages else experiment


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_every_paper_has_a_switch() -> None:
    assert sorted(SWITCHES) == sorted(name.removesuffix("_smoke") for name in SMOKE)


@pytest.mark.parametrize("paper", sorted(SWITCHES))
def test_a_checkpoint_with_another_switch_is_refused(paper: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key, value = SWITCHES[paper]
    name = f"{paper}_smoke"
    write_checkpoint(folder / "other.ckpt", name, f"--{key}={value}")
    assert main(["test", name, "--checkpoint", "other.ckpt"]) == 2
    message = error_of(capfd)
    assert f"other.ckpt is of another system than {name}: {key} ({value}, not " in message
    assert message.endswith(f": --{key}={value}")
    # What the message says to do works, and is the only thing that is needed; so is what was there before.
    experiment = load_experiment(name)
    _require_same_system(folder / "other.ckpt", experiment, shlex.split(message.rpartition(": ")[2]), name)
    before = loading.decisive_arguments(experiment.config["model"])
    for part in key.removeprefix("model.").split("."):
        before = before[part]
    _require_same_system(folder / "other.ckpt", experiment, [f"--{key}={json.dumps(before)}"], name)


@pytest.mark.parametrize("command", ["validate", "predict", "visualize"])
def test_other_commands_refuse_it_too(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(folder / "other.ckpt", "pmvos_smoke", f"--{NETWORK}.medial=released")
    options = ["--video", "v", "--frame", "1", "--output", "o"] if command == "visualize" else []
    assert main([command, "pmvos_smoke", "--checkpoint", "other.ckpt", *options]) == 2
    assert "medial (released, not paper)" in error_of(capfd)


def test_evaluated_as_it_was_trained(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole way: refused without the switch of the training, and with it what the checkpoint itself predicts."""
    quick = ["--trainer.enable_progress_bar=false", "--data.init_args.num_test_videos=1"]
    switch = f"--{NETWORK}.medial=released"
    write_checkpoint(folder / "c.ckpt", "pmvos_smoke", switch)
    arguments = ["predict", "pmvos_smoke", "--run-dir", "out", "--checkpoint", "c.ckpt", *quick]
    assert main(arguments) == 2
    assert "medial (released, not paper)" in error_of(capfd)
    assert not (folder / "out" / "predictions").exists()
    assert main([*arguments, switch]) == 0
    video = training.build(load_experiment("pmvos_smoke"), Run(folder), quick, "predict").datamodule.predict_videos()[0]
    predicted = [p.label_map for p in loading.load_engine("c.ckpt", device="cpu").run(video)]
    files = sorted((folder / "out" / "predictions" / "predict" / "masks").rglob("*.png"))
    assert len(files) == len(predicted)
    assert all(torch.equal(read_label_map(file), label_map) for file, label_map in zip(files, predicted, strict=True))


def test_another_paper_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(folder / "other.ckpt", "stm_smoke")
    assert main(["test", "stcn_smoke", "--checkpoint", "other.ckpt"]) == 2
    assert "other.ckpt is of STMModule with STM, but stcn_smoke evaluates STCNModule with STCN" in error_of(capfd)


def test_what_an_older_version_did_not_write_is_the_default(folder: Path) -> None:
    write_checkpoint(folder / "c.ckpt", "pmvos_smoke")
    content = torch.load(folder / "c.ckpt", weights_only=True)
    described = content["hyper_parameters"]
    for group, key in (("evaluation", "short_side"), ("optimisation", "schedule")):
        del described[group][key]
    for key in ("eval_aggregation", "optimisation"):
        del described[key]
    del described["network"]["init_args"]["medial"]
    torch.save(content, folder / "c.ckpt")
    experiment = load_experiment("pmvos_smoke")
    _require_same_system(folder / "c.ckpt", experiment, [], experiment.name)
    described["network"]["init_args"]["medial"] = "unheard of"
    torch.save(content, folder / "c.ckpt")
    with pytest.raises(ExperimentError, match=r"c\.ckpt does not fit this version of the library: .*medial"):
        _require_same_system(folder / "c.ckpt", experiment, [], experiment.name)


@functools.cache
def decisive(model: str) -> dict[str, Any]:
    """Of a model section as JSON."""
    return decisive_arguments(json.loads(model))


def test_every_experiment_takes_the_checkpoint_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it sets otherwise than the experiment that trains is meant; and a checkpoint with anything else is refused."""
    described: dict[str, Any] = {}
    monkeypatch.setattr(loading, "describe_model", lambda _: described)
    # The same few systems again and again.
    monkeypatch.setattr(loading, "decisive_arguments", lambda model, plain=decisive: plain(json.dumps(model)))
    seen, refused = set(), set()
    for name in NAMES:
        experiment = load_experiment(name)
        trained = experiment.checkpoint_of
        if trained is None:
            continue
        described = dict(system_of(trained).config["model"])
        paper = name.partition("_")[0]
        changed = (paper, *differing_keys(experiment.config["model"], described))
        if changed in seen:
            continue
        seen.add(changed)
        _require_same_system(Path("c.ckpt"), experiment, [], name)
        if paper in refused:
            continue
        refused.add(paper)
        said = experiment.config["model"]["init_args"].get("evaluation") or {}
        key = "short_side" if said.get("short_side") is None else "min_object_pixels"
        arguments = described["init_args"]
        evaluation = {**(arguments.get("evaluation") or {}), key: 123}
        described = {**described, "init_args": {**arguments, "evaluation": evaluation}}
        with pytest.raises(ExperimentError, match=f"{key} .123, not"):
            _require_same_system(Path("c.ckpt"), experiment, [], name)
    assert len(seen) > 20


# Pretrained weights ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was to be downloaded; there is no network."""
    requests: list[object] = []

    def refuse(request: object) -> None:
        requests.append(request)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    return requests


def test_the_data_are_looked_for_before_weights_are_downloaded(
    folder: Path, asked: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "munet_protocol1"]) == 2
    assert "data/DAVIS" in error_of(capfd)
    assert asked == []
    assert not (folder / "runs").exists()


def test_weights_that_cannot_be_downloaded(folder: Path, asked: list[object], capfd: pytest.CaptureFixture[str]) -> None:
    write_davis_layout(folder / "data" / "DAVIS", 2)
    assert main(["train", "munet_protocol1"]) == 2
    message = error_of(capfd)
    assert len(asked) == 1
    for part in (
        "no network",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        str(folder / "torch" / "hub" / "checkpoints"),
        f" --{NETWORK}.stm.init_args.backbone.init_args.weights=null",
        f" --{NETWORK}.stm.init_args.mask_encoder.init_args.trunk.init_args.weights=null",
    ):
        assert part in message
    assert not (folder / "runs").exists()
    # What the message says to do is what is needed, and all that is.
    options = message.rpartition("random weights: ")[2].split()
    assert options == without_pretrained(load_experiment("munet_protocol1"))
    training.build(load_experiment("munet_protocol1"), Run(folder / "random"), options, "fit")
    assert len(asked) == 1


def build(name: str, run: Run, stage: Any, *options: str) -> Any:
    """An experiment without the numbers of its parameters."""
    with torch.device("meta"):
        quiet = ["--wandb.mode=disabled", "--trainer.accelerator=cpu", "--trainer.devices=1"]
        return training.build(load_experiment(name), run, [*quiet, *options], stage)


@pytest.mark.parametrize("name", ["dmn_aoa_coco", "munet_protocol1_v2", "pmnet_static", "pmvos_stage1", "stcn_main"])
def test_an_evaluation_downloads_nothing(name: str, folder: Path, asked: list[object]) -> None:
    build(name, Run(folder / "run"), "test")
    assert asked == []


def test_a_training_from_a_checkpoint_downloads_nothing(
    folder: Path, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it starts or goes on from it; the checkpoints to come still say where the system once started."""
    monkeypatch.setattr(lightning_cli, "load_weights", lambda *_, **__: None)
    resumed = Run(folder / "resumed")
    (resumed.directory / "checkpoints").mkdir(parents=True)
    torch.save({}, resumed.directory / "checkpoints" / "last.ckpt")
    for run, options in ((Run(folder / "run"), ["--initial_weights=x.ckpt"]), (resumed, [])):
        built = build("emvos_davis17_only", run, "fit", *options)
        assert built.model.hparams["network"]["init_args"]["backbone"]["init_args"]["weights"] == "IMAGENET1K_V1"
    assert asked == []


def test_options_are_shown_without_building_anything(
    folder: Path, asked: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "munet_protocol1", "--options"]) == 0
    assert "weights: IMAGENET1K_V1" in capfd.readouterr().out
    assert main(["show", "munet_protocol1", "--options", "--model.init_args.optimisation.learning_rat=1"]) == 2
    assert "learning_rat" in error_of(capfd)
    assert asked == []
    assert main(["show", "pmvos_davis17", "--options"]) == 2
    assert "its stages do: pmvos_stage1, pmvos_stage2, pmvos_stage3" in error_of(capfd)
    assert main(["show", "finetune_own", "--options"]) == 2
    assert "from a checkpoint" in error_of(capfd)


# What does not count ---------------------------------------------------------------------------------------------------


def modules() -> dict[str, type[VOSModule]]:
    """The module of every network."""
    return {
        paper: next(
            value
            for value in vars(importlib.import_module(f"vos_lightning.modules.{paper}")).values()
            if inspect.isclass(value) and issubclass(value, VOSModule) and value is not VOSModule
        )
        for paper in NETWORKS
    }


def kinds_of(paper: str) -> list[type]:
    """The classes that a paper's system is made of, as far as they have arguments of training, with its module."""
    parts = {type(part) for part in NETWORKS[paper].small().modules()}
    with_arguments = (part for part in parts if getattr(part, "training_arguments", ()))
    return [modules()[paper], *sorted(with_arguments, key=lambda kind: kind.__name__)]


@pytest.mark.parametrize("paper", sorted(NETWORKS))
def test_training_arguments_are_arguments(paper: str) -> None:
    for kind in kinds_of(paper):
        taken = inspect.signature(kind).parameters
        for name in kind.training_arguments:
            first, *inner = name.split(".")
            if issubclass(kind, Backbone) and first not in taken:
                continue  # what backbones have in common is said once, and not every one takes all of it
            assert first in taken or (kind is modules()[paper] and name in VOSModule.training_arguments), name
            value = taken[first].default if first in taken else None
            for part in inner:
                assert part in {field.name for field in dataclasses.fields(value)}, name
                value = getattr(value, part)


def test_arguments_of_all_backbones_are_those_of_some() -> None:
    taken = {name for kind in (DenseNetPyramid, ResNetPyramid) for name in inspect.signature(kind).parameters}
    assert taken >= Backbone.training_arguments


@contextlib.contextmanager
def constructing(kind: type, name: str, change: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Every ``kind`` that is made inside gets ``change(its type, its value)`` for an argument, dotted inside groups."""
    original, signature = kind.__init__, inspect.signature(kind.__init__)
    hints = get_type_hints(original)

    def changed(value: Any, hint: Any, inner: list[str]) -> Any:
        if not inner:
            return change(hint, value)
        part = changed(getattr(value, inner[0]), get_type_hints(type(value))[inner[0]], inner[1:])
        return dataclasses.replace(value, **{inner[0]: part})

    def init(self: Any, *given: Any, **options: Any) -> None:
        bound = signature.bind(self, *given, **options)
        bound.apply_defaults()
        first, *inner = name.split(".")
        original(**{**bound.arguments, first: changed(bound.arguments[first], hints[first], inner)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "__init__", init)
        yield


def others(hint: Any, value: Any) -> list[Any]:
    """Other values of an argument, by its type."""
    values = [one for part in (hint, *get_args(hint)) if get_origin(part) is Literal for one in get_args(part)]
    if isinstance(value, bool):
        values = [not value]
    elif isinstance(value, (int, float)):
        values = [value / 2 if isinstance(value, float) else value + 1]
    return [one for one in values if one != value]


CHANGED = {
    "dmn_aoa": {"DMNAOA.isometric_start", "DMNAOA.copier_start", "DMNAOA.matching.assignment.train_steps"},
    "emvos": {"EMVOS.isometric_start", "EMVOS.copier_start", "EMVOS.train_encoder", "DenseNetPyramid.norm"},
    "munet": {"MaskedEncoder.mask_init"},
    "pmnet": {"MaskedEncoder.mask_init", "PMNet.refinement.chunk_bytes"},
    "pmvos": {"PMVOS.isometric_start", "PMVOS.copier_start"},
    "stcn": {"STCN.isometric_start", "MaskedEncoder.mask_init"},
    "stm": {"STM.isometric_start", "MaskedEncoder.mask_init"},
}
"""What is certainly tried of the published papers; of a ResNet, how it normalises and what of it is trained."""


@pytest.mark.parametrize("paper", sorted(NETWORKS))
def test_training_arguments_change_no_prediction(paper: str) -> None:
    kind = NETWORKS[paper]
    network = kind.small().eval()
    frames = [torch.rand(3, 48, 64) for _ in range(3)]
    label_map = torch.zeros(48, 64, dtype=torch.uint8)
    label_map[8:24, 8:40] = 1

    def run(one: Any) -> torch.Tensor:
        engine = InferenceEngine(one, modules()[paper](one).eval_propagation)
        given = [label_map, None, None]
        proposals = [proposals_of(one, frame[None]) for frame in frames]
        return torch.stack(
            [engine.step(*pair, proposals=found).probabilities for *pair, found in zip(frames, given, proposals, strict=True)]
        )

    expected = run(network)
    tried = set()
    for part in kinds_of(paper)[1:]:
        for name in sorted(part.training_arguments - {"weights"}):
            if name.split(".")[0] not in inspect.signature(part).parameters:
                continue
            values: list[Any] = []

            def note(hint: Any, value: Any, found: list[Any] = values) -> Any:
                found += others(hint, value)
                return value

            with constructing(part, name, note):
                kind.small()
            for value in dict.fromkeys(values):
                # Other parameters; and an encoder that is not trained has frozen normalisation.
                if (name, value) == ("norm", "instance"):
                    continue
                with constructing(part, name, lambda _, __, value=value: value):
                    one = kind.small()
                one.load_state_dict(network.state_dict())
                assert_close(run(one.eval()), expected)
                tried.add(f"{part.__name__}.{name}")
    with_resnet = any(part.__name__ == "ResNetPyramid" for part in kinds_of(paper))
    assert tried >= CHANGED.get(paper, set()) | ({"ResNetPyramid.norm", "ResNetPyramid.train_from"} if with_resnet else set())
