"""The documentation leads somewhere: links, experiments, the drawing, and the checks that run before a commit."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from vos_lightning.app.cli import COMMANDS
from vos_lightning.app.experiments import experiment_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_line_counts(svg: str) -> str:
    return re.sub(r'(<text class="lines"[^>]*>)[^<]*', r"\1", svg)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.findall(r"@@|\bTODO\b|\bXXX\b|\?\?\?", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile"], ids=named)
def test_experiments_exist(page: Path) -> None:
    """After ``EXP=``, and after the commands that take an experiment."""
    text = page.read_text(encoding="utf-8")
    found = set(re.findall(r"EXP=([a-z]\w+)", text)) | {
        name for names in re.findall(r'EXP="([a-z][\w ]+)"', text) for name in names.split()
    }
    for command in ("train", "test", "validate", "predict", "visualize", "benchmark", "show"):
        found |= set(re.findall(rf"(?:\bvos|-m vos_lightning|\$\(RUN\)) {command} ([a-z]\w+)", text))
    invented = {"toy_smoke"}  # that of the example in CONTRIBUTING.md
    assert not found - invented - experiment_files().keys()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_targets_exist(page: Path) -> None:
    code = re.findall(r"```.*?```|`[^`\n]+(?:\n[^`\n]+)?`", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join(code)
    commands = set(re.findall(r"\bvos ([a-z][a-z-]+)", text)) | set(re.findall(r"-m vos_lightning ([a-z][a-z-]+)", text))
    assert not commands - COMMANDS.keys()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert not set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) - targets


def test_drawing_is_that_of_the_contracts() -> None:
    module = drawing()
    committed = module.DRAWING.read_text(encoding="utf-8")
    assert without_line_counts(committed) == without_line_counts(module.draw()), "run `python docs/draw_architecture.py`"


def test_drawing_shows_every_layer() -> None:
    module = drawing()
    svg = module.DRAWING.read_text(encoding="utf-8")
    for package in ("vos_lightning", "vos_lightning.app", "vos_lightning.networks"):
        names = [name for layer in module.layers_of(package) for name in layer]
        assert names
        for name in names:
            assert re.search(rf">{name}(/|\.py)?<", svg), name


def test_a_room_without_a_sentence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = drawing()
    monkeypatch.delitem(module.ROOMS, "io")
    with pytest.raises(ValueError, match=r"differ in io$"):
        module.draw()


def test_design_names_every_room() -> None:
    module = drawing()
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|", text, flags=re.MULTILINE)
    layers = module.layers_of("vos_lightning")
    assert sorted(rows) == sorted((str(k), name) for k, layer in enumerate(layers, start=1) for name in layer)


def test_hooks_run_what_lint_runs() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert recipe is not None
    commands = {line.replace("@$(BIN)/", ".venv/bin/").strip() for line in recipe[1].splitlines() if "$(BIN)" in line}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert {hook["entry"] for hook in hooks if hook["language"] == "system"} == commands
    strings = re.compile(next(hook["entry"] for hook in hooks if hook["language"] == "pygrep"))
    assert all(strings.search(line) for line in ("tensor.cuda()", 'device = "cuda:0"', "device='cuda'"))
    assert not strings.search("torch.cuda.is_available()")


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert latest is not None
    assert citation["version"] == version == latest[1]


def test_clips_of_every_paper_are_drawn_and_linked() -> None:
    from docs.draw_clips import recipes

    papers = {experiment.path.parent.name for users in recipes().values() for experiment, _ in users[:1]}
    text = (ROOT / "docs" / "clips.md").read_text(encoding="utf-8")
    assert papers == {path.stem for path in (ROOT / "docs" / "clips").iterdir()}
    assert papers == set(re.findall(r"\(clips/(\w+)\.jpg\) \|", text))
