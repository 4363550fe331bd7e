"""A checkpoint from a stranger imports nothing of its choice and opens no file, whatever command reads it."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.recipes.experiments import SMOKE
from vos_lightning.app import training
from vos_lightning.app.cli import main
from vos_lightning.app.experiments import experiment_files, experiments_folder, load_experiment
from vos_lightning.app.runs import Run
from vos_lightning.checkpoints.descriptions import checked_class
from vos_lightning.checkpoints.loading import describe_model, load_engine, load_module
from vos_lightning.proposals.detector import ProposalDetector

Change = Callable[[dict[str, Any]], Any]


def backbone(description: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the class that is nested most deeply."""
    found: dict[str, Any] = description["network"]["init_args"]["backbone"]
    return found


CHANGES: dict[str, Change] = {
    "outer class": lambda d: d.update(_class_path="evil.Evil"),
    "nested class": lambda d: d["network"].update(class_path="evil.Evil"),
    "class of a class": lambda d: backbone(d).update(class_path="evil.Evil"),
    "class among other arguments": lambda d: d.update(optimisation={"class_path": "evil.Evil"}),
    "class that nothing takes": lambda d: d.update(unheard={"of": [{"class_path": "evil.Evil"}]}),
    "class in a package": lambda d: d["network"].update(class_path="package.evil.Evil"),
    "class as a text": lambda d: d.update(network="evil.Evil"),
    "class as YAML": lambda d: d.update(network="{class_path: evil.Evil}"),
    "word that is a file": lambda d: d.update(network="description"),
    "word for a group": lambda d: d.update(optimisation="description"),
    "nested word that is a file": lambda d: d["network"]["init_args"].update(backbone="description"),
    "path": lambda d: d.update(network="./description"),
    "further keys": lambda d: d["network"].update(dict_kwargs={"backbone": {"class_path": "evil.Evil"}}),
    "no class of its own module": lambda d: d["network"].update(class_path="vos_lightning.app.runs.subprocess.Popen"),
    "imported by the library": lambda d: d["network"].update(class_path="vos_lightning.app.runs.Path"),
    "imported by Python": lambda d: d["network"].update(class_path="subprocess.Popen"),
    "imported by PyTorch": lambda d: backbone(d).update(class_path="torch.nn.modules.linear.Identity"),
    "no class": lambda d: d["network"].update(class_path=3),
    "nothing at all": lambda d: d["network"].update(class_path=""),
    "strange name": lambda d: d.update({"a.b": 1}),
    "number for a name": lambda d: d.update({3: 1}),
    "no arguments": lambda d: d["network"].update(init_args=[1]),
    "instantiator": lambda d: d.update(_instantiator="evil.Evil"),
    "deep": lambda d: d.update(unheard=nested(150)),
    "repeated": lambda d: d.update(unheard=doubled(40)),
}


def nested(levels: int) -> list[Any]:
    return [nested(levels - 1)] if levels else []


