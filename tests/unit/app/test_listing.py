"""The command ``list`` shows every experiment once, in lines that fit the terminal, and each paper on about one screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from vos_lightning.app.cli import main
from vos_lightning.app.experiments import experiment_files, load_experiment
from vos_lightning.app.results.listing import SHORT, overview_lines, paper_lines

MOST_LINES = {100: 68, 80: 98}
"""Width of the terminal -> most lines of a paper."""
NAMES = list(experiment_files())
PAPERS: dict[str, list[str]] = {}
for _name, _path in experiment_files().items():
    PAPERS.setdefault(_path.parent.name, []).append(_name)


def lines_of(paper: str, width: int | None) -> list[str]:
    return paper_lines(paper, [load_experiment(name) for name in PAPERS[paper]], width)


def names_in(lines: list[str]) -> list[str]:
    """Names of experiments that stand in columns of their own; descriptions may mention others."""
    return [
        cell.split(" ")[0]
        for line in lines
        for cell in re.split(r"\s{2,}", line)
        if re.fullmatch(rf"[a-z0-9_]+( ({'|'.join(SHORT.values())}) \d+\.\d)?", cell) and cell.split(" ")[0] in NAMES
    ]


@pytest.mark.parametrize("width", [None, 100, 80])
def test_every_experiment_appears_exactly_once(width: int | None) -> None:
    lines = [line for paper in PAPERS for line in lines_of(paper, width)]
    assert sorted(names_in(lines)) == NAMES


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("width", [100, 80])
def test_a_paper_fits_the_terminal(paper: str, width: int) -> None:
    lines = lines_of(paper, width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= MOST_LINES[width]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_published_number_is_there(paper: str) -> None:
    page = "\n".join(lines_of(paper, 100))
    for name in PAPERS[paper]:
        published = load_experiment(name).published
        if published:
            number = published["metrics"].get("J&F", published["metrics"].get("G"))
            assert f"{name} {SHORT[published['dataset']]} {number:.1f}" in page


def test_rows_stages_and_others() -> None:
    lines = lines_of("emvos", 100)
    assert lines[0] == "emvos: EMVOS, arXiv 2209.03139 (J&F; YouTube-VOS: G; no score: a stage)"
    assert lines[1] == "D16 DAVIS 2016 val, D17 DAVIS 2017 val, T17 DAVIS 2017 test-dev, Y18 YouTube-VOS 2018 val"
    assert "1  emvos_davis16 D16 88.4       emvos_released_davis16 D16 88.4       EMVOS (+S): DAVIS 2016 val" in lines
    (smoke,) = [line for line in lines if "emvos_smoke" in line]
    assert lines.index(smoke) > lines.index("Stages, presets and others")
    assert smoke.endswith("  One step of everything in a second; the tests run it")
    # Two experiments use emvos_coco, so it is no part of one row.
    assert any(line.startswith("  emvos_coco  ") for line in lines)


def test_the_readme_shows_what_is_printed() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    block = text[text.index("emvos: EMVOS,") :].split("```")[0].splitlines()
    assert len(block) > 8
    assert set(block) <= {*lines_of("emvos", 100), "..."}


def test_rows_that_other_papers_print_name_them() -> None:
    lines = lines_of("stm", 100)
    assert lines[0].startswith("stm: STM (ICCV 2019)")
    assert any(line.startswith("EMVOS 1    stm_davis16 D16 86.5  STM (+S)") for line in lines)


def test_descriptions_are_cut_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    long, words = "a_name_that_is_longer_than_the_terminal_is_wide", "what it is, in many words"
    (folder / f"{long}.yaml").write_text(yaml.safe_dump({"model": {"class_path": "a.B"}, "description": words}))
    (folder / "b.yaml").write_text(yaml.safe_dump({"model": {"class_path": "a.B"}, "description": words}))
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path))
    experiments = [load_experiment(f"p_{long}"), load_experiment("p_b")]
    assert paper_lines("p", experiments[1:], 20) == ["p: no published rows", "  p_b  what it is,…"]
    assert paper_lines("p", experiments, 20)[1] == f"  p_{long}…"
    assert paper_lines("p", experiments[1:], None)[1] == f"  p_b  {words}"


def test_the_overview_has_a_line_for_each_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["paper", "title", "experiments", "published", "rows", "tables"]
    assert [line.split()[0] for line in lines[1:-2]] == list(PAPERS)
    assert next(line for line in lines if line.startswith("pmnet")).split()[-3:] == ["106", "69", "9"]
    assert lines[-1] == "vos list stm: its experiments; --all: those of every paper; --plain: names only"
    loaded = {paper: [load_experiment(name) for name in names] for paper, names in PAPERS.items()}
    assert max(map(len, overview_lines(loaded, 80))) <= 80


def test_papers_all_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> list[str]:
        assert main(["list", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    assert printed("emvos") == lines_of("emvos", None)  # no terminal, so nothing is cut
    assert printed("stm", "emvos") == [*lines_of("stm", None), "", *lines_of("emvos", None)]
    assert sorted(names_in(printed("--all"))) == NAMES
    assert printed("--plain") == NAMES
    assert printed("--plain", "emvos") == PAPERS["emvos"]


def test_a_terminal_cuts_at_its_width(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "emvos"]) == 0
    assert capsys.readouterr().out.splitlines() == lines_of("emvos", 80)


@pytest.mark.parametrize(("asked", "meant"), [("emvso", "emvos"), ("EMVOS", "emvos"), ("emvos_davis17", "emvos")])
def test_an_unknown_paper_is_one_line(asked: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", asked]) == 2
    assert capsys.readouterr().err == f"error: there is no paper {asked!r}: did you mean {meant}? `vos list` shows all\n"
