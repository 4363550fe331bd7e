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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from vos_lightning.io.files import list_files, list_folders, natural_key, write_atomically
from vos_lightning.io.outputs import mask_folder, refuse_overlap
from vos_lightning.io.plain_png import read_plain_png
from vos_lightning.labels import IGNORE_LABEL
from vos_lightning.metrics import davis
from vos_lightning.metrics.functional import ids_in
from vos_lightning.metrics.protocols import GROUPED, check_protocol, describe, evaluate_video, summarize, summary_keys
from vos_lightning.metrics.scores import NothingToScoreError, ObjectScores, Protocol
from vos_lightning.metrics.youtube_vos import unseen_objects

PathLike = str | os.PathLike[str]
NUM_NAMED = 5
"""Number of files or folders that a message names; the others are only counted."""
THREADS = 2
"""Number of videos that one process scores at a time."""
MAX_WORKERS, FRAMES_PER_WORKER = 16, 150
"""Most processes by default, and frames for each: a node with many CPUs is shared, and every process takes time to start."""


class EvaluationError(ValueError):
    """Folders that cannot be scored; ``problems`` holds one line for each problem, with the file and what to do about it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a folder."""

    protocol: Protocol
    rows: tuple[ObjectScores, ...]
    notes: tuple[str, ...] = ()
    """One line for each kind of file, folder or id that was not scored."""

    @property
    def missing(self) -> dict[str, list[int]]:
        """Video -> objects that the predictions never show although the truth does."""
        found: dict[str, list[int]] = {}
        for row in self.rows:
            if row.missing:
                found.setdefault(row.video, []).append(row.object_id)
        return found

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
        """Write ``objects.csv`` (one row an object) and ``summary.json`` (everything), both atomically."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(field.name for field in fields(ObjectScores))
        writer.writerows(asdict(row).values() for row in self.rows)
        write_atomically(Path(folder) / "objects.csv", table.getvalue().encode())
        summary = {
            "protocol": self.protocol,
            "description": self.description,
            "missing_objects": self.missing,
            "notes": self.notes,
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
    workers: int | None = 1,
    progress: bool = False,
    unseen: Mapping[str, Collection[int]] | None = None,
) -> Evaluation:
    """Score a folder of predictions.

    Args:
        truth: a folder of video folders of label-map PNGs.
        predictions: a folder with the same layout and file names, or what `test` or `predict` has written; frames that the
            protocol skips may be absent. Frames, videos and ids that the truth does not have are ignored (except that ``davis17``
            refuses ids above the truth's highest). What is missing is scored as a blank prediction. The result names both.
        protocol: how videos are scored, see :data:`vos_lightning.metrics.scores.Protocol`.
        videos: names of the videos to score; None means all folders of the truth.
        workers: number of processes; 1 runs in this process on one thread, None chooses by the number of frames.
        progress: show a bar on stderr.
        unseen: video -> ids whose category is not in the training set (YouTube-VOS).

    Returns:
        One row an object, by video in natural order and id.

    Raises:
        EvaluationError: with every problem of the folders' structure, or else of the files' content; in either case nothing is
            scored.
    """
    check_protocol(protocol)
    if workers is not None and workers < 1:
        raise EvaluationError([f"{workers} workers: at least 1 is needed"])
    found = _find_tasks(Path(truth), Path(predictions), protocol, videos, unseen or {})
    if found.problems:
        raise EvaluationError(found.problems)
    results: Iterable[_Scored] = _score_all(found.tasks, workers)
    if progress:
        from rich.progress import track

        results = track(results, description="Scoring", total=len(found.tasks), console=Console(stderr=True), transient=True)
    scored = {task.name: result for task, result in zip(found.tasks, results, strict=True)}
    problems = [problem for result in scored.values() for problem in result.problems]
    rows = tuple(row for result in scored.values() for row in result.rows)
    if not rows and not problems:
        problems = [f"{truth}: shows no object that {protocol} could score in any of its {len(scored)} videos"]
    if problems:
        raise EvaluationError(problems)
    blank = [name for name, result in scored.items() if result.is_blank]
    surplus = [f"{name} {', '.join(map(str, result.surplus_ids))}" for name, result in scored.items() if result.surplus_ids]
    notes = list(found.notes)
    if blank:
        notes.append(f"{len(blank)} videos without an object to score are left out ({_some(blank)})")
    if surplus:
        notes.append(f"predicted ids that the truth does not have are ignored ({'; '.join(surplus)})")
    return Evaluation(protocol, rows, tuple(notes))


def read_videos(
    truth: PathLike, predictions: PathLike, protocol: Protocol, videos: Sequence[str] | None = None
) -> Iterator[tuple[str, tuple[str, ...], UInt8[np.ndarray, "T H W"], UInt8[np.ndarray, "T H W"]]]:
    """Yield the label maps that :func:`evaluate_folder` scores: name, stems, predictions and truth of one video after the other.

    Predictions of frames that the protocol skips are blank. For the arguments see :func:`evaluate_folder`.

    Raises:
        EvaluationError: files are missing or do not fit.
    """
    check_protocol(protocol)
    found = _find_tasks(Path(truth), Path(predictions), protocol, videos, {})
    if found.problems:
        raise EvaluationError(found.problems)
    for task in found.tasks:
        reader = _Reader(task)
        try:
            reader.find_highest_id()
            target = np.stack([*reader.target])
            preds = np.zeros_like(target)
            for index in task.scored:
                preds[index] = reader.preds[index]
        except (ValueError, FileNotFoundError) as error:
            raise EvaluationError(reader.problems() or [str(error)]) from error
        yield task.name, tuple(path.stem for path in task.truth), preds, target


# Finding files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A video of which all needed files exist."""

    name: str
    truth: tuple[Path, ...]
    predictions: tuple[Path | None, ...]
    """Paths of the predictions; None for frames without a file, because the protocol skips them or the video is not predicted."""
    protocol: Protocol
    unseen_ids: tuple[int, ...] = ()

    @property
    def scored(self) -> range:
        """Frames whose predictions the protocol looks at."""
        return range(len(self.truth))[_scored(self.protocol)]


@dataclass
class _Found:
    """Tasks, problems and notes that were found in the folders."""

    tasks: list[_Task] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _scored(protocol: Protocol) -> slice:
    return slice(1, None) if protocol in GROUPED else slice(1, -1)


def _find_tasks(
    truth: Path,
    predictions: Path,
    protocol: Protocol,
    videos: Sequence[str] | None,
    unseen: Mapping[str, Collection[int]],
) -> _Found:
    for role, folder in (("truth", truth), ("predictions", predictions)):
        if not folder.is_dir():
            return _Found(problems=[f"{folder}: the {role} folder does not exist; give a folder of video folders"])
    predictions = mask_folder(predictions)
    if truth.resolve() == predictions.resolve():
        same = f"{truth}: truth and predictions are the same folder; give the folder that your predictions were written to"
        return _Found(problems=[same])
    names = sorted(set(videos), key=natural_key) if videos is not None else list_folders(truth)
    true, predicted = ({name: _files(folder / name) for name in names} for folder in (truth, predictions))
    if not any(true.values()):
        return _Found(problems=[_no_videos(truth, "truth")])
    lacking = [name for name in names if not (predictions / name).is_dir()]
    if len(lacking) == len(names):
        none = f"{_no_videos(predictions, 'predictions')} (none of the {len(names)} true videos is in it)"
        return _Found(problems=[none])
    misnamed = _misnamed(truth, predictions, [(true[name], predicted[name]) for name in names if predicted[name]], protocol)
    if misnamed:
        return _Found(problems=[misnamed])
    found = _Found()
    surplus = {}
    for name in names:
        problem = _missing(truth / name, predictions / name, true[name], None if name in lacking else predicted[name], protocol)
        if problem:
            found.problems.append(problem)
            continue
        paths = tuple(predicted[name].get(stem) for stem in true[name])
        found.tasks.append(_Task(name, tuple(true[name].values()), paths, protocol, tuple(unseen.get(name, ()))))
        surplus[name] = len(predicted[name].keys() - true[name].keys())
    if lacking:
        found.notes.append(
            f"nothing is predicted for {len(lacking)} of {len(names)} videos ({_some(lacking)}); they count as blank predictions"
        )
    if any(surplus.values()):
        where = [name for name, count in surplus.items() if count]
        found.notes.append(
            f"{sum(surplus.values())} predicted frames without a true one are ignored, in {len(where)} videos ({_some(where)})"
        )
    strangers = [] if videos is not None else [name for name in list_folders(predictions) if name not in true]
    if strangers:
        found.notes.append(f"{len(strangers)} predicted videos without a true one are ignored ({_some(strangers)})")
    return found


def _missing(
    truth: Path, predictions: Path, true: Mapping[str, Path], predicted: Mapping[str, Path] | None, protocol: Protocol
) -> str | None:
    """The problem with the files of a video, or None; without a folder of predictions no predictions are expected."""
    if not truth.is_dir():
        return f"{truth}: the truth of this video is missing; correct the list of videos or the truth folder"
    needed = list(true)[_scored(protocol)]
    if not needed:
        skipped, fewest = ("first frame is", 2) if protocol in GROUPED else ("first and the last frame are", 3)
        return f"{truth}: {len(true)} PNG files; the {skipped} skipped, so at least {fewest} are needed"
    missing = [] if predicted is None else [stem for stem in needed if stem not in predicted]
    if missing:
        swapped = " (or have truth and predictions been swapped?)" if predicted and 2 * len(missing) > len(needed) else ""
        listed = f"{len(missing)} of {len(needed)} frames are missing ({_some(missing)})"
        return f"{predictions}: {listed}; predict every frame{swapped}"
    return None


def _misnamed(
    truth: Path, predictions: Path, matched: Sequence[tuple[Mapping[str, Path], Mapping[str, Path]]], protocol: Protocol
) -> str | None:
    """Predictions that have all expected names but are shifted by some frames in every video."""
    names = [(list(true), list(predicted)) for true, predicted in matched if true]
    if names and all(true == predicted[_scored(protocol)] for true, predicted in names):
        skipped = "first frame" if protocol in GROUPED else "first and the last frame"
        return (
            f"{truth}: lacks just the {skipped} of every predicted video, which {protocol} does not score: have truth and "
            f"predictions been swapped? If not, remove these frames from {predictions}"
        )
    if names and all(len(true) > 1 and true[1:] == predicted[:-1] and true[0] != predicted[0] for true, predicted in names):
        (first, *_), (shifted, *_, last) = names[0]
        return (
            f"{predictions}: has frames {shifted} to {last} where the truth begins with {first}, and so in every video: if the "
            "predictions are numbered from another frame on, rename them; if not, remove the last one of every video"
        )
    return None


def _no_videos(folder: Path, role: str) -> str:
    if _files(folder):
        return f"{folder}: holds PNG files where video folders are expected; give its parent as {role}"
    for inside in ("Annotations/480p", "Annotations"):
        if (folder / inside).is_dir():
            return f"{folder}: has no video folders at its top; give {folder / inside} as {role}"
    held = list_folders(folder)
    return (
        f"{folder}: holds {'folders ' + _some(held) if held else 'no video folders'}; give the folder of video folders as {role}"
    )


def _files(folder: Path) -> dict[str, Path]:
    """Stem -> PNG file in natural order; empty if there is no folder."""
    return list_files(folder, (".png",)) if folder.is_dir() else {}


def _some(names: Sequence[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """Label maps that are read one by one when they are accessed."""

    paths: Sequence[Path | None]
    read: Callable[[Path | None], UInt8[np.ndarray, "H W"]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W"]:
        return self.read(self.paths[index])

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W"]]:
        return map(self.read, self.paths)


class _Reader:
    """Reads truth and predictions of a video, frame by frame, in the form that the protocol needs."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self.target, self.preds = _Frames(task.truth, self._true), _Frames(task.predictions, self._predicted)
        self.size: tuple[int, ...] | None = None
        self.highest_id: int | None = None
        """Highest id of the truth, if the protocol forbids higher ones."""
        self.true_ids: set[int] = set()
        self.predicted_ids: set[int] = set()

    def find_highest_id(self) -> None:
        """Look at the first true frame, if the protocol takes the objects from it.

        Raises:
            NothingToScoreError: it shows no object.
        """
        if self.task.protocol == "davis17":
            self.highest_id = len(davis.scored_ids(self.target, "davis17"))
            if not self.highest_id:
                raise NothingToScoreError(
                    f"{self.task.truth[0]}: holds no object id; davis17 scores the objects of the first true frame"
                )

    @cached_property
    def _has_void(self) -> bool:
        """Whether 255 means void in the truth: it does if ids occur too. All frames decide, as one may show void only."""
        return any(set(ids_in(_read(path))) - {IGNORE_LABEL} for path in self.task.truth)

    def _true(self, path: Path | None) -> UInt8[np.ndarray, "H W"]:
        assert path is not None
        label_map = self._of_size(path, _read(path))
        if self.task.protocol == "davis16":
            return label_map
        if label_map.max() == IGNORE_LABEL and not self._has_void:
            label_map = _white_is_one(path, label_map)
        if self.task.protocol in GROUPED:
            self.true_ids.update(ids_in(label_map))
        return label_map

    def _predicted(self, path: Path | None) -> UInt8[np.ndarray, "H W"]:
        if path is None:
            assert self.size is not None
            return np.zeros(self.size, dtype=np.uint8)
        label_map = self._of_size(path, _read(path))
        if self.task.protocol == "davis16":
            return label_map
        highest = int(label_map.max())
        if highest == IGNORE_LABEL:
            label_map = _white_is_one(path, label_map)
            highest = 1
        if self.highest_id is not None and highest > self.highest_id:
            raise ValueError(
                f"{path}: holds id {highest}, but the first true frame has ids up to {self.highest_id}; write the ids of the "
                "truth, not other values or colours, and check the folders are not swapped"
            )
        if self.task.protocol in GROUPED:
            self.predicted_ids.update(ids_in(label_map))
        return label_map

    def _of_size(self, path: Path, label_map: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        self.size = label_map.shape if self.size is None else self.size
        if label_map.shape != self.size:
            wrong, right = (f"{shape[1]} x {shape[0]}" for shape in (label_map.shape, self.size))
            raise ValueError(f"{path}: {wrong} pixels where the truth has {right}; write predictions at the size of the truth")
        return label_map

    def problems(self) -> list[str]:
        """Problems of the files: for truth and predictions each, the first bad file and the number of further ones."""
        found = []
        for frames, indices in ((self.target, range(len(self.target))), (self.preds, self.task.scored)):
            bad = []
            for index in indices:
                try:
                    frames[index]
                except (ValueError, FileNotFoundError) as error:
                    bad.append(str(error))
            if bad:
                found.append(bad[0] + (f" (and {len(bad) - 1} more files of this video)" if len(bad) > 1 else ""))
        return found


def _read(path: Path) -> UInt8[np.ndarray, "H W"]:
    label_map = read_plain_png(path)
    if label_map is None:
        # Imported for unusual files only: PyTorch takes longer to import than a small data set takes to score.
        from vos_lightning.io.label_maps import read_label_map

        label_map = read_label_map(path).numpy()
    return label_map


def _white_is_one(path: Path, label_map: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    import torch

    from vos_lightning.mask_ops import as_object_map

    try:
        return as_object_map(torch.from_numpy(label_map)).numpy()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# Scoring --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scored:
    """The result of scoring a video."""

    rows: Sequence[ObjectScores] = ()
    problems: Sequence[str] = ()
    surplus_ids: tuple[int, ...] = ()
    """Predicted ids that the truth does not have."""
    is_blank: bool = False
    """Whether the truth shows nothing that could be scored."""


def _score_all(tasks: Sequence[_Task], workers: int | None) -> Iterator[_Scored]:
    if workers is None:
        frames = sum(len(task.truth) for task in tasks)
        workers = min(_available_cpus(), MAX_WORKERS, frames // FRAMES_PER_WORKER)
    workers = min(workers, len(tasks))
    if workers <= 1:
        # Inflating a file and measuring contours let other threads of Python work: two videos take little longer than one.
        with ThreadPoolExecutor(min(THREADS, _available_cpus())) as threads:
            yield from threads.map(_score, tasks)
        return
    # Forking a process with PyTorch threads can hang. A fork server starts without them and imports the library once.
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(_score, tasks)


def _score(task: _Task) -> _Scored:
    """Scores of a video, or the problems of its files."""
    reader = _Reader(task)
    try:
        reader.find_highest_id()
        rows = evaluate_video(reader.preds, reader.target, task.protocol, task.name, task.unseen_ids)
    except NothingToScoreError as error:
        problems = _Reader(task).problems()
        if not problems and task.protocol == "davis17" and any(ids_in(label_map) for label_map in reader.target):
            problems = [str(error)]
        return _Scored(problems=problems, is_blank=not problems)
    except (ValueError, FileNotFoundError) as error:
        return _Scored(problems=reader.problems() or [f"{task.truth[0].parent}: {error}"])
    return _Scored(rows, surplus_ids=tuple(sorted(reader.predicted_ids - reader.true_ids)))


# Command line ---------------------------------------------------------------------------------------------------------


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


def _available_cpus() -> int:
    """Number of CPUs that this process may use, which a cluster may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
