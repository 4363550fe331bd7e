"""Checks of stored proposals: those that an experiment reads, and those in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from data_modules.base import VOSDataModule
from data_modules.clips.dataset import ItemNames
from data_modules.clips.proposals import needed_proposals
from data_modules.doctor.files import Report
from data_modules.doctor.layouts import recognise, subfolders
from data_modules.proposals import StoredProposals
from vos_lightning.io.files import find_files, list_everything, list_files, one_line, target_of_temporary
from vos_lightning.io.images import IMAGE_SUFFIXES, read_header
from vos_lightning.proposals.store import Found, ProposalFile
from vos_lightning.structures import LazySequence

DEPTH = 3
"""Number of levels below a folder at which folders of proposals are looked for (``data/proposals/<generator>/<data set>``)."""
TRIED = 20
"""Number of archives of a folder of which one has to hold proposals, so that the others are taken for damaged ones."""
SLACK = 1.0
"""Pixels by which a box may lie outside of its frame, as programs count the last pixel in different ways."""
CHUNK = 64
"""Number of frames that are read from a file at once."""
_OF_A_FILE = frozenset({"version", "frames", "counts", "frame_size"})
"""Keys of a header that differ between files of one detector."""
AGAIN = "remove the file and compute it anew"


@dataclass
class ProposalReport:
    """What was found in the proposals of an experiment, or in a folder of proposals."""

    name: str
    """Experiment or folder."""
    roots: tuple[Path, ...]
    """Folders of the files."""
    wanted: int | None = None
    """Number of videos and images that need a file; None for a folder, of which nobody knows."""
    files: int = 0
    """Number of files that can be read."""
    counts: list[int] = field(default_factory=list)
    """Number of proposals of every frame."""
    generators: set[str] = field(default_factory=set)
    total: Report = field(default_factory=Report)


@dataclass
class Unchecked:
    """What could not be checked, and why."""

    total: Report = field(default_factory=Report)


@dataclass
class _Checked:
    """What was found in a file."""

    path: Path
    file: ProposalFile | None = None
    """None if it cannot be read."""
    counts: list[int] = field(default_factory=list)
    report: Report = field(default_factory=Report)


# Of an experiment, and in folders ---------------------------------------------------------------------------------------


def check_needed(
    name: str, data: VOSDataModule, trains: bool, workers: int = 1, progress: bool = False
) -> list[ProposalReport | Unchecked]:
    """Check the stored proposals of every video and image that an experiment reads.

    Args:
        name: name of the experiment.
        data: its data module.
        trains: whether the experiment is trained; otherwise its clips are not looked at.
        workers: number of threads.
        progress: show a bar on stderr.

    Returns:
        A report for every source of stored proposals, none if the experiment reads none; and one of data that are not there.
    """
    unreadable = Unchecked()

    def found(part: str, find: Callable[[], Any]) -> Any:
        try:
            return find()
        except (ValueError, OSError) as error:
            unreadable.total.add("missing-data", Path(name), f"its {part} cannot be found: {one_line(error)}")
            return ()

    clips = [source for source, _ in found("training clips", lambda: data.training_parts)] if trains else []
    videos: list[LazySequence[Any]] = [
        found("validation videos", lambda: data.videos("validate")),
        found("test videos", lambda: data.videos("test")),
    ]
    reports = [
        _check_source(name, proposals, items, workers, progress)
        for proposals, items in needed_proposals({id(source): source for source in clips}.values(), videos)
        if isinstance(proposals, StoredProposals)
    ]
    return [*reports, *([unreadable] if unreadable.total.findings else [])]


def find_stored(root: Path, depth: int = DEPTH) -> list[Path]:
    """Folders of proposals in a folder, each with all files below it.

    Args:
        root: the folder; data sets below it are passed over.
        depth: number of levels that are searched.
    """
    archives = [path for path in list_everything(root) if path.suffix == ".npz" and not path.name.startswith(".")]
    if archives:
        return [root] if any(map(_holds_proposals, archives[:TRIED])) else []
    if depth == 0 or recognise(root, depth=0):
        return []
    return [found for name in subfolders(root) for found in find_stored(root / name, depth - 1)]


def check_stored(root: Path, workers: int = 1, progress: bool = False) -> ProposalReport:
    """Check every file in a folder of proposals by itself, and that one detector has made them all.

    Args:
        root: the folder, see :func:`find_stored`.
        workers: number of threads.
        progress: show a bar on stderr.
    """
    report = ProposalReport(str(root), (root,))
    _merge(report, _map(check_file, find_files(root, {".npz"}), workers, progress, report.name))
    return report


def _holds_proposals(path: Path) -> bool:
    try:
        ProposalFile(path)
    except (ValueError, OSError):
        return False
    return True


def _check_source(name: str, source: StoredProposals, items: Iterable[ItemNames], workers: int, progress: bool) -> ProposalReport:
    wanted: dict[str, ItemNames] = {}
    for item in items:
        known = wanted.get(item.name)
        # A video may be trained on and evaluated: clips need its labelled frames, an evaluation needs all of them.
        both = {**known.frames, **item.frames} if known and known.frames is not None and item.frames is not None else item.frames
        wanted[item.name] = item._replace(frames=both)
    report = ProposalReport(name, tuple(source.roots), len(wanted))
    there = _places(source, wanted, report.total)

    def check(video: str) -> _Checked:
        checked = check_file(there[video])
        if checked.file is not None:
            _compare(checked.file, wanted[video], source, checked.report)
        return checked

    _merge(report, _map(check, list(there), workers, progress, name))
    most = max(report.counts, default=source.num_proposals)
    if most == 0:
        message = f"nothing was found in any of {len(report.counts)} frames: no object can be matched, take another detector"
        report.total.add("nothing-found", source.roots[-1], message)
    elif most < source.num_proposals:
        message = f"no frame has more than {most} proposals, of which the experiment takes {source.num_proposals}"
        report.total.add("few-proposals", source.roots[-1], message, "note")
    return report


def _places(source: StoredProposals, wanted: Mapping[str, ItemNames], report: Report) -> dict[str, Path]:
    """The files that are there, by the name of the video or image; missing ones are reported."""
    there: dict[str, Path] = {}
    missing: dict[str, Path] = {}
    for video in wanted:
        try:
            place = source.place(video)
        except ValueError as error:
            report.add("leads-outside", source.roots[-1], str(error))
        else:
            (there if place.is_file() else missing)[video] = place
    folders = ", ".join(map(str, source.roots))
    for video, place in missing.items():
        none = not there and len(missing) > 1
        more = f", or of any other of {len(wanted)} videos or images," if none else ""
        message = f"there are no proposals of {video}{more} in {folders}: compute them with `{source.command(wanted[video])}`"
        report.add("missing-proposals", place, message)
        if none:  # one line for all of them, which may be a hundred thousand
            break
    return there


def _map(check: Callable[[Any], _Checked], values: Sequence[Any], workers: int, progress: bool, name: str) -> Iterator[_Checked]:
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        console = Console(stderr=True)
        yield from track(
            pool.map(check, values), f"{name}: proposals", len(values), console=console, transient=True, disable=not progress
        )


def _merge(report: ProposalReport, files: Iterable[_Checked]) -> None:
    """Add what was found in every file, and compare the settings with which they were made."""
    settings: dict[str, list[Path]] = {}
    for file in files:
        report.total.findings += file.report.findings
        if file.file is not None:
            report.files += 1
            report.counts += file.counts
            report.generators.add(str(file.file.header.get("generator", "unknown")))
            own = {key: value for key, value in file.file.header.items() if key not in _OF_A_FILE}
            settings.setdefault(json.dumps(own, sort_keys=True), []).append(file.path)
            if not any(file.counts):
                report.total.add("nothing-found", file.path, "the detector has found nothing in any of its frames", "note")
    usual, *others = sorted(settings, key=lambda key: len(settings[key]), reverse=True) or ["{}"]
    for other in others:
        one, two = json.loads(usual), json.loads(other)
        differing = [key for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
        values = ", ".join(f"{key} {two.get(key)}, not {one.get(key)}" for key in differing)
        for path in settings[other]:
            message = f"made with other settings than {len(settings[usual])} of {report.files} files ({values}): {AGAIN}"
            report.total.add("other-settings", path, message)
    report.total.frames = len(report.counts)
    for root in filter(Path.is_dir, report.roots):
        for path in list_everything(root):
            if target_of_temporary(path.name) is not None:
                message = "a process that was killed has left it: remove it, unless proposals are being computed there now"
                report.total.add("temporary-file", path, message, "note")


# One file -----------------------------------------------------------------------------------------------------------------


def check_file(path: Path) -> _Checked:
    """Read a file of proposals as a whole, and check its values."""
    checked = _Checked(path)
    try:
        file = ProposalFile(path)
        problems = _Problems(file.header)
        if not file.frames:
            raise ValueError(f"it has no frames: {AGAIN}")
        for start in range(0, len(file.frames), CHUNK):
            names = file.frames[start : start + CHUNK]
            for name, found in zip(names, file.read(names), strict=True):
                checked.counts.append(len(found.scores))
                problems.look_at(name, found)
        checked.file = file
    except (ValueError, OSError) as error:
        # It is fixed by moving it away, so that `precompute-proposals` computes it anew.
        checked.report.add("damaged-proposals", path, one_line(error).removeprefix(f"{path}: "), fixable=True)
        return checked
    if file.header.get("counts") not in (None, checked.counts):
        problems.found["other numbers of proposals than its header records"] = list(file.frames)
    for kind, names in problems.found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        checked.report.add("wrong-proposals", path, f"{kind}, in frame {names[0]!r}{more}: {AGAIN}", fixable=True)
    return checked


class _Problems:
    """What is wrong with the frames of a file: every kind with its frames."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        self.found: dict[str, list[str]] = {}
        size, self.most, self.num_classes = (header.get(key) for key in ("frame_size", "top_k", "num_classes"))
        self.limit = None if size is None else torch.tensor([size[1], size[0]]).repeat(2) + SLACK

    def look_at(self, name: str, found: Found) -> None:
        """Look at the proposals of a frame."""
        boxes, scores, labels = found.boxes, found.scores, found.labels
        if not bool(boxes.isfinite().all() & scores.isfinite().all()):
            self.found.setdefault("boxes or scores that are not finite", []).append(name)
            return
        beyond = self.limit is not None and bool((boxes > self.limit).any())
        strange = isinstance(self.num_classes, int) and bool((labels >= self.num_classes).any())
        wrong = {
            "boxes outside of the frame": beyond or bool((boxes < -SLACK).any()),
            "boxes whose right or lower edge comes first": bool((boxes[:, 2:] < boxes[:, :2]).any()),
            "scores outside of [0, 1]": bool(((scores < 0) | (scores > 1)).any()),
            "proposals that do not begin with the best ones, as the first ones are taken": bool((scores.diff() > 0).any()),
            f"more than {self.most} proposals (top_k)": isinstance(self.most, int) and len(scores) > self.most,
            f"classes outside of 0 to {self.num_classes} (num_classes)": strange or bool((labels < 0).any()),
        }
        for kind in [kind for kind, there in wrong.items() if there]:
            self.found.setdefault(kind, []).append(name)


