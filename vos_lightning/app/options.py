"""Options that several commands share. Nothing here imports PyTorch, so that ``--help`` comes at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from vos_lightning.checkpoints.files import LITE

PRECISIONS = {
    "32-true": None,
    "bf16-mixed": "bfloat16",
    "16-mixed": "float16",
    "32": None,
    "bf16": "bfloat16",
    "16": "float16",
}
"""Lightning's name of a precision -> PyTorch's name of the autocast type; None for full precision."""
MEMORY_FRAMES = 100
"""Most remembered frames without annotation, for networks whose memory would otherwise grow without a bound."""


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


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Which network runs, where and at which size, see :func:`vos_lightning.app.torch_backend.open_engine`."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(LITE),
        help=".ckpt file of a run, .safetensors file or ONNX folder of vos export; default: the small network that comes with "
        "the library",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--precision",
        choices=["auto", *sorted(PRECISIONS)],
        default="auto",
        help="auto (default: bf16-mixed on accelerators that compute with it, else 32-true), 32-true, bf16-mixed or 16-mixed",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--short-side",
        type=at_least(0),
        metavar="N",
        help="short side in pixels inside the network; 0: the video's own; default: as in training. Masks have the video's size",
    )
    size.add_argument(
        "--max-size",
        type=at_least(1),
        metavar="N",
        help="short side inside the network that larger frames are reduced to; smaller ones keep their size",
    )
    parser.add_argument(
        "--memory-frames",
        type=at_least(0),
        default=MEMORY_FRAMES,
        metavar="N",
        help=f"most frames without annotation in a memory that would grow without a bound; the latest are kept; 0: all; "
        f"default: {MEMORY_FRAMES}",
    )


def add_cut_option(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    """``--at-cut``, see :meth:`vos_lightning.propagation.streaming.StreamingEngine.run`.

    Args:
        parser: the parser.
        default: the default.
        text: what the help says of it.
    """
    parser.add_argument(
        "--at-cut",
        choices=("follow", "ask"),
        default=default,
        help="where another scene begins: ask, which lets objects go until there is a mask of them in the new scene, or follow, "
        f"which goes on with whatever looks like them; {text}",
    )


def add_proposal_options(parser: argparse.ArgumentParser) -> None:
    """``--proposals`` and ``--detector``, see :func:`vos_lightning.app.torch_backend.open_proposals`."""
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
