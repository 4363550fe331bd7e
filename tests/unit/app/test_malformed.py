"""Files and options of a wrong type end in one line that names file and key, before anything is computed or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.layouts import write_coco, write_image
from tests.unit.dummies import DummyModule, DummyNetwork, make_frames, make_label_map
from vos_lightning.app import cli
from vos_lightning.io.label_maps import write_label_map

MODEL = {
    "class_path": f"{DummyModule.__module__}.DummyModule",
    "init_args": {"network": {"class_path": f"{DummyNetwork.__module__}.DummyNetwork"}},
}
DATA = {"class_path": "data_modules.datasets.synthetic.SyntheticDataModule", "init_args": {"loading": {"batch_size": 1}}}
TRAINER = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "logger": False}
PUBLISHED = {"paper": "P", "table": 1, "row": "One", "dataset": "DAVIS 2017 val", "metrics": {"J&F": 75.0}}
EXPERIMENT = {"model": MODEL, "data": DATA, "trainer": TRAINER, "wandb": {"mode": "disabled"}, "published": PUBLISHED}
START = {"hardware": "a card", "commit": None, "departures": []}
RECORD = {"experiment": "p_one", "identity": "1", "seed": [0], "train_items": [2], "initial": None, "starts": [START], "steps": 1}
TRAINED = {"checkpoint": "c", "weights": "last", "step": 1, "run": RECORD}
SCORES = {"experiment": "p_one", "protocol": "DAVIS", "summary": {"J&F": 0.7}, "evaluation": {"date": "d", "trained": TRAINED}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an experiment and the scores of its run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOS_EXPERIMENTS", "experiments")
    put("experiments/p/one.yaml", EXPERIMENT)
    put("runs/p_one/record.json", RECORD)
    put("runs/p_one/scores/test.json", SCORES)
    return tmp_path


def put(name: str, content: Any) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))


def with_value(content: Any, place: str, value: Any) -> Any:
    """A copy with another value at a dotted place; ``...`` removes it."""
    copied = json.loads(json.dumps(content))
    *above, last = [int(key) if key.isdigit() else key for key in place.split("/")] if place else [""]
    holder = copied
    for key in above:
        holder = holder[key]
    if not place:
        return value
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return copied


def fail(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that must fail."""
    capsys.readouterr()
    code = cli.main(argv)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2, errors
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("extends", 5, "experiments/p/one.yaml: extends must be a list, not 5"),
        ("extends", "p/two", 'extends must be a list, not "p/two"'),
        ("extends", [None], "extends[0] must be a text, not null"),
        ("stages", None, "stages must be a list, not null"),
        ("stages", [5], "stages[0] must be a text, not 5"),
        ("hand_over", 5, "hand_over must be 'last' or 'best', not 5"),
        ("checkpoint_of", [], "checkpoint_of must be a text, not []"),
        ("description", 5, "description must be a text, not 5"),
        ("set", [], "set must be a mapping, not []"),
        ("model", 5, "model must be a mapping, not 5"),
        ("model/class_path", 5, "model.class_path must be a text, not 5"),
        ("data/init_args", [], "data.init_args must be a mapping, not []"),
        ("data/init_args/loading", 5, "data.init_args.loading must be a mapping, not 5"),
        ("trainer", "x", 'trainer must be a mapping, not "x"'),
        ("published", [], "published must be a mapping, not []"),
        ("published/metrics", None, "published.metrics must be a mapping, not null"),
        ("published/metrics/J&F", "high", 'published.metrics.J&F must be a number, not "high"'),
        ("published/metrics/J&F", float("nan"), "published.metrics.J&F must be a finite number, not NaN"),
        ("published/row", ..., "published.row is missing"),
        ("published/dataset", ..., "published.dataset is missing"),
    ],
)
@pytest.mark.parametrize("command", ["list --all", "show p_one", "results"])
def test_experiments(
    place: str, value: Any, message: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("experiments/p/one.yaml", with_value(EXPERIMENT, place, value))
    assert message in fail(capsys, *command.split())


def test_keys_of_experiments_are_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("experiments/p/one.yaml", {**EXPERIMENT, "pictures": {5: 1}})
    assert "one.yaml: the key pictures.5 is not a text" in fail(capsys, "list", "--all")


def test_a_link_to_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiments/p/loop.yaml").symlink_to("loop.yaml")
    assert "loop.yaml cannot be read" in fail(capsys, "show", "p_loop")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: 2026-13-45"])
def test_bytes_and_dates_that_are_none(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiments/p/one.yaml").write_bytes(content)
    message = fail(capsys, "show", "p_one")
    assert "one.yaml: this is no text file" in message or "one.yaml is not valid YAML" in message


def test_an_option_inside_a_plain_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fail(capsys, "show", "p_one", "--a=5", "--a.b=1")
    assert "the command line sets a.b, and a above it to a plain value" in message


def test_a_file_of_tables_is_no_experiment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("experiments/p/tables.yaml", {"others": {"two": {}}})
    assert "tables.yaml holds many experiments: name one of them" in fail(capsys, "show", "experiments/p/tables.yaml")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("", [], "scores/test.json: the content must be a mapping, not []"),
        ("summary", None, "summary must be a mapping, not null"),
        ("summary/J&F", "x", 'summary.J&F must be a number, not "x"'),
        ("summary", ..., "summary is missing"),
        ("protocol", 5, "protocol must be a text, not 5"),
        ("evaluation", [], "evaluation must be a mapping, not []"),
        ("evaluation/trained", [1], "evaluation.trained must be a mapping, not [1]"),
        ("evaluation/trained/checkpoint", None, "evaluation.trained.checkpoint must be a text, not null"),
        ("evaluation/trained/run", 5, "evaluation.trained.run must be a mapping, not 5"),
        ("evaluation/trained/run/starts", {"a": 1}, "evaluation.trained.run.starts must be a list"),
        ("evaluation/trained/run/starts/0", None, "evaluation.trained.run.starts[0] must be a mapping, not null"),
        ("evaluation/trained/run/train_items", "2", "evaluation.trained.run.train_items must be a list"),
    ],
)
def test_scores(place: str, value: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("runs/p_one/scores/test.json", with_value(SCORES, place, value))
    found = fail(capsys, "results")
    assert message in found
    assert "score the run again, or remove the file" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [([], "the content must be a mapping, not []"), ({"identity": 5}, "identity must be a text, not 5")],
)
def test_records(content: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("runs/p_one/record.json", content)
    assert f"runs/p_one/record.json: {message}" in fail(capsys, "test", "p_one", "--run-dir", "runs/other")


@pytest.mark.parametrize("content", [[], {"stages": [5]}, {"stages": [{"run": 5, "identity": "1", "experiment": "p_one"}]}])
def test_lists_of_stages(content: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("experiments/p/two.yaml", {"stages": ["p_one"]})
    put("runs/p_two/stages.json", content)
    assert "runs/p_two/stages.json: " in fail(capsys, "test", "p_two")


def test_the_record_of_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/p_one/experiment.yaml").write_text("a\n: ov\nx")
    assert "runs/p_one/experiment.yaml is not valid YAML" in fail(capsys, "train", "p_one", "--run-dir", "runs/p_one")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.devices=0", "devices"),
        ("--trainer.devices=[9]", "devices"),
        ("--trainer=5", "the command line: trainer must be a mapping, not 5"),
        ("--data=[]", "the command line: data must be a mapping, not []"),
        ("--trainer.accelerator=x", "accelerator"),
        ("--trainer.accelerator=tpu --trainer.strategy=xla", "trainer: "),
        ("--best_checkpoint.save_top_k=-5", "save_top_k=-5"),
        ("--trainer.val_check_interval=-1", ""),
        ("--trainer.overfit_batches=-1", "overfit_batches"),
        ("--trainer.fast_dev_run=-2", "fast_dev_run"),
    ],
)
def test_options_that_the_trainer_refuses(option: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fail(capsys, "train", "p_one", "--run-dir", "out", *option.split())


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "annotations[0].segmentation: List should have at least 1 item, not 0"),
        ([[1, 2]], "annotations[0].segmentation"),
        (None, "annotations[0].segmentation must be a list or a mapping, not null"),
        ({"size": [48, 80], "counts": ""}, "annotations[0].segmentation.counts"),
        ({"size": [48, 80], "counts": "ooo"}, "annotations[0].segmentation.counts"),
        ({"size": [48, 80], "counts": [-1]}, "annotations[0].segmentation.counts[0]"),
    ],
)
def test_instances(segmentation: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco("coco", 1)
    path = Path("coco/instances.json")
    put(str(path), with_value(json.loads(path.read_text()), "annotations/0/segmentation", segmentation))
    arguments = {"annotation_file": str(path), "image_root": "coco/images", "loading": {"batch_size": 1, "num_workers": 0}}
    data = {"class_path": "data_modules.datasets.coco.COCODataModule", "init_args": arguments}
    put("experiments/p/one.yaml", {**EXPERIMENT, "data": data})
    assert f"coco/instances.json: {message}" in fail(capsys, "train", "p_one", "--run-dir", "out")


OBJECTS = {"objects": {"1": {"frames": ["00000"]}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the content must be a mapping, not []"),
        ({"videos": []}, "videos must be a mapping, not []"),
        ({"videos": {"a": {"objects": None}}}, "videos.a.objects must be a mapping, not null"),
        ({"videos": {"a": {"objects": {"x": {"frames": []}}}}}, "videos.a.objects.x"),
        ({"videos": {"a": {"objects": {"1": {"frames": 5}}}}}, "videos.a.objects.1.frames must be a list, not 5"),
    ],
)
def test_descriptions_of_objects(content: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("JPEGImages", "Annotations"):
        Path("data/train", place, "a").mkdir(parents=True)
    put("data/train/meta.json", content)
    assert cli.main(["doctor", "data"]) == 1  # it says so and goes on
    assert message in " ".join(capsys.readouterr().out.split())


def no_hyper_parameters(content: dict[str, Any]) -> None:
    content["hyper_parameters"] = None


def no_tensors(content: dict[str, Any]) -> None:
    content["state_dict"] = [5]


def no_step(content: dict[str, Any]) -> None:
    content["global_step"] = "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_hyper_parameters, "hyper_parameters must be a mapping, not null"),
        (no_tensors, "state_dict must be a mapping, not [5]"),
        (no_step, 'global_step must be a whole number, not "x"'),
    ],
)
def test_checkpoints(
    change: Callable[[dict[str, Any]], None], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = {"state_dict": {}, "hyper_parameters": {"_class_path": MODEL["class_path"]}, "global_step": 1}
    change(content)
    torch.save(content, "broken.ckpt")
    write_image(folder / "frames" / "0.png", make_frames(1)[0])
    write_label_map(folder / "mask.png", make_label_map())
    own = ("frames", "--mask", "mask.png", "--output", "out")
    assert f"broken.ckpt: {message}" in fail(capsys, "segment", "--checkpoint", "broken.ckpt", *own)
    assert not list(Path("out").rglob("*.png"))


@pytest.mark.parametrize("output", ["runs/p_one/record.json", "n" * 300])
def test_outputs_that_are_files_or_too_long(output: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output in fail(capsys, "results", "--output", output)


# The net --------------------------------------------------------------------------------------------------------------


class MisconfigurationException(Exception):  # noqa: N818  # as Lightning calls its own
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("PytorchStreamReader failed"), 2, "PytorchStreamReader failed (VOS_TRACEBACK=1 shows where)"),
        (MemoryError(), 2, "MemoryError (VOS_TRACEBACK=1 shows where)"),
        (MisconfigurationException("no such device"), 2, "no such device (VOS_TRACEBACK=1 shows where)"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "a.txt: Permission denied"),
        (KeyError("videos"), 70, "this is a fault of vos_lightning (KeyError: 'videos'): VOS_TRACEBACK=1 shows where"),
        (NotImplementedError("later"), 70, "this is a fault of vos_lightning (NotImplementedError: later)"),
        (TypeError("x" * 5000), 70, "this is a fault of vos_lightning (TypeError: xxx"),
    ],
)
def test_what_no_command_expects(
    error: Exception, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall(argv: object) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "list", (fall, ""))
    assert cli.main(["list"]) == code
    written = capsys.readouterr().err
    assert written.startswith(f"error: {message}")
    assert written.count("\n") == 1
    assert len(written) < 700
    monkeypatch.setenv("VOS_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["list"])


@pytest.mark.parametrize("value", [5, [1], "x"])
def test_arguments_of_a_class_are_a_mapping(value: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = {"class_path": MODEL["init_args"]["network"]["class_path"], "init_args": value}
    put("experiments/p/one.yaml", {**EXPERIMENT, "model": {**MODEL, "init_args": {"network": network}}})
    message = "one.yaml: model.init_args.network.init_args must be a mapping, not "
    assert message in fail(capsys, "train", "p_one")
    put("experiments/p/one.yaml", EXPERIMENT)
    option = f"--model.init_args.network.init_args={json.dumps(value)}"
    assert "the command line: model.init_args.network.init_args must be a mapping" in fail(capsys, "train", "p_one", option)


@pytest.mark.parametrize(
    "name", ["best_checkpoint", "last_checkpoint", "predictions", "pictures", "panels", "throughput", "finite", "wandb"]
)
def test_options_of_callbacks_are_a_mapping(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("experiments/p/one.yaml", {**EXPERIMENT, name: 0})
    assert f"one.yaml: {name} must be a mapping, not 0" in fail(capsys, "train", "p_one")


def test_benchmark_overwrites_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = Path("runs/p_one/scores/test.json")
    before = scores.read_bytes()
    assert "test.json: the file exists already" in fail(capsys, "benchmark", "p_one", "--json", str(scores))
    assert scores.read_bytes() == before
