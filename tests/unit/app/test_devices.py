"""A training takes as many devices as share its batch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from tests.recipes.experiments import NAMES
from vos_lightning.app import cli, lightning_cli, training
from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.devices import available_devices, device_name, require_all_processes, share_batch
from vos_lightning.app.experiments import load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.modules import dmn_aoa, emvos, munet, pmnet, pmvos, proposal_detector, stcn, stm
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.networks.dmn_aoa import DMNAOA


def test_every_training_gets_a_legal_number() -> None:
    experiments = [load_experiment(name) for name in NAMES]
    trained = [one for one in experiments if not (one.stages or one.checkpoint_of)]
    for experiment, available in itertools.product(trained, (1, 2, 3, 4, 8)):
        name = experiment.name
        batch = experiment.config["data"]["init_args"]["loading"]["batch_size"]
        asked = {**experiment.config["trainer"], "devices": "auto"}
        share = share_batch(asked, batch, available=lambda _, available=available: available)
        dividing = [
            devices for devices in (1, 2, 3, 4, 5, 6, 7, 8) if devices <= available and batch / devices in range(1, batch + 1)
        ]
        assert share.devices == dividing[-1], name
        assert (share.batch_size, share.rate_factor) == (batch, 1.0)
        assert (share.note is None) == (share.devices == available)


@pytest.mark.parametrize(
    ("devices", "nodes", "batch", "available", "expected"),
    [
        ("auto", 1, 1, 4, 1),
        (-1, 1, 6, 4, 3),
        ("-1", 1, 12, 8, 6),
        ([-1], 1, 8, 8, 8),
        ("auto", 2, 8, 3, 2),  # 2 x 3 does not divide 8, 2 x 2 does
        ("auto", 2, 2, 8, 1),
        (2, 1, 4, 8, None),  # what was asked for stays
        ([0, 1], 1, 4, 8, None),
        ("0,1", 1, 4, 8, None),
        ("3,", 1, 1, 8, None),
        ("2", 2, 4, 8, None),
        (0, 1, 4, 8, None),
    ],
)
def test_number_of_devices(devices: Any, nodes: int, batch: int, available: int, expected: int | None) -> None:
    share = share_batch({"devices": devices, "num_nodes": nodes}, batch, available=lambda _: available)
    assert share.devices == expected
    assert share.batch_size == batch


@pytest.mark.parametrize(
    ("trainer", "batch", "launched", "message"),
    [
        ({"devices": 4}, 1, None, "a batch of 1 clip cannot be shared by 4 devices"),
        ({"devices": 4}, 6, None, "--trainer.devices=3"),
        ({"devices": [0, 2]}, 3, None, "2 devices"),
        ({"devices": "0,1"}, 3, None, "2 devices"),
        ({"devices": 2, "num_nodes": 2}, 6, None, "2 devices on each of 2 nodes"),
        ({"devices": "auto", "num_nodes": 2}, 1, None, "a batch of 1 clip cannot be shared by 2 nodes"),
        ({"devices": "auto"}, 2, 4, "start 2 process"),  # a cluster has started them already
    ],
)
def test_devices_that_cannot_share(trainer: dict[str, Any], batch: int, launched: int | None, message: str) -> None:
    with pytest.raises(ExperimentError, match="--scale_batch") as caught:
        share_batch(trainer, batch, available=lambda _: 4, launched=launched)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "batch", "expected"),
    [
        ({"devices": "auto"}, 1, (4, 4, 2.0)),  # four times the batch: twice the rate
        ({"devices": "auto"}, 8, (4, 8, 1.0)),
        ({"devices": "auto", "num_nodes": 2}, 1, (4, 8, 8**0.5)),
        ({"devices": 3}, 4, (None, 6, 1.5**0.5)),
    ],
)
def test_scaled_batches(trainer: dict[str, Any], batch: int, expected: tuple[int | None, int, float]) -> None:
    share = share_batch(trainer, batch, True, available=lambda _: 4)
    assert (share.devices, share.batch_size) == expected[:2]
    assert share.rate_factor == pytest.approx(expected[2])
    assert share.note is not None
    assert ("departs from the published training" in share.note) == (share.batch_size != batch)


def test_every_learning_rate_is_scaled() -> None:
    for module in (
        dmn_aoa.DMNAOAModule, emvos.EMVOSModule, munet.MUNetModule, pmnet.PMNetModule, pmvos.PMVOSModule,
        stcn.STCNModule, stm.STMModule, proposal_detector.ProposalDetectorModule,
    ):  # fmt: skip
        parameters = get_type_hints(module.__init__)
        rates = {name for name in parameters if name.endswith("rate")}
        if "optimisation" in parameters:
            assert parameters["optimisation"] is Optimisation
            assert not rates, module
        else:
            assert rates == {"learning_rate"}, module
    # One rate; those of other parts are factors of it.
    assert {field.name for field in dataclasses.fields(Optimisation) if field.name.endswith("rate")} == {"learning_rate"}
    network = DMNAOA.small()
    groups = [{"params": list(network.parameters())}]
    plain = dmn_aoa.OPTIMISATION
    doubled = dataclasses.replace(plain, learning_rate=2 * plain.learning_rate)
    before, after = ([group["lr"] for group in one.build(network, groups).param_groups] for one in (plain, doubled))
    assert len(set(before)) == 2
    assert after == pytest.approx([2 * rate for rate in before])


@pytest.mark.parametrize("name", ["dmn_aoa_smoke", "dmn_aoa_detector_davis17"])
def test_the_rate_is_scaled_wherever_it_stands(
    name: str, tmp_path: Path, four_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_cli.VOSCommandLine, "instantiate_classes", lambda self: None)
    options = ["--trainer.accelerator=cpu", "--trainer.devices=auto", "--data.init_args.loading.batch_size=1"]
    one, four = (
        training.build(load_experiment(name), Run(tmp_path), [*options, *more], "fit").config
        for more in ([], ["--scale_batch=true"])
    )
    assert [config["data"]["init_args"]["loading"]["batch_size"] for config in (one, four)] == [1, 4]
    rates = [config["model"]["init_args"] for config in (one, four)]
    before, after = (arguments.get("optimisation", arguments)["learning_rate"] for arguments in rates)
    assert after == pytest.approx(2 * before)


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPUAccelerator, "auto_device_count", staticmethod(lambda: 4))


def built(directory: Path, *overrides: str, stage: Any = "fit") -> Any:
    options = ["--trainer.enable_progress_bar=false", "--trainer.devices=auto", *overrides]
    return training.build(load_experiment("munet_smoke"), Run(directory), options, stage)


def test_the_trainer_gets_the_devices(tmp_path: Path, four_cpus: None, capfd: pytest.CaptureFixture[str]) -> None:
    cli_ = built(tmp_path, "--data.init_args.loading.batch_size=1")
    assert cli_.trainer.world_size == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "A batch of 1 clip: training on 1 of 4 devices" in line]
    assert len(lines) == 1
    assert built(tmp_path, "--data.init_args.loading.batch_size=6", "--trainer.devices=-1").trainer.world_size == 3
    assert (
        built(tmp_path, "--data.init_args.loading.batch_size=8", "--data.init_args.loading.max_device_batch=1").trainer.world_size
        == 4
    )
    # Evaluation does not depend on the batch.
    assert built(tmp_path, "--data.init_args.loading.batch_size=1", stage="test").trainer.world_size == 4
    assert built(tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp").trainer.world_size == 2


def test_a_scaled_batch(tmp_path: Path, four_cpus: None, capfd: pytest.CaptureFixture[str]) -> None:
    plain = built(tmp_path, "--data.init_args.loading.batch_size=1")
    scaled = built(tmp_path, "--data.init_args.loading.batch_size=1", "--scale_batch=true")
    assert scaled.trainer.world_size == 4
    assert scaled.datamodule.loading.batch_size == 4
    assert scaled.model.optimisation.learning_rate == pytest.approx(2 * plain.model.optimisation.learning_rate)
    assert "learning rates times 2 (the square root, the rule for Adam)" in capfd.readouterr().err
    # It goes on with the same batch only.
    with pytest.raises(ValueError, match="was started with 4 clips a step, now 1"):
        plain.datamodule.load_state_dict(scaled.datamodule.state_dict())


def test_the_record_says_that_the_batch_was_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=0"]
    options += ["--data.init_args.loading.batch_size=1", "--scale_batch=true", "--trainer.enable_progress_bar=false"]
    assert cli.main(["train", "emvos_smoke", *options]) == 0
    record = json.loads(Path("runs/emvos_smoke/record.json").read_text())
    assert "scale_batch" in record["starts"][0]["departures"]


@pytest.mark.parametrize("devices", ["4", "[0,1]", "0,1"])
def test_errors_come_before_anything_is_built(
    devices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning_cli.VOSCommandLine, "instantiate_classes", lambda self: pytest.fail("something was built"))
    assert cli.main(["train", "munet_protocol1", f"--trainer.devices={devices}"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: a batch of 1 clip cannot be shared")]
    assert len(lines) == 1
    # In any stage: the first stage has 12 clips, the second 4.
    monkeypatch.setattr(training, "run_command", lambda _: pytest.fail("a stage was started"))
    assert cli.main(["train", "dmn_aoa_davis17", "--trainer.devices=6"]) == 2
    assert "a batch of 4 clips cannot be shared by 6 devices" in capfd.readouterr().err
    assert not Path("runs").exists()


def test_devices_that_do_not_exist_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"trainer: .*devices"):
        built(tmp_path, "--trainer.devices=[0,1]")


def test_the_devices_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, count in ((CPUAccelerator, 3), (CUDAAccelerator, 5)):
        monkeypatch.setattr(kind, "auto_device_count", staticmethod(lambda count=count: count))
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: True))
    assert [available_devices(name) for name in ("cpu", "cuda", "gpu", "auto")] == [3, 5, 5, 5]
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    assert available_devices("auto") == 3


@pytest.mark.parametrize(
    ("lines", "name"),
    [("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n", "Some CPU @ 2 GHz"), ("processor : 0\n", "aarch64")],  # the latter: ARM
)
def test_the_name_of_the_cpu(lines: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", lambda _: lines)
        patched.setattr(platform, "processor", lambda: "")
        patched.setattr(platform, "machine", lambda: "aarch64")
        assert device_name(torch.device("cpu")) == name


@pytest.mark.parametrize(
    ("trainer", "launched", "devices"),
    [
        ({"devices": 1}, None, None),
        ({"devices": 2}, 2, None),
        ({"devices": "auto"}, 2, 2),
        ({"devices": -1, "num_nodes": 2}, 8, 4),
        ({"devices": [0, 1], "num_nodes": 2}, 4, None),
        ({}, 1, 1),
    ],
)
def test_all_processes_that_were_started_take_part(trainer: dict[str, Any], launched: int | None, devices: int | None) -> None:
    assert require_all_processes(trainer, launched) == devices


@pytest.mark.parametrize("trainer", [{"devices": 1}, {"devices": 2, "num_nodes": 2}, {"devices": "auto", "num_nodes": 3}])
def test_processes_that_would_not_take_part_are_refused(trainer: dict[str, Any]) -> None:
    """Two of them would each do the whole work."""
    with pytest.raises(ExperimentError, match=r"^2 processes were started, but .* their product has to be 2$"):
        require_all_processes(trainer, 2)
