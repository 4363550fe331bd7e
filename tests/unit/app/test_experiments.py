"""Experiment files that go round in circles, lead elsewhere or explode are one line, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from vos_lightning.app.cli import main
from vos_lightning.app.composition import ExperimentError, with_overrides
from vos_lightning.app.experiments import load_experiment
from vos_lightning.app.runs import run_command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of experiments; no process may be started."""
    (tmp_path / "experiments" / "p").mkdir(parents=True)
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"{run_command.__module__}.subprocess.Popen", None)
    return tmp_path / "experiments"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / "p" / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize("command", ["train", "test", "validate", "predict", "show"])
@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "stages: [p_a]"}, "p_a -> p_a"),
        ({"a": "stages: [p_b]", "b": "stages: [p_c]", "c": "stages: [p_a]"}, "p_a -> p_b -> p_c -> p_a"),
        ({"a": "checkpoint_of: p_b", "b": "checkpoint_of: p_a"}, "p_a -> p_b -> p_a"),
        ({"a": "stages: [p_b]", "b": "checkpoint_of: p_a"}, "p_a -> p_b -> p_a"),
        ({"a": "stages: [p_b]", "b": "stages: [p_b]"}, "p_b -> p_b"),
        ({"a": "checkpoint_of: p_x", "tables": "others: {x: {stages: [p_a]}}"}, "p_a -> p_x -> p_a"),
    ],
)
def test_cycles_are_named_before_a_process_starts(
    folder: Path, command: str, files: dict[str, str], chain: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write(folder, **files)
    assert main([command, "p_a"]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert f"needs itself: {chain} (stages, checkpoint_of)" in error[0]
    assert not (folder.parent / "runs").exists()


def test_stages_are_no_files(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The process of the stage would be told the name of the file, which is that of the experiment itself, and start another."""
    write(folder, a="stages: [p_a.yaml]")
    (folder.parent / "p_a.yaml").write_text("model: {class_path: x}")
    assert main(["train", "p_a"]) == 2
    assert "a.yaml: stages are names of experiments" in capfd.readouterr().err
    assert not (folder.parent / "runs").exists()


def test_a_shared_stage_is_no_cycle(folder: Path) -> None:
    write(folder, a="stages: [p_b, p_b, p_c]", b="model: {class_path: x}", c="checkpoint_of: p_b")
    assert load_experiment("p_a").stages == ("p_b", "p_b", "p_c")


def test_circular_extends(folder: Path) -> None:
    write(folder, a="extends: [p/b]", b="extends: [p/c]", c="extends: [p/a]")
    with pytest.raises(ExperimentError, match="extends itself through a -> b -> c -> a"):
        load_experiment("p_a")


def test_a_file_is_composed_once(folder: Path) -> None:
    """Otherwise sixty files of two lines would be composed 2 ** 60 times."""
    write(folder, **{f"f{i}": f"extends: [p/f{i + 1}, p/f{i + 1}]\nk{i}: {i}" for i in range(60)}, f60="k60: 60")
    assert load_experiment("p_f0").config == {f"k{i}": i for i in range(61)}


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "p/../../secret", "", "p//b", "p\\b", "x" * 300])
def test_extends_stays_in_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret.yaml").write_text("a: 1")
    write(folder, a=f"extends: ['{name}']")
    with pytest.raises(ExperimentError, match="extends names files inside of"):
        load_experiment("p_a")


@pytest.mark.parametrize("text", ["extends: p/b", "stages: p_b", "stages: {p_b: 1}", "stages: [1]"])
def test_lists_of_names(folder: Path, text: str) -> None:
    write(folder, a=text)
    with pytest.raises(ExperimentError, match=r"must be a (list|text)"):
        load_experiment("p_a")


def test_bombs_are_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(folder, a="a: &a [*a]", b="[" * 10_000)
    for name in ("p_a", "p_b"):
        assert main(["show", name]) == 2
        assert capfd.readouterr().err.count("\n") == 1
    for value in ("&a [*a]", "[" * 10_000, "["):
        with pytest.raises(ExperimentError, match="--key="):
            with_overrides({}, [f"--key={value}"])
