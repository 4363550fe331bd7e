"""What the doctor finds in folders of data sets, printed as tables or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_modules.doctor.checks import SplitReport, check_split
from data_modules.doctor.files import Finding
from data_modules.doctor.fixes import fix
from data_modules.doctor.layouts import recognise

SHOWN = 5
"""Number of findings of a kind that are printed in full; the others are counted (``--all`` prints them)."""


def diagnose(
    folders: Sequence[Path], workers: int, deep: bool = False, repair: bool = False, every: bool = False, as_json: bool = False
) -> bool:
    """Check data sets and print what was found.

    Args:
        folders: roots of data sets, or folders of data sets.
        workers: number of threads.
        deep: decode every frame.
        repair: repair what is safe.
        every: print every finding.
        as_json: print JSON.

    Returns:
        Whether there is no problem. Notes do not count as problems.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a folder holds no data set in a known layout.
    """
    console = Console(stderr=as_json)
    reports: list[SplitReport] = []
    for root in folders:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: there is no such folder")
        found = _check(root, workers, deep)
        fixable = [finding for report in found for finding in report.total.findings if finding.fixable]
        if repair and fixable:
            for line in dict.fromkeys(line for report in found for line in fix(report.split.root, report.total.findings)):
                console.print(line, highlight=False, soft_wrap=True)
            found = _check(root, workers, deep)
        reports += found
    findings = list(dict.fromkeys(finding for report in reports for finding in report.total.findings))
    if as_json:
        sys.stdout.write(
            json.dumps({"splits": list(map(_plain, reports)), "findings": list(map(asdict, findings))}, indent=2) + "\n"
        )
    else:
        console.print(_table(reports))
        _print(findings, SHOWN if not every else len(findings), console)
    return not any(finding.level == "problem" for finding in findings)


def _check(root: Path, workers: int, deep: bool) -> list[SplitReport]:
    splits = recognise(root)
    if not splits:
        raise ValueError(
            f"{root} holds no data set in a known layout: JPEGImages/<video>/<frame>.jpg with Annotations/<video>/<frame>.png "
            "(also by resolution or by split), or folders of images and masks"
        )
    return [check_split(split, workers, deep, progress=True) for split in splits]


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
        console.print(f"--fix repairs {fixable} of them; originals are kept in a folder beside the data set", highlight=False)