def _compare(file: ProposalFile, item: ItemNames, source: StoredProposals, report: Report) -> None:
    """Compare a file with the video or image that it belongs to, and with the detector that the experiment demands."""
    generator = file.header.get("generator")
    if source.generator not in (None, generator):
        message = f"made by {generator!r}, not by {source.generator!r}: {AGAIN} with that detector"
        report.add("other-generator", file.path, message)
    if item.frames is None:
        if len(file.frames) != 1:
            message = f"proposals of {len(file.frames)} frames for an image: remove the file and compute it anew with --stills"
            report.add("wrong-frames", file.path, message)
    else:
        _raised(report, "wrong-frames", file.path, lambda: file.check(list((item.frames or {}).values())))
    if item.image:
        _raised(report, "unreadable-image", Path(item.image), lambda: _compare_images(file, item, report))


def _compare_images(file: ProposalFile, item: ItemNames, report: Report) -> None:
    width, height = read_header(item.image).size
    _raised(report, "wrong-size", file.path, lambda: file.check([], (height, width)))
    if file.header.get("frame_size") is None:
        report.add("no-size", file.path, "it does not record frame_size, so that frames of another size pass", "note")
    if item.frames is not None:
        folder = Path(item.image).parent
        images = list_files(folder, IMAGE_SUFFIXES)
        beyond = [name for name in file.frames if name not in images]
        if beyond:
            message = f"proposals of {len(beyond)} frames that {folder} has not, first {beyond[0]!r}: one of them is another copy"
            report.add("more-frames", file.path, message, "note")


def _raised(report: Report, kind: str, path: Path, check: Callable[[], None]) -> None:
    """Report the error of a check."""
    try:
        check()
    except (ValueError, OSError) as error:
        report.add(kind, path, one_line(error).removeprefix(f"{path}: "))
