"""The command ``evaluate``: ``vos evaluate --truth DIR --predictions DIR --protocol davis17``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from vos_lightning.evaluation.folders import MAX_WORKERS, Evaluation, evaluate_folder
from vos_lightning.evaluation.tasks import EvaluationError
from vos_lightning.io.overlaps import refuse_overlap
from vos_lightning.metrics.protocols import summarize, summary_keys
from vos_lightning.metrics.scores import Protocol
from vos_lightning.metrics.youtube_vos import unseen_objects


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments of the command; None takes those of the process.

    Returns:
        0, or 2 after one line on stderr for each problem.
    """
    parser = argparse.ArgumentParser(prog="vos_lightning evaluate", description="Score folders of predicted label maps.")
    parser.add_argument("--truth", type=Path, required=True, help="folder of video folders of label-map PNGs")
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="the same layout, or the output of test or predict; skipped frames may be absent",
    )
    parser.add_argument("--protocol", choices=get_args(Protocol), required=True)
    parser.add_argument("--videos", type=Path, help="text file with one video name a line (default: all videos of the truth)")
    parser.add_argument("--meta", type=Path, help="meta.json of the truth with categories (YouTube-VOS)")
    parser.add_argument("--train-meta", type=Path, help="meta.json of the training set, whose categories are the seen ones")
    parser.add_argument("--output", type=Path, help="folder for objects.csv and summary.json")
    parser.add_argument(
        "--workers", type=int, help=f"processes (default: by the number of frames, at most {MAX_WORKERS} and the number of CPUs)"
    )
    arguments = parser.parse_args(argv)
    if arguments.output is not None:
        inputs = (arguments.truth, arguments.predictions, arguments.videos, arguments.meta, arguments.train_meta)
        refuse_overlap([arguments.output / name for name in ("objects.csv", "summary.json")], inputs)
    try:
        videos = None
        if arguments.videos is not None:
            if not arguments.videos.is_file():
                raise EvaluationError([f"{arguments.videos}: the list of videos does not exist"])
            videos = arguments.videos.read_text().split()
            if not videos:
                raise EvaluationError([f"{arguments.videos}: the list of videos is empty; write one name a line"])
        if (arguments.meta is None) != (arguments.train_meta is None):
            raise EvaluationError(["--meta and --train-meta go together: seen categories are those of the training set"])
        unseen = unseen_objects(arguments.meta, arguments.train_meta) if arguments.meta is not None else None
        evaluation = evaluate_folder(
            arguments.truth, arguments.predictions, arguments.protocol, videos, arguments.workers, sys.stderr.isatty(), unseen
        )
    except EvaluationError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return 2
    show(evaluation, Console())
    if arguments.output is not None:
        evaluation.write(arguments.output)
    return 0


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the scores of every object, of every video with several objects, and of all objects together."""
    per_object = [(f"{row.video} {row.object_id}", asdict(row)) for row in evaluation.rows]
    per_video = list(evaluation.sequences().items())
    tables = [("object", per_object)] if len(per_object) > len(per_video) else []
    keys = summary_keys(evaluation.protocol)
    for title, entries in [*tables, ("video", per_video)]:
        console.print(_table(title, entries, [key for key in keys if key in entries[0][1] or key == "J&F"]))
    console.print(_table("all", [(f"{len(evaluation.rows)} objects", summarize(evaluation.rows, evaluation.protocol))], keys))
    console.print(evaluation.description, soft_wrap=True)
    if missing := evaluation.missing:
        objects = "; ".join(f"{video} {', '.join(map(str, ids))}" for video, ids in missing.items())
        count = sum(len(ids) for ids in missing.values())
        console.print(
            f"missing: {count} of {len(evaluation.rows)} objects are never predicted and score 0 wherever the truth shows them "
            f"({objects})",
            soft_wrap=True,
            markup=False,
        )
    for note in evaluation.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def _table(title: str, entries: Sequence[tuple[str, Mapping[str, Any]]], keys: Sequence[str]) -> Table:
    table = Table(title, *keys, title=None)
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for name, scores in entries:
        jf = scores.get("J&F", (scores["J"] + scores["F"]) / 2)
        numbers = [jf if key == "J&F" else scores[key] for key in keys]
        table.add_row(name, *(f"{100 * number:.1f}" if math.isfinite(number) else "-" for number in numbers))
    return table
