"""What the doctor finds in data sets and stored proposals, printed as tables or as JSON."""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_modules.base import VOSDataModule
from data_modules.doctor.checks import SplitReport, check_split
from data_modules.doctor.files import Finding
from data_modules.doctor.fixes import fix
from data_modules.doctor.layouts import recognise
from data_modules.doctor.proposals import ProposalReport, Unchecked, check_needed, check_stored, find_stored

SHOWN = 5
"""Number of findings of a kind that are printed in full; the others are counted (``--all`` prints them)."""


AnyReport = SplitReport | ProposalReport | Unchecked


@dataclass(frozen=True)
class Reading:
    """What an experiment reads."""

    name: str
    """Name of the experiment."""
    data: VOSDataModule
    roots: tuple[Path, ...] = ()
    """Folders of the data sets that it names."""
    trains: bool = True
    """Whether it is trained, and not only evaluated."""


def diagnose(
    folders: Sequence[Path],
    workers: int,
    deep: bool = False,
    repair: bool = False,
    every: bool = False,
    as_json: bool = False,
    experiments: Sequence[Reading] = (),
) -> bool:
    """Check data sets and stored proposals, and print what was found.

    Args:
        folders: roots of data sets, folders of proposals, or folders of these.
        workers: number of threads.
        deep: decode every frame.
        repair: repair what is safe.
        every: print every finding.
        as_json: print JSON.
        experiments: experiments whose data sets and proposals are checked as well.

    Returns:
        Whether there is no problem. Notes do not count as problems.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a folder holds neither a data set in a known layout nor proposals.
    """
    console = Console(stderr=as_json)
    checks: list[Callable[[], Sequence[AnyReport]]] = [functools.partial(_check, root, workers, deep) for root in folders]
    roots = dict.fromkeys(root for reading in experiments for root in reading.roots)  # stages often read the same
    checks += [functools.partial(_check_named, root, workers, deep) for root in roots]
    checks += [
        functools.partial(check_needed, reading.name, reading.data, reading.trains, workers, progress=True)
        for reading in experiments
    ]
    reports: list[AnyReport] = []
    for check in checks:
        found = check()
        if repair and any(finding.fixable for report in found for finding in report.total.findings):
            for line in dict.fromkeys(line for report in found for line in _fix(report)):
                console.print(line, highlight=False, soft_wrap=True)
            found = check()
        reports += found
    findings = list(dict.fromkeys(finding for report in reports for finding in report.total.findings))
    splits = [report for report in reports if isinstance(report, SplitReport)]
    proposals = [report for report in reports if isinstance(report, ProposalReport)]
    if as_json:
        content = {
            "splits": list(map(_plain, splits)),
            "proposals": list(map(_plain_proposals, proposals)),
            "findings": list(map(asdict, findings)),
        }
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        if splits:
            console.print(_table(splits))
        if proposals:
            console.print(_table_of_proposals(proposals))
        if not reports:
            console.print("no data set and no stored proposals are read: there is nothing to check", highlight=False)
        _print(findings, SHOWN if not every else len(findings), console)
    return not any(finding.level == "problem" for finding in findings)


