"""``python -m vos_lightning doctor DIR ...``."""

from __future__ import annotations

import argparse
import json
import os
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


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0 if there is no problem, 1 if there is one. Notes do not count as problems.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a folder holds no data set in a known layout.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vos_lightning doctor",
        description="Check data sets on disk: counts beside the published figures, missing, damaged and hidden files, files that "
        "are not valid masks, sizes, ids. Exit code 1 if there is a problem.",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="root of a data set, or a folder of data sets")
    parser.add_argument("--fix", action="store_true", help="repair what is safe; originals are kept beside the data set")
    parser.add_argument("--deep", action="store_true", help="decode every frame (default: its header and its end)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--all", action="store_true", help="print every finding")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: number of CPUs)")
    known = parser.parse_args(argv)
    console = Console(stderr=known.json)
    reports: list[SplitReport] = []
    for root in known.folders:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: there is no such folder")
        found = _check(root, known.workers, known.deep)
        fixable = [finding for report in found for finding in report.total.findings if finding.fixable]
        if known.fix and fixable:
            for line in dict.fromkeys(line for report in found for line in fix(report.split.root, report.total.findings)):
                console.print(line, highlight=False, soft_wrap=True)
            found = _check(root, known.workers, known.deep)
        reports += found
    findings = list(dict.fromkeys(finding for report in reports for finding in report.total.findings))
    if known.json:
        sys.stdout.write(
            json.dumps({"splits": list(map(_plain, reports)), "findings": list(map(asdict, findings))}, indent=2) + "\n"
        )
    else:
        console.print(_table(reports))
        _print(findings, SHOWN if not known.all else len(findings), console)
    return int(any(finding.level == "problem" for finding in findings))


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
