"""The videos of two folders that are to be scored against each other, found before any file is read."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vos_lightning.io.files import list_files, list_folders, natural_key
from vos_lightning.io.outputs import mask_folder
from vos_lightning.metrics.protocols import GROUPED
from vos_lightning.metrics.scores import Protocol

PathLike = str | os.PathLike[str]
NUM_NAMED = 5
"""Number of files or folders that a message names; the others are only counted."""


class EvaluationError(ValueError):
    """Folders that cannot be scored; ``problems`` holds one line for each problem, with the file and what to do about it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Task:
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
        return range(len(self.truth))[scored_frames(self.protocol)]


@dataclass
class Found:
    """Tasks, problems and notes that were found in the folders."""

    tasks: list[Task] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scored_frames(protocol: Protocol) -> slice:
    """The frames of a video that a protocol scores."""
    return slice(1, None) if protocol in GROUPED else slice(1, -1)


def find_tasks(
    truth: Path,
    predictions: Path,
    protocol: Protocol,
    videos: Sequence[str] | None,
    unseen: Mapping[str, Collection[int]],
) -> Found:
    """The videos to score, and what is wrong or missing in the folders; the arguments are those of ``evaluate_folder``."""
    for role, folder in (("truth", truth), ("predictions", predictions)):
        if not folder.is_dir():
            return Found(problems=[f"{folder}: the {role} folder does not exist; give a folder of video folders"])
    predictions = mask_folder(predictions)
    if truth.resolve() == predictions.resolve():
        same = f"{truth}: truth and predictions are the same folder; give the folder that your predictions were written to"
        return Found(problems=[same])
    names = sorted(set(videos), key=natural_key) if videos is not None else list_folders(truth)
    true, predicted = ({name: _files(folder / name) for name in names} for folder in (truth, predictions))
    if not any(true.values()):
        return Found(problems=[_no_videos(truth, "truth")])
    lacking = [name for name in names if not (predictions / name).is_dir()]
    if len(lacking) == len(names):
        none = f"{_no_videos(predictions, 'predictions')} (none of the {len(names)} true videos is in it)"
        return Found(problems=[none])
    misnamed = _misnamed(truth, predictions, [(true[name], predicted[name]) for name in names if predicted[name]], protocol)
    if misnamed:
        return Found(problems=[misnamed])
    found = Found()
    surplus = {}
    for name in names:
        problem = _missing(truth / name, predictions / name, true[name], None if name in lacking else predicted[name], protocol)
        if problem:
            found.problems.append(problem)
            continue
        paths = tuple(predicted[name].get(stem) for stem in true[name])
        found.tasks.append(Task(name, tuple(true[name].values()), paths, protocol, tuple(unseen.get(name, ()))))
        surplus[name] = len(predicted[name].keys() - true[name].keys())
    if lacking:
        found.notes.append(
            f"nothing is predicted for {len(lacking)} of {len(names)} videos ({some(lacking)}); they count as blank predictions"
        )
    if any(surplus.values()):
        where = [name for name, count in surplus.items() if count]
        found.notes.append(
            f"{sum(surplus.values())} predicted frames without a true one are ignored, in {len(where)} videos ({some(where)})"
        )
    strangers = [] if videos is not None else [name for name in list_folders(predictions) if name not in true]
    if strangers:
        found.notes.append(f"{len(strangers)} predicted videos without a true one are ignored ({some(strangers)})")
    return found


def _missing(
    truth: Path, predictions: Path, true: Mapping[str, Path], predicted: Mapping[str, Path] | None, protocol: Protocol
) -> str | None:
    """The problem with the files of a video, or None; without a folder of predictions no predictions are expected."""
    if not truth.is_dir():
        return f"{truth}: the truth of this video is missing; correct the list of videos or the truth folder"
    needed = list(true)[scored_frames(protocol)]
    if not needed:
        skipped, fewest = ("first frame is", 2) if protocol in GROUPED else ("first and the last frame are", 3)
        return f"{truth}: {len(true)} PNG files; the {skipped} skipped, so at least {fewest} are needed"
    missing = [] if predicted is None else [stem for stem in needed if stem not in predicted]
    if missing:
        swapped = " (or have truth and predictions been swapped?)" if predicted and 2 * len(missing) > len(needed) else ""
        listed = f"{len(missing)} of {len(needed)} frames are missing ({some(missing)})"
        return f"{predictions}: {listed}; predict every frame{swapped}"
    return None


def _misnamed(
    truth: Path, predictions: Path, matched: Sequence[tuple[Mapping[str, Path], Mapping[str, Path]]], protocol: Protocol
) -> str | None:
    """Predictions that have all expected names but are shifted by some frames in every video."""
    names = [(list(true), list(predicted)) for true, predicted in matched if true]
    if names and all(true == predicted[scored_frames(protocol)] for true, predicted in names):
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
        f"{folder}: holds {'folders ' + some(held) if held else 'no video folders'}; give the folder of video folders as {role}"
    )


def _files(folder: Path) -> dict[str, Path]:
    """Stem -> PNG file in natural order; empty if there is no folder."""
    return list_files(folder, (".png",)) if folder.is_dir() else {}


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
