"""``vos segment`` in a process in which PyTorch, and all that a light installation lacks, cannot be imported."""

from __future__ import annotations

import csv
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.light.test_engine import box, scene
from vos_lightning.app.cli import main
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.io.videos import VideoWriter

ROOT = Path(__file__).parents[3]
LIGHT = ROOT / "light.txt"
SIZE = (64, 96)
START = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
from vos_lightning.app.cli import main
sys.exit(main({arguments!r}))
"""


def refused() -> list[str]:
    """Modules of the dependencies that are not in ``light.txt``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def name(line: str) -> str:
        return line.partition(";")[0].split("[")[0].split(">")[0].split("=")[0].strip().lower()

    light = {name(line) for line in LIGHT.read_text().splitlines() if line and not line.startswith("#")}
    known = {name(line) for line in project["dependencies"]}
    return [*(package.replace("-", "_") for package in known - light), "pytorch_lightning", "onnx", "onnxscript"]


def test_the_light_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in LIGHT.read_text().splitlines() if not line.startswith("#")]
    assert set(lines) <= {*project["dependencies"], *project["optional-dependencies"]["onnx"]}
    assert lines == sorted(lines)
    assert {"torch", "torchvision", "lightning", "timm", "safetensors", "onnxscript"} <= set(refused())


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = START.format(refused=refused(), arguments=[str(argument) for argument in arguments])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", 12.5) as writer:
        for frame in scene(8, *SIZE):
            writer.write(frame)
    (tmp_path / "clip_masks").mkdir()
    write_label_map(tmp_path / "clip_masks/00000.png", box(1, SIZE, 0.2, 0.4))
    write_label_map(tmp_path / "clip_masks/00003.png", box(2, SIZE, 0.5, 0.1))
    return tmp_path / "clip.mp4"


def test_the_files_are_those_of_pytorch(clip: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--short-side", "72", "--formats", "overlay", "objects", "coco", "cutouts", "green"]
    light = run("segment", clip, "--output", tmp_path / "light", *options)
    assert light.returncode == 0, light.stderr
    assert "weights: lite (STCN, computed by ONNX Runtime)" in light.stdout
    assert main(["segment", str(clip), "--output", str(tmp_path / "full"), "--device", "cpu", *options]) == 0
    assert "weights: lite (STCN, a small network" in capsys.readouterr().out
    names = [{p.relative_to(tmp_path / one) for p in (tmp_path / one).rglob("*") if p.is_file()} for one in ("light", "full")]
    assert names[0] == names[1]
    seen, equal = set(), True
    for name in sorted(name for name in names[0] if name.parts[0] == "masks"):
        one, other = (read_label_map(tmp_path / folder / name) for folder in ("light", "full"))
        assert (one == other).float().mean() > 0.999, "only where two labels are equally probable"
        equal = equal and torch.equal(one, other)
        seen |= set(np.unique(one))
    assert seen == {0, 1, 2}
    for name in names[0] if equal else ():
        if name.suffix == ".png" or name.parts[0] == "coco":
            assert (tmp_path / "light" / name).read_bytes() == (tmp_path / "full" / name).read_bytes(), name
    tables = [list(csv.DictReader((tmp_path / one / "index/clip.csv").read_text().splitlines())) for one in ("light", "full")]
    assert len(tables[0]) == len(tables[1]) == 8 + 5
    for row, expected in zip(*tables, strict=True):
        for key, tolerance in (("confidence", 1e-3), ("area", 5)):
            assert float(row.pop(key)) == pytest.approx(float(expected.pop(key)), abs=tolerance)
        assert row == expected


def test_what_needs_pytorch_says_so(clip: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--backend", "torch"), "PyTorch is not installed"),
        (("--direction", "both"), "--direction both needs PyTorch"),
        (("--checkpoint", "run.ckpt"), "run.ckpt: there is no such folder"),
    ):
        done = run("segment", clip, "--output", tmp_path / "out", *options)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
    done = run("train", "stcn_lite")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "vos train needs the package" in done.stderr
    assert run("list").returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "--device cuda needs PyTorch"),
        (("--precision", "bf16-mixed"), "--precision bf16-mixed needs PyTorch"),
        (("--detector", "COCO_V1"), "--detector needs PyTorch"),
        (("--checkpoint", "lite.safetensors"), "lite.safetensors: there is no such folder"),
    ],
)
def test_options_that_onnx_runtime_lacks(options: tuple[str, ...], message: str, clip: Path, tmp_path: Path, capsys: Any) -> None:
    code = main(["segment", str(clip), "--output", str(tmp_path / "out"), "--backend", "onnxruntime", *options])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_with_pytorch_a_video_is_followed_in_both_directions_too(clip: Path, tmp_path: Path) -> None:
    for backend in ("torch", "onnxruntime"):
        arguments = ["--backend", backend, "--direction", "both", "--short-side", "0", "--formats", "masks"]
        assert main(["segment", str(clip), "--output", str(tmp_path / backend), *arguments]) == 0
    for path in (tmp_path / "torch/masks").rglob("*.png"):
        other = tmp_path / "onnxruntime" / path.relative_to(tmp_path / "torch")
        assert (read_label_map(path) == read_label_map(other)).float().mean() > 0.999  # levels of 1/255 may round otherwise
