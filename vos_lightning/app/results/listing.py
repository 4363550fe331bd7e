"""The command ``list``: papers, and the experiments of a paper with the published numbers that they reproduce."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import Experiment, experiment_files, load_experiments
from vos_lightning.app.results.rows import published_order
from vos_lightning.io.files import natural_key

SHORT = {
    "DAVIS 2016 val": "D16",
    "DAVIS 2017 val": "D17",
    "DAVIS 2017 test-dev": "T17",
    "YouTube-VOS 2018 val": "Y18",
    "YouTube-VOS 2019 val": "Y19",
}
"""Short names of published data sets; any other data set keeps its name."""
MIN_TEXT = 10
"""Least columns for the words at the end of a line; experiments that would leave less go to a line of their own."""
OTHERS = "Stages, presets and others"


class _Entry(NamedTuple):
    """An experiment in a line."""

    name: str
    number: str
    """Data set and published J&F or G; empty for an experiment without."""
    text: str
    """What the experiment is, in words."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ExperimentError: there is no such paper.
    """
    parser = argparse.ArgumentParser(
        prog="vos list",
        description="The papers, or the experiments of a paper with the published results that they reproduce.",
    )
    parser.add_argument("papers", metavar="PAPER", nargs="*", help="emvos ...: print the experiments of these papers")
    parser.add_argument("--all", action="store_true", help="print the experiments of every paper")
    parser.add_argument("--plain", action="store_true", help="print names of experiments only, one a line")
    known = parser.parse_args(argv)
    papers: dict[str, list[str]] = {}
    for name, path in experiment_files().items():
        papers.setdefault(path.parent.name, []).append(name)
    for paper in known.papers:
        if paper not in papers:
            close = difflib.get_close_matches(paper.lower(), papers, n=1, cutoff=0)
            raise ExperimentError(f"there is no paper {paper!r}: did you mean {' or '.join(close)}? `vos list` shows all")
    chosen = list(papers) if known.all or not known.papers else list(dict.fromkeys(known.papers))
    if known.plain:
        lines = sorted(name for paper in chosen for name in papers[paper])
    else:
        loaded = {paper: load_experiments(papers[paper]) for paper in chosen}
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        if known.all or known.papers:
            pages = [paper_lines(paper, members, width) for paper, members in loaded.items()]
            lines = [line for page in pages for line in ("", *page)][1:]
        else:
            lines = overview_lines(loaded, width)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def overview_lines(papers: Mapping[str, Sequence[Experiment]], width: int | None) -> list[str]:
    """A line for each paper, and how to go on.

    Args:
        papers: key of a paper -> its experiments.
        width: columns of the terminal, at which lines are cut; None cuts nothing.
    """
    lines = [("paper", "title", "experiments", "published rows", "tables")]
    for paper, experiments in papers.items():
        published = [_table(one) for one in experiments if one.published]
        lines.append((paper, _title(experiments), str(len(experiments)), str(len(published)), str(len(set(published)))))
    first, second = (max(len(line[i]) for line in lines) for i in (0, 1))
    return [
        *(
            _cut(f"{paper:<{first}}  {title:<{second}}  {count:>11}  {rows:>14}  {tables:>6}", width)
            for paper, title, count, rows, tables in lines
        ),
        "",
        _cut(f"vos list {lines[-1][0]}: its experiments; --all: those of every paper; --plain: names only", width),
    ]


def paper_lines(paper: str, experiments: Sequence[Experiment], width: int | None) -> list[str]:
    """The experiments of a paper: those of a row of a table in a line, then all others, one a line.

    Args:
        paper: key of the paper, as ``emvos``.
        experiments: all experiments of the paper.
        width: columns of the terminal, at which descriptions are cut; None cuts nothing. Names are never cut.
    """
    experiments = sorted(experiments, key=lambda one: natural_key(one.name))
    published = sorted((one for one in experiments if one.published), key=lambda one: published_order(one)[:-1])
    others = {one.name: one for one in experiments if not one.published}
    users = Counter(stage for one in experiments for stage in one.stages)
    tables: dict[str, dict[str, list[_Entry]]] = {}
    for one in published:
        tables.setdefault(_table(one), {}).setdefault(str(one.published.get("row")), []).append(_entry(one))
    for one in published:
        stages = [stage for stage in one.stages if users[stage] == 1 and stage in others]
        tables[_table(one)][str(one.published.get("row"))] += [_entry(others.pop(stage)) for stage in stages]
    indent = max((len(table) for table in tables), default=0) + 2
    lines = [_cut(f"{paper}: {_title(experiments)}{' (J&F; YouTube-VOS: G; no score: a stage)' if tables else ''}", width)]
    datasets = {str(one.published.get("dataset")) for one in published}
    legend = ", ".join(f"{short} {name}" for name, short in SHORT.items() if name in datasets)
    lines += textwrap.wrap(legend, width or len(legend) + 1)
    for table, rows in tables.items():
        lines += _aligned(table, indent, list(rows.values()), width)
    if others:
        lines += [OTHERS] if tables else []
        lines += _aligned("", 2, [[_entry(one)] for one in others.values()], width)
    return lines


def _aligned(table: str, indent: int, rows: Sequence[Sequence[_Entry]], width: int | None) -> Iterator[str]:
    """Lines of a table; a row with more experiments than fit a line goes on in the next one."""
    cells = [[f"{entry.name} {entry.number}".rstrip() for entry in row] for row in rows]
    columns = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells)))]
    fits = [i for i in range(len(columns)) if width is None or indent + sum(columns[: i + 1]) + 2 * i + 2 + MIN_TEXT <= width]
    a_line = len(fits) or 1
    columns = [max(len(cell) for row in cells for cell in row[i::a_line] or [""]) for i in range(a_line)]
    for row, row_cells in zip(rows, cells, strict=True):
        for start in range(0, len(row), a_line):
            names = "  ".join(f"{cell:<{column}}" for cell, column in zip(row_cells[start:], columns, strict=False))
            filled = f"{names:<{sum(columns) + 2 * (a_line - 1)}}"
            yield _cut(f"{table:<{indent}}{filled}  {row[start].text}", width, indent + len(names.rstrip()))
            table = ""


def _cut(line: str, width: int | None, keep: int = 0) -> str:
    """The line, cut to the width with an ellipsis; its first ``keep`` characters stay whatever the width."""
    line = line.rstrip()
    end = len(line) if width is None else max(width, keep)
    return line if len(line) <= end else f"{line[: max(end - 1, keep)].rstrip()}…"


def _title(experiments: Sequence[Experiment]) -> str:
    """Title of a paper; rows of a system that other papers cite are published "for" it."""
    papers = (str(one.published.get("paper")) for one in experiments if one.published)
    return next((paper.partition(", for ")[2] or paper for paper in papers), "no published rows")


def _table(experiment: Experiment) -> str:
    """Number of the table, or of the section whose text has the row; after the name of the paper where another one prints it."""
    source, cites, _ = str(experiment.published.get("paper")).partition(", for ")
    number = str(experiment.published.get("table")).partition(",")[0]
    return f"{source} {number}" if cites else number


def _entry(experiment: Experiment) -> _Entry:
    published, text = experiment.published, experiment.description
    if not published:
        return _Entry(experiment.name, "", text)
    dataset, row = str(published.get("dataset")), str(published.get("row"))
    scores = published.get("metrics") or {}
    number = next((f" {float(scores[name]):.1f}" for name in ("J&F", "G") if name in scores), "")
    if not re.match(rf"(\w+ )?{re.escape(row)}(?!\w)", text):  # "Row I of the ablation" says it already
        text = f"{row}: {text}"
    return _Entry(experiment.name, f"{SHORT.get(dataset, dataset)}{number}", text)
