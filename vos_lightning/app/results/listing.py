"""The command ``list``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vos_lightning.app.experiments import Experiment, experiment_files, load_experiment
from vos_lightning.app.results.rows import published_order


def main(argv: Sequence[str]) -> int:
    """Every experiment with the published result that it reproduces, by paper and table."""
    parser = argparse.ArgumentParser(prog="python -m vos_lightning list", description=main.__doc__)
    parser.add_argument("--plain", action="store_true", help="print names only, one a line")
    known = parser.parse_args(argv)
    console = Console()
    names = list(experiment_files())
    if known.plain:
        console.print("\n".join(names), highlight=False)
        return 0
    experiments = [load_experiment(name) for name in names]
    published = sorted((one for one in experiments if one.published), key=published_order)
    groups: dict[str, list[Experiment]] = {}
    for one in published:
        groups.setdefault(f"{one.published.get('paper')}, Table {one.published.get('table')}", []).append(one)
    groups["Stages, presets and others"] = [one for one in experiments if not one.published]
    for title, members in groups.items():
        table = Table(
            "experiment", *(("data set", "row", "published") if members[0].published else ()), "what it is", title=title
        )
        table.title_justify = "left"
        table.columns[0].no_wrap = True
        for one in members:
            row = one.published
            scores = " ".join(f"{metric} {value}" for metric, value in (row.get("metrics") or {}).items())
            cells = (str(row.get("dataset", "")), str(row.get("row", "")), scores) if row else ()
            table.add_row(one.name, *cells, one.description)
        console.print(table)
    return 0
