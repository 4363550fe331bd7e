"""Options that several commands share. Nothing here imports PyTorch, so that ``--help`` comes at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

PRECISIONS = {
    "32-true": None,
    "bf16-mixed": "bfloat16",
    "16-mixed": "float16",
    "32": None,
    "bf16": "bfloat16",
    "16": "float16",
}
"""Lightning's name of a precision -> PyTorch's name of the autocast type; None for full precision."""


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """Options about masks that a user gives, see :class:`vos_lightning.io.given_masks.GivenMasks`."""
    parser.add_argument(
        "--first-number",
        type=int,
        choices=(0, 1),
        help="number of a video file's first frame in the names of the masks (default: 0 if there is a mask 0; 1 if the highest "
        "mask is the number of frames or the lowest is 1, as FFmpeg extracts frames; else 0)",
    )
    parser.add_argument(
        "--allow-rims", action="store_true", help="accept thin ids around an object, which usually come from a smoothed mask"
    )


def add_proposal_options(parser: argparse.ArgumentParser) -> None:
    """``--proposals`` and ``--detector``, see :func:`vos_lightning.app.own_videos.open_proposals`."""
    parser.add_argument(
        "--proposals",
        type=Path,
        metavar="FILE",
        help="for networks that match proposals: file of the video's precomputed proposals",
    )
    parser.add_argument(
        "--detector",
        metavar="FILE",
        help="instead of --proposals: checkpoint of a detector, or COCO_V1, which runs beside the network",
    )


def at_least(least: int) -> Callable[[str], int]:
    """Type of an option: a whole number that is not below ``least``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number
