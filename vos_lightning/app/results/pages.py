"""The results table as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from vos_lightning.app.results.rows import Row, Score

NOT_RUN = "not run"
HEADERS = ("row", "data set", "experiment", "metric", "published", "ours", "difference", "published fps", "weights",
           "iterations", "trained on", "hardware", "date", "commit")  # fmt: skip
OTHER_HEADERS = ("experiment", "scores", "evaluated", "why it is not in the tables", "weights", "iterations", "trained on",
                 "hardware", "date", "commit", "file")  # fmt: skip
INTRODUCTION = (
    "Scores in percent. A number stands under “ours” only if the finished, unchanged experiment of the row was evaluated on the "
    "whole published data set; deviations are over seeds. “Weights” are those after the last step, or the best of all "
    "validations, whose score is optimistic where it comes from the same videos. All other measured scores are listed at the end."
)
Table = tuple[str, Sequence[str], list[Sequence[str]]]
"""Title, headers and rows of a table."""


def markdown_page(rows: Sequence[Row], rest: Sequence[tuple[Score, str]]) -> str:
    """The page as Markdown."""
    lines = ["# Results", "", INTRODUCTION]
    for paper, tables in _papers(rows, rest):
        lines += ["", f"## {_escape(paper)}"]
        for title, headers, body in tables:
            lines += ["", f"### {_escape(title)}", "", _line(headers), _line(["---"] * len(headers))]
            lines += [_line([_escape(cell) for cell in row]) for row in body]
    return "\n".join(lines) + "\n"


def html_page(rows: Sequence[Row], rest: Sequence[tuple[Score, str]]) -> str:
    """The page as HTML, from the template ``page.html.j2``, which escapes every text."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((importlib.resources.files(__package__) / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(introduction=INTRODUCTION, papers=_papers(rows, rest), not_run=NOT_RUN)


def _papers(rows: Sequence[Row], rest: Sequence[tuple[Score, str]]) -> Iterator[tuple[str, list[Table]]]:
    """Yield papers with their tables in the order of the page."""
    for paper, of_paper in itertools.groupby(rows, key=lambda row: row.published["paper"]):
        by_table = itertools.groupby(of_paper, key=lambda row: row.published["table"])
        tables: list[Table] = [
            (f"Table {table}", HEADERS, [line for row in group for line in _row_lines(row)]) for table, group in by_table
        ]
        yield str(paper), tables
    if rest:
        body = [_other_line(score, reason) for score, reason in sorted(rest, key=lambda pair: pair[0].experiment)]
        yield "Other scores", [("Measured, but not of a published row", OTHER_HEADERS, body)]


def _row_lines(row: Row) -> Iterator[Sequence[str]]:
    departs = f" (departs from the paper: {row.published['departs']})" if row.published.get("departs") else ""
    name = [f"{row.published['row']}{departs}", str(row.published["dataset"]), row.experiment.name]
    context = _context(row.ours)
    for index, (metric, published, ours, difference) in enumerate(row.cells()):
        first = index == 0
        yield [
            *(name if first else ("", "", "")),
            metric,
            f"{published:.1f}",
            ours or NOT_RUN,
            difference,
            row.speed if first else "",
            *(context if first else [""] * len(context)),
        ]


def _other_line(score: Score, reason: str) -> Sequence[str]:
    metrics = {name: score.metrics[name] for name in ("J&F", "J", "F", "G") if name in score.metrics} or score.metrics
    scores = ", ".join(f"{name} {value:.1f}" for name, value in metrics.items())
    return [score.experiment, scores, score.description, reason, *_context([score]), str(score.path)]


def _context(scores: Sequence[Score]) -> list[str]:
    """Weights, iterations, training data, hardware, date and commit, collected from all scores."""
    if not scores:
        return [""] * 6
    columns = [
        [score.weights for score in scores],
        [" → ".join(str(training.get("steps", "?")) for training in reversed(score.trainings)) for score in scores],
        [_chain(score, _data) for score in scores],
        [_chain(score, _hardware) or str(score.evaluation.get("hardware", "")) for score in scores],
        [str(score.evaluation.get("date", ""))[:10] for score in scores],
        [_commits(score) for score in scores],
    ]
    return ["; ".join(dict.fromkeys(text for text in column if text)) for column in columns]


def _chain(score: Score, text: Any) -> str:
    """One text for every training behind a score, first stage first; a single text if they all agree."""
    texts = [text(training) for training in reversed(score.trainings)]
    return " → ".join(texts) if len(set(texts)) > 1 else "".join(texts[:1])


def _data(training: Mapping[str, Any]) -> str:
    items = training.get("train_items") or []
    return f"{training.get('data', '')}" + (f" ({' + '.join(map(str, items))} items)" if items else "")


def _hardware(training: Mapping[str, Any]) -> str:
    return "; ".join(dict.fromkeys(str(start.get("hardware", "")) for start in training.get("starts", [])))


def _commits(score: Score) -> str:
    """Commits of the trainings and of the evaluation; ``+`` marks files that differed from the commit."""
    starts = [start for training in reversed(score.trainings) for start in training.get("starts", [])]
    commits = [start.get("commit") for start in starts] + [score.evaluation.get("commit")]
    return ", ".join(dict.fromkeys(f"{known['id'][:10]}{'+' if known.get('changed') else ''}" for known in commits if known))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
