"""Score folders of predicted label maps against the truth: no network, the same metric as in validation.

``python -m vos_lightning evaluate --truth DIR --predictions DIR --protocol davis17``
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import cv2
import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from vos_lightning.io.label_maps import read_label_map, write_atomically
from vos_lightning.io.outputs import refuse_overlap
from vos_lightning.metrics import ObjectScores, Protocol, describe, evaluate_video, summarize, summary_keys
from vos_lightning.metrics.davis import scored_maps
from vos_lightning.metrics.protocols import GROUPED, check_protocol
from vos_lightning.metrics.youtube_vos import unseen_objects
from vos_lightning.structures import IGNORE_LABEL

PathLike = str | os.PathLike[str]
NUM_NAMED = 5
"""How many files or folders a message names before it only counts them."""


class EvaluationError(ValueError):
    """Folders that cannot be scored; ``problems`` holds one line each, with the file and the mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a folder."""

    protocol: Protocol
    rows: tuple[ObjectScores, ...]

    @property
    def description(self) -> str:
        """The line that names the protocol and counts objects and videos."""
        return describe(self.protocol, self.rows)

    def sequences(self) -> dict[str, dict[str, float]]:
        """Means over the objects of every video."""
        by_video: dict[str, list[ObjectScores]] = {}
        for row in self.rows:
            by_video.setdefault(row.video, []).append(row)
        return {video: summarize(rows, self.protocol) for video, rows in by_video.items()}

    def write(self, folder: PathLike) -> None:
        """Write ``objects.csv`` (one row an object) and ``summary.json`` (everything), each whole or not at all."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(field.name for field in fields(ObjectScores))
        writer.writerows(asdict(row).values() for row in self.rows)
        write_atomically(Path(folder) / "objects.csv", table.getvalue().encode())
        summary = {
            "protocol": self.protocol,
            "description": self.description,
            "global": summarize(self.rows, self.protocol),
            "sequences": self.sequences(),
            "objects": [asdict(row) for row in self.rows],
        }
        write_atomically(Path(folder) / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())


def evaluate_folder(
    truth: PathLike,
    predictions: PathLike,
    protocol: Protocol,
    videos: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = False,
    unseen: Mapping[str, Collection[int]] | None = None,
) -> Evaluation:
    """Score a folder of predictions.

    Args:
        truth: a folder of video folders of label-map PNGs.
        predictions: the same layout and file names; frames that the protocol skips may be absent.
        protocol: see :data:`vos_lightning.metrics.Protocol`.
        videos: names to score; None means all folders of the truth.
        workers: processes; 1 works in this one.
        progress: show a bar on stderr.
        unseen: video -> ids whose category is not in the training set (YouTube-VOS).

    Returns:
        One row an object, sorted by video and id.

    Raises:
        EvaluationError: with every problem that was found, if there is any; nothing is scored by halves.
    """
    check_protocol(protocol)
    tasks, problems = _find_tasks(Path(truth), Path(predictions), protocol, videos, unseen or {})
    rows: list[ObjectScores] = []
    if tasks:
        results: Iterable[tuple[list[ObjectScores], list[str]]] = _score_all(tasks, workers)
        if progress:
            results = track(results, description="Scoring", total=len(tasks), console=Console(stderr=True), transient=True)
        for scored, found in results:
            rows += scored
            problems += found
    if problems:
        raise EvaluationError(problems)
    return Evaluation(protocol, tuple(rows))


def read_videos(
    truth: PathLike, predictions: PathLike, protocol: Protocol, videos: Sequence[str] | None = None
) -> Iterator[tuple[str, tuple[str, ...], UInt8[Tensor, "T H W"], UInt8[Tensor, "T H W"]]]:
    """The label maps that :func:`evaluate_folder` scores: name, stems, predictions and truth of one video after the other.

    Predictions of frames that the protocol skips are blank. For the arguments see :func:`evaluate_folder`.

    Raises:
        EvaluationError: files are missing or do not fit.
    """
    check_protocol(protocol)
    tasks, problems = _find_tasks(Path(truth), Path(predictions), protocol, videos, {})
    if problems:
        raise EvaluationError(problems)
    for task in tasks:
        maps = _load(task, problems)
        if maps is None:
            raise EvaluationError(problems)
        yield task.name, task.stems, *maps


