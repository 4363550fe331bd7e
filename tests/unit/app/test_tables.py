"""Rows of a paper's tables are experiments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment

PAPER: dict[str, Any] = {
    "paper": "P",
    "hardware": "a card",
    "columns": {
        "DAVIS 2017 val": {},
        "DAVIS 2017 test-dev": {
            "suffix": "_testdev",
            "extends": ["p/_testdev"],
            "set": {"data.x": 7},
            "description": "test-dev",
        },
    },
    "tables": {
        6: {
            "extends": ["p/_main"],
            "checkpoint_of": "p_whole",
            "set": {"data.a": 1, "data.b": 1},
            "rows": {
                "beta": {
                    "row": "beta 10",
                    "extends": ["p/_row"],
                    "set": {"data.b": 2},
                    "published": {"DAVIS 2017 val": {"J&F": 85.9, "fps": 14.1}, "DAVIS 2017 test-dev": {"J&F": 78.2}},
                },
                "plain": {"row": "plain", "published": {"DAVIS 2017 val": {"J&F": 80, "name": "other_name"}}},
            },
        }
    },
    "others": {"static": {"extends": ["p/_main"], "set": {"data.deep.b": 5}, "description": "A stage"}},
}
FRAGMENTS = {
    "_main": {"data": {"x": 1, "y": 1, "z": 1, "from": "main"}},
    "_row": {"data": {"y": 2, "z": 2, "from": "row"}},
    "_testdev": {"data": {"x": 3, "z": 3, "from": "testdev"}},
    "whole": {"model": {"class_path": "a.B"}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path))
    (tmp_path / "p").mkdir()
    for name, content in FRAGMENTS.items():
        (tmp_path / "p" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "p"


def write(folder: Path, content: Any) -> None:
    (folder / "tables.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def changed(place: str, value: Any) -> dict[str, Any]:
    """The paper with another value at a place, whose keys are separated by slashes."""
    paper = copy.deepcopy(PAPER)
    *parents, last = place.split("/")
    target: Any = paper
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    target[last] = value
    return paper


@pytest.fixture
def experiments(folder: Path) -> dict[str, Experiment]:
    write(folder, PAPER)
    return {name: load_experiment(name) for name in experiment_files()}


def test_a_row_is_an_experiment_a_column(experiments: dict[str, Experiment], folder: Path) -> None:
    assert sorted(experiments) == ["p_beta", "p_beta_testdev", "p_other_name", "p_static", "p_whole"]
    assert {one.path.name for name, one in experiments.items() if name != "p_whole"} == {"tables.yaml"}
    assert {one.path.parent.name for one in experiments.values()} == {"p"}


def test_what_it_is_composed_of(experiments: dict[str, Experiment]) -> None:
    # `set` comes after everything that is extended, and the row's after the table's.
    assert experiments["p_beta"].config == {"data": {"y": 2, "z": 2, "from": "row", "a": 1, "b": 2}}
    # `extends` of a column comes after that of the row, its `set` last.
    assert experiments["p_beta_testdev"].config == {"data": {"x": 7, "y": 2, "z": 3, "from": "testdev", "a": 1, "b": 2}}
    assert experiments["p_static"].config["data"]["deep"] == {"b": 5}


def test_extends_of_a_row_stands_for_that_of_its_table(folder: Path) -> None:
    write(folder, PAPER)
    assert load_experiment("p_other_name").config == {"data": {"x": 1, "y": 1, "z": 1, "from": "main", "a": 1, "b": 1}}
    write(folder, changed("tables/6/rows/beta/extends", []))
    assert load_experiment("p_beta").config == {"data": {"a": 1, "b": 2}}


def test_what_is_published(experiments: dict[str, Experiment]) -> None:
    assert experiments["p_beta"].published == {
        "paper": "P",
        "table": 6,
        "row": "beta 10",
        "dataset": "DAVIS 2017 val",
        "metrics": {"J&F": 85.9},
        "fps": 14.1,
        "hardware": "a card",
    }
    # Hardware is that of a speed.
    assert experiments["p_beta_testdev"].published == {
        "paper": "P",
        "table": 6,
        "row": "beta 10",
        "dataset": "DAVIS 2017 test-dev",
        "metrics": {"J&F": 78.2},
    }
    assert experiments["p_static"].published == {}
    assert experiments["p_beta"].description == "Table 6, beta 10"
    assert experiments["p_beta_testdev"].description == "Table 6, beta 10, test-dev"
    assert experiments["p_static"].description == "A stage"
    assert experiments["p_beta"].checkpoint_of == experiments["p_beta_testdev"].checkpoint_of == "p_whole"
    assert experiments["p_static"].checkpoint_of is None


def test_the_file_is_read_again_when_it_changes(folder: Path) -> None:
    write(folder, PAPER)
    first = load_experiment("p_beta")
    assert load_experiment("p_beta").config == first.config  # composing has changed nothing of what was read
    write(folder, {**PAPER, "tables": {}})
    assert sorted(experiment_files()) == ["p_static", "p_whole"]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("colums", {}, "the file has an unknown key colums; there are paper, hardware, columns"),
        ("tables/6/row", {}, "table 6 has an unknown key row; there are extends"),
        ("tables/6/rows/beta/sett", {}, "table 6, row beta has an unknown key sett; there are extends"),
        ("columns/DAVIS 2017 val/suffx", "_x", "column DAVIS 2017 val has an unknown key suffx"),
        ("others/static/published", {}, "experiment static has an unknown key published"),
        (
            "tables/6/rows/beta/published/DAVIS 2018 val",
            {"J&F": 1},
            "table 6, row beta has a score on DAVIS 2018 val, which is no",
        ),
        (
            "tables/6/rows/plain/published/DAVIS 2017 val/name",
            "beta",
            "table 6, row plain, DAVIS 2017 val is the experiment beta, and so is table 6, row beta",
        ),
        (
            "others/beta_testdev",
            {},
            "experiment beta_testdev is the experiment beta_testdev, and so is table 6, row beta, DAVIS 2017 test-dev",
        ),
        ("tables/6/rows/beta", None, "table 6, row beta must say row"),
        ("tables/6/rows/beta/published", None, "table 6, row beta must say published"),
        (
            "tables/6/rows/beta/published/DAVIS 2017 val",
            85.9,
            "tables.6.rows.beta.published.DAVIS 2017 val must be a mapping, not 85.9",
        ),
        ("tables/6/rows", None, "table 6 must say rows"),
        ("tables", ["a list"], "tables must be a mapping"),
        ("tables/6/rows/beta/set", ["a list"], "tables.6.rows.beta.set must be a mapping"),
    ],
)
def test_faults_are_named(folder: Path, place: str, value: Any, message: str) -> None:
    write(folder, changed(place, value))
    with pytest.raises(ExperimentError) as caught:
        experiment_files()
    assert message in str(caught.value)
    assert str(folder / "tables.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_a_file_or_a_row(folder: Path) -> None:
    write(folder, PAPER)
    (folder / "beta.yaml").write_text("{}")
    with pytest.raises(ExperimentError, match=r"tables\.yaml and .*beta\.yaml both define p_beta: remove one of them"):
        experiment_files()


def test_a_row_changes_no_class(folder: Path) -> None:
    paper = changed("tables/6/rows/beta/set", {"model.class_path": "a.C"})
    paper["tables"][6]["rows"]["beta"]["extends"] = ["p/whole"]
    write(folder, paper)
    with pytest.raises(ExperimentError, match=r"tables\.yaml \(experiment beta\) changes model\.class_path from a\.B to a\.C"):
        load_experiment("p_beta")


def test_what_a_row_extends_is_there(folder: Path) -> None:
    write(folder, changed("tables/6/rows/beta/extends", ["p/_nothing"]))
    with pytest.raises(ExperimentError, match=r"tables\.yaml \(experiment beta\) extends .*_nothing\.yaml, which cannot be read"):
        load_experiment("p_beta")
