"""The tables of a paper as experiments: ``experiments/<paper>/tables.yaml`` describes each published number, row by row.

::

    paper: "PMNet, 2022"
    columns:                      # data sets that rows are scored on
      DAVIS 2017 val: {}
      DAVIS 2017 test-dev: {suffix: _testdev, extends: [pmnet/_testdev]}
    tables:
      6:
        checkpoint_of: pmnet_davis17
        extends: [pmnet/main]
        rows:
          beta_10:
            row: "beta 10"
            set: {model.init_args.network.init_args.adaptive.beta: 10.0}
            published:
              DAVIS 2017 val: {J&F: 85.9, fps: 14.1}
              DAVIS 2017 test-dev: {J&F: 78.2}
    others:                       # experiments that no table prints
      dot_static:
        extends: [pmnet/static]
        set: {model.init_args.network.init_args.stcn.init_args.similarity: dot}

A row is one experiment for each data set: ``pmnet_beta_10`` and ``pmnet_beta_10_testdev``. An experiment has the keys of an
experiment file, see :mod:`vos_lightning.app.experiments`, and ``set``: dotted options as on the command line, merged last.
What a table sets holds for all its rows unless a row sets it again (options of ``set`` one by one, ``extends`` as a whole);
``extends`` and ``set`` of a column come after those of the row, and those of a score after both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat
from typing_extensions import TypedDict  # pydantic reads it from `typing` from Python 3.12 on

from vos_lightning.io.documents import checked

FILE = "tables.yaml"
_EXPERIMENT_KEYS = ("extends", "set", "stages", "hand_over", "select", "checkpoint_of", "description")
_ROW_KEYS = (*_EXPERIMENT_KEYS, "row", "paper", "published", "hardware", "departs")
_COLUMN_KEYS = ("suffix", "extends", "set", "description")
_CELL_KEYS = ("fps", "name", "hardware", "departs", "extends", "set", "description", "checkpoint_of")


class _Experiment(TypedDict, total=False):
    extends: list[str]
    set: dict[str, Any] | None
    description: str
    checkpoint_of: str
    hardware: str
    departs: str


class _Cell(_Experiment, total=False):
    fps: str | FiniteFloat
    name: str


class _Row(_Experiment, total=False):
    row: str | int | FiniteFloat
    paper: str
    published: dict[str, _Cell] | None


class _Table(_Experiment, total=False):
    rows: dict[str | int, _Row | None] | None


class _Column(_Experiment, total=False):
    suffix: str


class _File(TypedDict, total=False):
    """What is read here; the other keys of an experiment are checked where it is loaded."""

    paper: str
    hardware: str
    columns: dict[str, _Column | None] | None
    tables: dict[int | str, _Table | None] | None
    others: dict[str, dict[str, Any] | None] | None


def table_experiments(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every experiment of a file of tables.

    Args:
        path: the file, named in messages.
        content: content of the file.

    Returns:
        Experiments by their names without the paper's folder; each as an experiment file would hold it, with ``set`` beside its
        sections.

    Raises:
        ValueError: a key is unknown or missing or has a wrong value, or two experiments have one name; the message
            names file and row.
    """
    _check(path, content, ("paper", "hardware", "columns", "tables", "others"), "the file")
    checked(content, _File, path)
    columns = content.get("columns") or {}
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}

    def add(name: str, where: str, experiment: dict[str, Any]) -> None:
        if name in found:
            raise ValueError(f"{path}: {where} is the experiment {name}, and so is {places[name]}: rename one of them")
        found[name], places[name] = experiment, where

    for column, options in columns.items():
        _check(path, options, _COLUMN_KEYS, f"column {column}")
    for number, table in (content.get("tables") or {}).items():
        _check(path, table, (*_EXPERIMENT_KEYS, "rows", "hardware", "departs"), f"table {number}", needed=("rows",))
        shared = {key: value for key, value in table.items() if key != "rows"}
        for name, row in table["rows"].items():
            where = f"table {number}, row {name}"
            _check(path, row, _ROW_KEYS, where, needed=("row", "published"))
            row = {**shared, **row, "set": {**(shared.get("set") or {}), **(row.get("set") or {})}}
            for dataset, cell in row["published"].items():
                if dataset not in columns:
                    raise ValueError(
                        f"{path}: {where} has a score on {dataset}, which is not a column; columns are {_some(columns)}"
                    )
                column = columns[dataset] or {}
                own = cell.get("name", f"{name}{column.get('suffix', '')}")
                add(own, f"{where}, {dataset}", _experiment(content, number, row, dataset, column, cell))
    for name, experiment in (content.get("others") or {}).items():
        _check(path, experiment, _EXPERIMENT_KEYS, f"experiment {name}")
        add(name, f"experiment {name}", dict(experiment or {}))
    return found


def _experiment(
    content: Mapping[str, Any],
    number: Any,
    row: Mapping[str, Any],
    dataset: str,
    column: Mapping[str, Any],
    cell: Mapping[str, Any],
) -> dict[str, Any]:
    experiment = {key: row[key] for key in _EXPERIMENT_KEYS if key in row}
    experiment["extends"] = [*row.get("extends", ()), *column.get("extends", ()), *cell.get("extends", ())]
    experiment["set"] = {**row["set"], **(column.get("set") or {}), **(cell.get("set") or {})}
    if "checkpoint_of" in cell:
        experiment["checkpoint_of"] = cell["checkpoint_of"]
    published = {
        "paper": row.get("paper", content.get("paper")),
        "table": number,
        "row": row["row"],
        "dataset": dataset,
        "metrics": {key: value for key, value in cell.items() if key not in _CELL_KEYS},
    }
    for key in ("fps", "hardware", "departs"):
        value = cell.get(key, row.get(key, content.get(key)))
        if value is not None and (key != "hardware" or "fps" in published):
            published[key] = value
    experiment["published"] = published
    text = cell.get("description", row.get("description", f"Table {number}, {row['row']}"))
    if "description" not in cell and column.get("description"):
        text = f"{text}, {column['description']}"
    experiment["description"] = text
    return experiment


def _check(path: Path, value: Mapping[str, Any] | None, known: tuple[str, ...], where: str, needed: tuple[str, ...] = ()) -> None:
    """Raise what is wrong with a mapping: a key that is not known, one that is needed and is not there."""
    unknown = [key for key in value or {} if key not in known]
    if unknown:
        raise ValueError(f"{path}: {where} has an unknown key {unknown[0]}; there are {_some(known)}")
    missing = [key for key in needed if not (value or {}).get(key)]
    if missing:
        raise ValueError(f"{path}: {where} must say {missing[0]}")


def _some(names: Any) -> str:
    return ", ".join(map(str, names))