def doubled(times: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small system, whose network and backbone are described."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
        patch.chdir(folder)
        built = training.build(load_experiment("stm_smoke"), Run(folder / "unused"), [], "test")
        built.trainer.strategy.connect(built.model)
        built.trainer.save_checkpoint(folder / "sound.ckpt", weights_only=True)
    return folder / "sound.ckpt"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that writes a file when it is imported, and a description that names it."""
    source = f"open({str(tmp_path / 'imported')!r}, 'w').close()\nclass Evil:\n    pass\n"
    for name in ("evil.py", "package/__init__.py", "package/evil.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    for name in ("description", "description.yaml"):
        (tmp_path / name).write_text("class_path: evil.Evil\n")
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` does with the working directory
    for name in ("evil", "package", "package.evil"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Image.new("RGB", (32, 32)).save(tmp_path / "v.png")
    return tmp_path


def hostile(sound: Path, place: Path, change: Change) -> Path:
    content = torch.load(sound, weights_only=True)
    change(content["hyper_parameters"])
    torch.save(content, place / "c.ckpt")
    return place / "c.ckpt"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("load", [load_engine, load_module])
def test_nothing_is_imported(change: str, load: Callable[..., Any], sound: Path, place: Path) -> None:
    path = hostile(sound, place, CHANGES[change])
    with pytest.raises(ValueError, match=r"c\.ckpt: (the (checkpoint|description) |hyper_parameters)") as caught:
        load(path, device="cpu")
    assert "\n" not in str(caught.value)
    assert not (place / "imported").exists()
    assert not {"evil", "package"} & set(sys.modules)


COMMANDS = {
    "segment": ["frames", "--checkpoint", "c.ckpt", "--mask", "v.png", "--output", "o", "--device", "cpu"],
    "test": ["finetune_own", "--checkpoint", "c.ckpt"],
    "validate": ["finetune_own", "--checkpoint", "c.ckpt"],
    "train": ["finetune_own", "--checkpoint", "c.ckpt", "--run-dir", "run"],
    "visualize": ["stm_smoke", "--checkpoint", "c.ckpt", "--video", "v", "--frame", "1", "--output", "o"],
    "import-checkpoint": ["c.ckpt", "--paper", "stm", "--output", "o.ckpt"],
    "precompute-proposals": ["--weights", "c.ckpt", "--images", "frames", "--output", "o", "--device", "cpu"],
}


@pytest.mark.parametrize("change", ["outer class", "nested class", "class of a class", "word that is a file", "instantiator"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_it(
    command: str, change: str, sound: Path, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile(sound, place, CHANGES[change])
    (place / "frames").mkdir()
    Image.new("RGB", (32, 32)).save(place / "frames" / "0.png")
    Image.new("L", (32, 32), 1).save(place / "v.png")
    monkeypatch.setattr("vos_lightning.proposals.detector._build", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setenv("VOS_DATA", str(place / "data"))
    assert main([command, *COMMANDS[command]]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not (place / "imported").exists()
    assert not {"evil", "package"} & set(sys.modules)
    assert sorted(path.name for path in place.iterdir()) == [
        *("c.ckpt", "description", "description.yaml", "evil.py", "frames", "package", "v.png"),
    ]


def test_files_that_it_names_are_not_opened(sound: Path, place: Path) -> None:
    """Weights that a training started from are somewhere else, and the parameters are in the checkpoint."""
    path = hostile(sound, place, lambda d: backbone(d)["init_args"].update(weights=str(place / "description")))
    described = describe_model(path)
    assert described["init_args"]["network"]["init_args"]["backbone"]["init_args"]["weights"] is None
    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    with pytest.raises(ValueError, match=r"c\.ckpt: the checkpoint does not fit"):
        load_module(path, device="cpu")
    assert any(name.endswith("c.ckpt") for name in opened)
    assert not [name for name in opened if "description" in name]


def test_classes_of_the_caller(place: Path, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of one's own is used if the module is imported already; it is never imported for a checkpoint."""
    (place / "mine.py").write_text("from vos_lightning.networks.stm import STM\nclass Mine(STM):\n    pass\n")
    path = hostile(sound, place, lambda d: d["network"].update(class_path="mine.Mine"))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(ValueError, match=r"the checkpoint needs mine\.Mine; import mine first if you trust it"):
        load_engine(path, device="cpu")
    assert "mine" not in sys.modules
    import mine  # type: ignore[import-not-found]

    assert type(load_engine(path, device="cpu").network) is mine.Mine
    monkeypatch.delitem(sys.modules, "mine")


@pytest.mark.parametrize("name", SMOKE)
def test_every_system_of_this_library_passes(name: str) -> None:
    model = load_experiment(name).config["model"]
    assert checked_class(Path("c.ckpt"), model)["init_args"].keys() == model["init_args"].keys()


def test_every_experiment_describes_what_may_stand_in_a_checkpoint() -> None:
    models = [load_experiment(name).config.get("model") or {} for name in experiment_files()]
    checked = [checked_class(Path("c.ckpt"), model) for model in models if "class_path" in model]
    assert len(checked) > 200
    assert ProposalDetector.__name__ in str(checked)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04", b"\x80\x02}q\x00(", b"(" * 100_000, b"]" * 100_000])
def test_broken_pickles_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bare.ckpt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    for name in ("bare.ckpt", "zip.ckpt"):
        with pytest.raises(ValueError, match=rf"{name}: this is no checkpoint"):
            load_module(tmp_path / name, device="cpu")
