"""Score folders of predicted label maps against the truth: no network, the same metric as in validation."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from vos_lightning.evaluation.reading import VideoReader
from vos_lightning.evaluation.tasks import EvaluationError, PathLike, Task, find_tasks, some
from vos_lightning.io.files import write_atomically
from vos_lightning.metrics.functional import ids_in
from vos_lightning.metrics.protocols import check_protocol, describe, evaluate_video, summarize
from vos_lightning.metrics.scores import NothingToScoreError, ObjectScores, Protocol

THREADS = 2
"""Number of videos that one process scores at a time."""
MAX_WORKERS, FRAMES_PER_WORKER = 16, 150
"""Most processes by default, and frames for each: a node with many CPUs is shared, and every process takes time to start."""


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
    found = find_tasks(Path(truth), Path(predictions), protocol, videos, unseen or {})
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
        notes.append(f"{len(blank)} videos without an object to score are left out ({some(blank)})")
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
    found = find_tasks(Path(truth), Path(predictions), protocol, videos, {})
    if found.problems:
        raise EvaluationError(found.problems)
    for task in found.tasks:
        reader = VideoReader(task)
        try:
            reader.find_highest_id()
            target = np.stack([*reader.target])
            preds = np.zeros_like(target)
            for index in task.scored:
                preds[index] = reader.preds[index]
        except (ValueError, FileNotFoundError) as error:
            raise EvaluationError(reader.problems() or [str(error)]) from error
        yield task.name, tuple(path.stem for path in task.truth), preds, target


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


def _score_all(tasks: Sequence[Task], workers: int | None) -> Iterator[_Scored]:
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


def _score(task: Task) -> _Scored:
    """Scores of a video, or the problems of its files."""
    reader = VideoReader(task)
    try:
        reader.find_highest_id()
        rows = evaluate_video(reader.preds, reader.target, task.protocol, task.name, task.unseen_ids)
    except NothingToScoreError as error:
        problems = VideoReader(task).problems()
        if not problems and task.protocol == "davis17" and any(ids_in(label_map) for label_map in reader.target):
            problems = [str(error)]
        return _Scored(problems=problems, is_blank=not problems)
    except (ValueError, FileNotFoundError) as error:
        return _Scored(problems=reader.problems() or [f"{task.truth[0].parent}: {error}"])
    return _Scored(rows, surplus_ids=tuple(sorted(reader.predicted_ids - reader.true_ids)))


def _available_cpus() -> int:
    """Number of CPUs that this process may use, which a cluster may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
