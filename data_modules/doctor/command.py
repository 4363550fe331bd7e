"""``vos doctor DIR ...``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0 if there is no problem, 1 if there is one. Notes do not count as problems.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a folder holds no data set in a known layout.
    """
    parser = argparse.ArgumentParser(
        prog="vos doctor",
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
    from data_modules.doctor.diagnosis import diagnose

    healthy = diagnose(known.folders, known.workers, known.deep, known.fix, known.all, known.json)
    return 0 if healthy else 1