def _check(root: Path, workers: int, deep: bool) -> list[AnyReport]:
    """Check all that is in a folder which the user names."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    splits, stored = recognise(root), find_stored(root)
    if not splits and not stored:
        raise ValueError(
            f"{root} holds no data set in a known layout: JPEGImages/<video>/<frame>.jpg with Annotations/<video>/<frame>.png "
            "(also by resolution or by split), or folders of images and masks; nor stored proposals"
        )
    return [
        *(check_split(split, workers, deep, progress=True) for split in splits),
        *(check_stored(folder, workers, progress=True) for folder in stored),
    ]


def _check_named(root: Path, workers: int, deep: bool) -> list[AnyReport]:
    """Check a data set which an experiment names."""
    splits = recognise(root) if root.is_dir() else []
    if splits:
        return [check_split(split, workers, deep, progress=True) for split in splits]
    unknown = Unchecked()
    unknown.total.add("unknown-layout", root, "not checked: the layout is none that the doctor knows", "note")
    return [unknown] if root.is_dir() else []  # a folder that is missing is named by the data module


def _fix(report: AnyReport) -> list[str]:
    if isinstance(report, SplitReport):
        return fix(report.split.root, report.total.findings)
    roots = report.roots if isinstance(report, ProposalReport) else ()
    own = [[finding for finding in report.total.findings if Path(finding.path).is_relative_to(root)] for root in roots]
    return [line for root, findings in zip(roots, own, strict=True) for line in fix(root, findings)]


def _plain(report: SplitReport) -> dict[str, Any]:
    return {
        "root": str(report.split.root),
        "layout": report.split.kind,
        "split": report.split.name,
        "release": report.known.release if report.known else None,
        "videos": report.videos,
        "frames": report.total.frames,
        "masks": report.total.masks,
        "objects": report.total.objects,
        "published": asdict(report.known) if report.known else None,
    }


def _plain_proposals(report: ProposalReport) -> dict[str, Any]:
    least, median, most = _spread(report.counts)
    return {
        "name": report.name,
        "roots": list(map(str, report.roots)),
        "generators": sorted(report.generators),
        "wanted": report.wanted,
        "files": report.files,
        "frames": len(report.counts),
        "proposals_a_frame": {"min": least, "median": median, "max": most},
        "frames_without": report.counts.count(0),
    }


def _spread(counts: Sequence[int]) -> tuple[int | None, float | None, int | None]:
    return (min(counts), float(statistics.median(counts)), max(counts)) if counts else (None, None, None)


def _table_of_proposals(reports: Sequence[ProposalReport]) -> Table:
    table = Table(caption="files: found / needed; proposals a frame: least, median, most; frames without any")
    for header, width in (("proposals", 14), ("generator", 9)):
        table.add_column(header, overflow="fold", min_width=width)
    for header in ("files", "frames", "a frame", "without", "problems"):
        table.add_column(header, justify="right")
    for report in reports:
        counts = report.counts
        table.add_row(
            report.name,
            ", ".join(sorted(report.generators)),
            _beside(report.files, report.wanted),
            str(len(counts)),
            ", ".join("-" if value is None else f"{value:g}" for value in _spread(counts)),
            str(counts.count(0)),
            str(sum(finding.level == "problem" for finding in report.total.findings)),
        )
    return table


def _table(reports: Sequence[SplitReport]) -> Table:
    table = Table("split", "release", caption="found / published")
    for header in ("videos", "frames", "masks", "objects", "problems"):
        table.add_column(header, justify="right", no_wrap=True)
    for report in reports:
        split, total, known = report.split, report.total, report.known
        table.add_row(
            split.name if split.root.name == split.name else f"{split.root.resolve().name} {split.name}",
            known.release if known else f"none ({split.kind})",
            _beside(report.videos, known.videos if known else None),
            _beside(total.frames, known.frames if known and split.kind != "images" else None),
            str(total.masks),
            _beside(total.objects, known.objects if known else None) if split.kind != "images" else "",
            str(sum(finding.level == "problem" for finding in total.findings)),
        )
    return table


def _beside(found: int, published: int | None) -> str:
    return str(found) if published is None else f"{found} / {published}"


def _print(findings: Sequence[Finding], shown: int, console: Console) -> None:
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda one: one.level != "problem"):
        by_kind.setdefault((finding.level, finding.kind), []).append(finding)
    for (level, kind), members in by_kind.items():
        console.print(f"{level}: {kind} ({len(members)})", style="yellow" if level == "note" else "red", highlight=False)
        for finding in members[:shown]:
            console.print(f"  {finding.path}: {finding.message}", highlight=False, markup=False, soft_wrap=True)
        if len(members) > shown:
            console.print(f"  ... and {len(members) - shown} more (--all prints them)", highlight=False)
    fixable = sum(finding.fixable for finding in findings)
    if fixable:
        console.print(f"--fix repairs {fixable} of them; originals are kept in a folder beside theirs", highlight=False)
