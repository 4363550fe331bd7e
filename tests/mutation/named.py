"""Mutants that people have written: ``named.yaml``. Each is tested in a process of its own, on a copy of the library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutation import rooms
from tests.mutation.rooms import ROOT

LIST = Path(__file__).with_name("named.yaml")


@dataclass(frozen=True)
class Named:
    """A ``fault``: the text ``was`` of a file of the library ``becomes`` another one. ``tests`` are in ``tests/unit``."""

    fault: str
    file: str
    was: str
    becomes: str
    tests: tuple[str, ...]

    @property
    def key(self) -> str:
        """Everything that its result depends on, but for the tests."""
        return f"{self.file}: {self.was} → {self.becomes}"


def read_named() -> list[Named]:
    return [Named(**{**entry, "tests": tuple(entry["tests"])}) for entry in yaml.safe_load(LIST.read_text())]


def read_outcomes() -> dict[str, str]:
    """What was seen of each, ``died`` or ``survived``, by its key."""
    kept = rooms.WORKSHOPS / "named.json"
    return json.loads(kept.read_text()) if kept.exists() else {}


def run_named(again: bool) -> None:
    """Test those that have not been tested, and the survivors ``again``."""
    folder, outcomes = _copy(), read_outcomes()
    for named in read_named():
        if named.key in outcomes and not (again and outcomes[named.key] == "survived"):
            continue
        path = folder / "vos_lightning" / named.file
        source = path.read_text()
        path.write_text(source.replace(named.was, named.becomes))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
        run = subprocess.run(
            [*command, *(f"tests/unit/{test}" for test in named.tests)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
        )
        path.write_text(source)
        outcomes[named.key] = {0: "survived", 1: "died"}.get(run.returncode, f"pytest ended with {run.returncode}")
        print(f"{outcomes[named.key]}: {named.fault}", flush=True)
        (rooms.WORKSHOPS / "named.json").write_text(json.dumps(outcomes, indent=1))


def _copy() -> Path:
    folder = rooms.WORKSHOPS / "named"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for link in rooms.LINKS:
        (folder / link).symlink_to(os.path.relpath(ROOT / link, folder))
    (folder / "vos_lightning").unlink()
    shutil.copytree(ROOT / "vos_lightning", folder / "vos_lightning", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
