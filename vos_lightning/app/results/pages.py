"""The results table as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    paper = None
    for this_paper, (title, headers, body) in _tables(rows, rest):
        if this_paper != paper:
            paper = this_paper
            lines += ["", f"## {_escape(paper)}"]
        lines += ["", f"### {_escape(title)}", "", _line(headers), _line(["---"] * len(headers))]
        lines += [_line([_escape(cell) for cell in row]) for row in body]
    return "\n".join(lines) + "\n"


def html_page(rows: Sequence[Row], rest: Sequence[tuple[Score, str]]) -> str:
    """The page as HTML."""
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Results</title><style>',
        "body{font:14px/1.4 system-ui,sans-serif;margin:2em;max-width:110em}table{border-collapse:collapse;margin:1em 0}",
        "td,th{border:1px solid #bbb;padding:.25em .5em;text-align:left;vertical-align:top}th{background:#eee}",
        f"td.none{{color:#888}}</style></head><body><h1>Results</h1><p>{html.escape(INTRODUCTION)}</p>",
    ]
    paper = None
    for this_paper, (title, headers, body) in _tables(rows, rest):
        if this_paper != paper:
            paper = this_paper
            parts.append(f"<h2>{html.escape(paper)}</h2>")
        parts.append(f"<h3>{html.escape(title)}</h3><table><tr>")
        parts += [f"<th>{html.escape(header)}</th>" for header in headers]
        for row in body:
            parts.append("</tr><tr>")
            parts += [f'<td class="none">{NOT_RUN}</td>' if cell == NOT_RUN else f"<td>{html.escape(cell)}</td>" for cell in row]
        parts.append("</tr></table>")
    return "\n".join(parts) + "\n</body></html>\n"


def _tables(rows: Sequence[Row], rest: Sequence[tuple[Score, str]]) -> Iterator[tuple[str, Table]]:
    """Yield pairs of paper and table in the order of the page."""
    for (paper, table), group in itertools.groupby(rows, key=lambda row: (row.published["paper"], row.published["table"])):
        yield str(paper), (f"Table {table}", HEADERS, [line for row in group for line in _row_lines(row)])
    if rest:
        body = [_other_line(score, reason) for score, reason in sorted(rest, key=lambda pair: pair[0].experiment)]
        yield "Other scores", ("Measured, but not of a published row", OTHER_HEADERS, body)


def _row_lines(row: Row) -> Iterator[Sequence[str]]:
    name = [str(row.published["row"]), str(row.published["dataset"]), row.experiment.name]
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
