"""Papers stand on baselines, and not on each other; no list of papers has to be kept."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vos_lightning import networks

PACKAGE = "vos_lightning.networks"
FILES = {path.stem: path for path in Path(networks.__path__[0]).glob("*.py") if path.stem != "__init__"}
BASELINES = {"stm", "stcn"}


def imported(source: str) -> set[str]:
    """Names of the networks that a file of the package imports, wherever in the file."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(PACKAGE.split(".")[: 3 - node.level]) if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            found += [f"{module}.{alias.name}" for alias in node.names]
    return {name.removeprefix(f"{PACKAGE}.").partition(".")[0] for name in found if name.startswith(f"{PACKAGE}.")}


def forbidden(name: str, source: str) -> set[str]:
    """Networks that a file must not import: a baseline imports none, and a paper imports baselines only."""
    return imported(source) - (set() if name in BASELINES else BASELINES)


def test_the_baselines_are_there() -> None:
    assert set(FILES) > BASELINES


@pytest.mark.parametrize("name", sorted(FILES))
def test_papers_stand_on_baselines_only(name: str) -> None:
    assert not forbidden(name, FILES[name].read_text(encoding="utf-8"))


def test_imports_of_baselines_are_seen() -> None:
    assert imported(FILES["munet"].read_text(encoding="utf-8")) == {"stm"}
    assert imported(FILES["pmnet"].read_text(encoding="utf-8")) == {"stcn"}


@pytest.mark.parametrize(
    "line",
    [
        "from vos_lightning.networks.munet import MUNet",
        "from vos_lightning.networks import munet",
        "import vos_lightning.networks.munet",
        "import vos_lightning.networks.munet as other",
        "from .munet import MUNet",
        "from . import munet",
        "from ..networks.munet import MUNet",
        "def build():\n    from vos_lightning.networks.munet import MUNet",
    ],
)
def test_a_new_paper_that_imports_a_paper_is_refused(line: str) -> None:
    assert forbidden("toy", f"from vos_lightning.networks.stm import STM\n{line}\n") == {"munet"}


def test_a_baseline_that_imports_a_network_is_refused() -> None:
    assert forbidden("stcn", "from vos_lightning.networks.stm import STM\n") == {"stm"}
    assert not forbidden("toy", "from vos_lightning.networks.stm import STM\n")