# Finding files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A video whose files are all there."""

    name: str
    truth: Path
    predictions: Path
    stems: tuple[str, ...]
    protocol: Protocol
    unseen_ids: tuple[int, ...] = ()

    @property
    def needed(self) -> slice:
        """Frames whose predictions the protocol looks at."""
        return _needed(self.protocol)


def _needed(protocol: Protocol) -> slice:
    return slice(1, None) if protocol in GROUPED else slice(1, -1)


def _find_tasks(
    truth: Path,
    predictions: Path,
    protocol: Protocol,
    videos: Sequence[str] | None,
    unseen: Mapping[str, Collection[int]],
) -> tuple[list[_Task], list[str]]:
    for role, folder in (("truth", truth), ("predictions", predictions)):
        if not folder.is_dir():
            return [], [f"{folder}: the {role} folder does not exist; give a folder of video folders"]
    if truth.resolve() == predictions.resolve():
        return [], [f"{truth}: truth and predictions are the same folder; give the folder that your predictions were written to"]
    names = sorted(set(videos)) if videos is not None else _folders(truth)
    if not any(_stems(truth / name) for name in names):
        return [], [_no_videos(truth, "truth")]
    if not any((predictions / name).is_dir() for name in names):
        return [], [f"{_no_videos(predictions, 'predictions')} (none of the {len(names)} true videos is in it)"]
    tasks, problems = [], []
    for name in names:
        stems = _stems(truth / name)
        problem = _missing(truth / name, predictions / name, stems, protocol)
        if problem:
            problems.append(problem)
        else:
            tasks.append(_Task(name, truth / name, predictions / name, stems, protocol, tuple(unseen.get(name, ()))))
    return tasks, problems


def _missing(truth: Path, predictions: Path, stems: tuple[str, ...], protocol: Protocol) -> str | None:
    """What the files of a video lack."""
    if not truth.is_dir():
        return f"{truth}: the truth of this video is missing; correct the list of videos or the truth folder"
    if not predictions.is_dir():
        return f"{predictions}: no predictions for this video; predict it, or leave it out with a list of videos"
    needed = stems[_needed(protocol)]
    if not needed:
        skipped, fewest = ("first frame is", 2) if protocol in GROUPED else ("first and the last frame are", 3)
        return f"{truth}: {len(stems)} PNG files; the {skipped} skipped, so at least {fewest} are needed"
    predicted = _stems(predictions)
    if predicted and (predicted[0] < stems[0] or predicted[-1] > stems[-1]):
        extra = [stem for stem in predicted if stem < stems[0] or stem > stems[-1]]
        return f"{predictions}: holds {_some(extra)} beyond the frames of {truth}; have truth and predictions been swapped?"
    missing = sorted(set(needed) - set(predicted))
    if missing:
        return f"{predictions}: {len(missing)} of {len(needed)} frames are missing ({_some(missing)}); predict every frame"
    return None


def _no_videos(folder: Path, role: str) -> str:
    if _stems(folder):
        return f"{folder}: holds PNG files where video folders are expected; give its parent as {role}"
    for inside in ("Annotations/480p", "Annotations"):
        if (folder / inside).is_dir():
            return f"{folder}: has no video folders at its top; give {folder / inside} as {role}"
    held = _folders(folder)
    return (
        f"{folder}: holds {'folders ' + _some(held) if held else 'no video folders'}; give the folder of video folders as {role}"
    )


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _stems(folder: Path) -> tuple[str, ...]:
    # Some systems leave hidden companions such as "._00000.png".
    return tuple(sorted(path.stem for path in folder.glob("*.png") if not path.name.startswith(".")))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


# Scoring --------------------------------------------------------------------------------------------------------------


def _score_all(tasks: Sequence[_Task], workers: int) -> Iterator[tuple[list[ObjectScores], list[str]]]:
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(_score, tasks)
        return
    # Forking a process in which PyTorch runs threads can hang; a fork server starts clean and imports the library once.
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        yield from pool.map(_score, tasks)


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _score(task: _Task) -> tuple[list[ObjectScores], list[str]]:
    """Scores of a video, or what is wrong with its files."""
    problems: list[str] = []
    maps = _load(task, problems)
    if maps is None:
        return [], problems
    try:
        return evaluate_video(*maps, task.protocol, task.name, task.unseen_ids), []
    except ValueError as error:
        return [], [f"{task.truth.parent}: {error}"]


