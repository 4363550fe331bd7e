"""The command ``results``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vos_lightning.app.results.pages import html_page, markdown_page
from vos_lightning.app.results.rows import published_rows
from vos_lightning.app.results.scores import collect, read_scores
from vos_lightning.app.runs import write_text


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="vos results", description="Published results beside measured ones, as Markdown and HTML."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--output", type=Path, help="folder for results.md and results.html (default: the folder of runs)")
    known = parser.parse_args(argv)
    rows = published_rows()
    scores = list(read_scores(known.runs)) if known.runs.is_dir() else []
    rest = collect(rows, scores)
    output = known.output or known.runs
    write_text(output / "results.md", markdown_page(rows, rest))
    write_text(output / "results.html", html_page(rows, rest))
    measured = sum(bool(row.ours) for row in rows)
    Console(file=sys.stderr).print(
        f"{len(rows)} published rows, {measured} measured by runs here, {len(rest)} other scores: {output / 'results.md'}, "
        f"{output / 'results.html'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
