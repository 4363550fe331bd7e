"""``vos submit --server davis17-testdev --predictions DIR [--data DIR] --output FILE.zip``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from data_modules.submission.servers import Server
from vos_lightning.io.overlaps import claim_file


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="vos submit", description="Check predictions and zip them for an evaluation server.")
    parser.add_argument("--server", choices=get_args(Server), required=True)
    parser.add_argument(
        "--predictions", type=Path, required=True, help="folder of video folders of PNGs, or the output of test or predict"
    )
    parser.add_argument("--data", type=Path, help="root of the data set, with which frames, sizes and ids are compared")
    parser.add_argument("--output", type=Path, required=True, help="the zip file")
    parser.add_argument("--overwrite", action="store_true", help="replace the zip file where it exists")
    known = parser.parse_args(argv)
    from data_modules.submission.archive import write_submission

    claim_file(known.output, [known.predictions, known.data], known.overwrite)
    names = write_submission(known.server, known.predictions, known.output, known.data)
    videos = len({name.rpartition("/")[0] for name in names})
    checked = "frames, sizes and ids agree with the data set" if known.data else "not compared with the data set (--data DIR)"
    Console(file=sys.stderr).print(f"{known.output}: {len(names)} masks of {videos} videos, {checked}", highlight=False)
    return 0
