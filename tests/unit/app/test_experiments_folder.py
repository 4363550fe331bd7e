"""The experiments come with the library: from a checkout and from a wheel, wherever a command is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vos_lightning.app.cli import main
from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import experiment_files, experiments_folder, load_experiment

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of experiments of its own."""
    monkeypatch.delenv("VOS_EXPERIMENTS", raising=False)
    folder = tmp_path / "elsewhere"
    (folder / "experiments" / "emvos").mkdir(parents=True)
    (folder / "experiments" / "emvos" / "mine.yaml").write_text("description: mine\n")
    (folder / "experiments" / "emvos" / "smoke.yaml").write_text("description: mine\n")
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_in_the_working_directory_does_not_shadow_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert experiments_folder().resolve() == ROOT / "experiments"
    assert "emvos_mine" not in experiment_files()
    assert load_experiment("emvos_smoke").description != "mine"
    monkeypatch.setenv("VOS_EXPERIMENTS", "experiments")
    assert sorted(experiment_files()) == ["emvos_mine", "emvos_smoke"]
    assert load_experiment("emvos_smoke").description == "mine"


def test_a_folder_that_is_named_and_not_there(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(elsewhere / "nowhere"))
    with pytest.raises(ExperimentError, match=r"no experiments folder at .*nowhere: set VOS_EXPERIMENTS"):
        experiments_folder()


def test_commands_run_anywhere(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "emvos_davis17"]) == 0
    assert main(["list", "--plain"]) == 0
    output = capsys.readouterr().out
    assert "emvos_davis17" in output
    assert "emvos_mine" not in output


def test_a_wheel_brings_them(elsewhere: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source, installed = tmp_path / "source", tmp_path / "installed"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("vos_lightning", "data_modules", "experiments"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=unwanted)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(source)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert not (installed / "vos_lightning" / "recipes").is_symlink()
    # The script `vos`, as an installer makes it, in another folder.
    script = (
        "import sys; from importlib.metadata import entry_points; "
        "sys.exit(next(iter(entry_points(group='console_scripts', name='vos'))).load()())"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def vos(*arguments: str) -> str:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    where = "import vos_lightning.app.experiments as e; print(e.experiments_folder()); print(*e.experiment_files(), sep='\\n')"
    found = subprocess.run([sys.executable, "-c", where], env=environment, check=True, capture_output=True, text=True).stdout
    folder, *names = found.split()
    assert Path(folder) == installed / "vos_lightning" / "recipes"
    assert names == list(experiment_files())
    assert "class_path: vos_lightning.modules.emvos.EMVOSModule" in vos("show", "emvos_davis17_only")
    assert vos("--help").startswith("usage: ")
    vos("results", "--output", str(tmp_path / "results"))
    assert "<td>emvos_davis17</td>" in (tmp_path / "results" / "results.html").read_text()