def _load(task: _Task, problems: list[str]) -> tuple[UInt8[Tensor, "T H W"], UInt8[Tensor, "T H W"]] | None:
    """Predictions and truth of a video, or None and another problem."""
    target = _read([task.truth / f"{stem}.png" for stem in task.stems], None, problems)
    size = target.shape[1:] if target is not None else None
    preds = _read([task.predictions / f"{stem}.png" for stem in task.stems[task.needed]], size, problems)
    if target is None or preds is None:
        return None
    label_maps = torch.zeros_like(target)  # blank where the protocol does not look
    label_maps[task.needed] = preds
    problem = _wrong_ids(task, label_maps, target)
    if problem:
        problems.append(problem)
        return None
    return label_maps, target


def _read(paths: Sequence[Path], size: Sequence[int] | None, problems: list[str]) -> UInt8[Tensor, "T H W"] | None:
    """Label maps of one size, or None and another problem: the first bad file, and how many more there are."""
    maps, bad = [], []
    for path in paths:
        try:
            label_map = read_label_map(path)
        except (ValueError, FileNotFoundError) as error:
            bad.append(str(error))
            continue
        size = label_map.shape if size is None else size
        if tuple(label_map.shape) != tuple(size):
            wrong, right = (f"{shape[1]} x {shape[0]}" for shape in (label_map.shape, size))
            bad.append(f"{path}: {wrong} pixels where the truth has {right}; write predictions at the size of the truth")
        maps.append(label_map)
    if bad:
        problems.append(bad[0] + (f" (and {len(bad) - 1} more files of this video)" if len(bad) > 1 else ""))
        return None
    return torch.stack(maps)


def _wrong_ids(task: _Task, preds: Tensor, target: Tensor) -> str | None:
    if task.protocol != "davis17":
        return None
    _, _, object_ids = scored_maps(preds, target, task.protocol)
    if not object_ids:
        binary = "is a mask of 0 and 255" if (target[0] == IGNORE_LABEL).any() else "holds no object id"
        return f"{task.truth / task.stems[0]}.png: {binary}; davis17 needs ids 1, 2, ...; score such truth with davis16"
    highest = preds.flatten(1).amax(dim=1)
    if int(highest.max()) > len(object_ids):
        frame = task.stems[int((highest > len(object_ids)).int().argmax())]
        return (
            f"{task.predictions / frame}.png: holds id {int(highest.max())}, but the first true frame has ids up to "
            f"{len(object_ids)}; write the ids of the truth, not other values or colours, and check the folders are not swapped"
        )
    return None


# Command line ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        0, or 2 after one line on stderr for each problem.
    """
    parser = argparse.ArgumentParser(prog="vos_lightning evaluate", description="Score folders of predicted label maps.")
    parser.add_argument("--truth", type=Path, required=True, help="folder of video folders of label-map PNGs")
    parser.add_argument("--predictions", type=Path, required=True, help="the same layout; skipped frames may be absent")
    parser.add_argument("--protocol", choices=get_args(Protocol), required=True)
    parser.add_argument("--videos", type=Path, help="text file with one video name a line (default: all of the truth)")
    parser.add_argument("--meta", type=Path, help="meta.json of the truth with categories (YouTube-VOS)")
    parser.add_argument("--train-meta", type=Path, help="meta.json of the training set: its categories are the seen ones")
    parser.add_argument("--output", type=Path, help="folder for objects.csv and summary.json")
    parser.add_argument("--workers", type=int, default=_available_cpus(), help="processes (default: all processors)")
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
            arguments.truth, arguments.predictions, arguments.protocol, videos, arguments.workers, progress=True, unseen=unseen
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
    """Print the scores of every object, of every video with several, and of all together."""
    per_object = [(f"{row.video} {row.object_id}", asdict(row)) for row in evaluation.rows]
    per_video = list(evaluation.sequences().items())
    tables = [("object", per_object)] if len(per_object) > len(per_video) else []
    keys = summary_keys(evaluation.protocol)
    for title, entries in [*tables, ("video", per_video)]:
        console.print(_table(title, entries, [key for key in keys if key in entries[0][1] or key == "J&F"]))
    console.print(_table("all", [(f"{len(evaluation.rows)} objects", summarize(evaluation.rows, evaluation.protocol))], keys))
    console.print(evaluation.description, soft_wrap=True)


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


def _available_cpus() -> int:
    """Processors that this process may use, which a cluster limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
