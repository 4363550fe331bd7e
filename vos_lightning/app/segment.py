"""Cut objects out of your own videos: ``vos segment VIDEO ... --mask MASK --output DIR``."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vos_lightning.app.options import add_cut_option, add_engine_options, add_mask_options, add_proposal_options, at_least

FORMATS = {
    "masks": "label maps alone",
    "overlay": "video with coloured objects",
    "objects": "0/255 PNGs of every object",
    "coco": "COCO run lengths as JSON",
    "cutouts": "transparent PNGs",
    "webm": "transparent VP9",
    "prores": "transparent ProRes 4444",
    "green": "green screen",
}
"""What can be written beside the label maps and the index."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments after ``segment``; None takes those of the process.

    Returns:
        The exit code: 0, 1 if some of several videos were passed over, or 75 after a signal, when ``--resume`` goes on.

    Raises:
        ValueError: an input cannot be used; the message is for the user.
        OSError: a file cannot be read or written.
    """
    arguments = _parser().parse_args(argv)

    from vos_lightning.app.backends import choose_backend
    from vos_lightning.app.own_videos import local_inputs, open_job, settings_of
    from vos_lightning.app.segmenting import SegmentRun
    from vos_lightning.callbacks.stopping import STOPPED, Stopped, StopRequest
    from vos_lightning.io.files import one_line
    from vos_lightning.io.outputs import OutputFolder
    from vos_lightning.io.sources import find_sources

    arguments.backend = choose_backend(arguments)
    sources = find_sources(arguments.videos)
    several = len(sources) > 1
    output = OutputFolder(
        arguments.output,
        "segment",
        local_inputs(arguments, sources),
        arguments.overwrite,
        resume=arguments.resume,
        source=settings_of(arguments),
        keep_begun=True,
        alone=True,
    )
    stop = StopRequest()
    run: SegmentRun | None = None
    failed = 0
    with output, stop.listening(), stop.deferred():
        try:
            for source in sources:
                try:
                    job = open_job(arguments, source, several)
                    if run is None:
                        run = SegmentRun(arguments, output, stop)
                    run.segment(job)
                except (ValueError, OSError) as error:
                    if not several or getattr(error, "errno", None) == errno.ENOSPC:
                        raise
                    failed += 1
                    reason = one_line(error).removeprefix(f"{source.text}: ")
                    sys.stderr.write(f"{source.text} is passed over: {reason}\n")
                    if run is not None:
                        run.give_up(source.name, reason)
        except Stopped as stopped:
            if run is not None:
                run.finish(stopped)
            sys.stderr.write("stopped; the same command with --resume goes on\n")
            return STOPPED
        except BaseException as error:
            if run is not None:
                run.finish(error)
            raise
        if run is not None:
            run.finish(None)
    if failed:
        sys.stderr.write(f"{failed} of {len(sources)} videos are passed over; see above\n")
    return 1 if failed else 0


def _position(text: str) -> int | Fraction:
    from vos_lightning.io.frames import parse_position

    try:
        return parse_position(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos segment",
        description="Cut objects out of your own videos. Masks mark the objects in some frames; the other frames follow.",
    )
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="video file (.mp4, .mov, .mkv, .webm, .gif ...), folder or pattern of images or videos, camera:0, or an address "
        "(http://, https://, rtsp://)",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        help="mask of the first frame (.png), annotations (.json, .xml; COCO, labelme, CVAT), or folder of them with the names "
        "or numbers of their frames; with several videos, a folder that holds NAME.png or NAME/ for each. Default: what lies "
        "beside the video, NAME.png, NAME.json, NAME.xml or NAME_masks/",
    )
    add_mask_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for masks/, index/, overlays/ ...")
    parser.add_argument("--overwrite", action="store_true", help="remove the output of an earlier run")
    parser.add_argument(
        "--resume", action="store_true", help="go on where an earlier run was ended: what it has finished is kept"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=list(FORMATS),
        default=["overlay"],
        metavar="NAME",
        help="what is written beside label maps and index: "
        + "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
        + " (default: overlay)",
    )
    parser.add_argument("--dim", type=_share, default=0.0, help="darken the rest in the overlay: 0 (default) to 1 (black)")
    parser.add_argument("--labels", action="store_true", help="write the objects' ids into the overlay")
    parser.add_argument(
        "--start", type=_position, metavar="WHEN", help="first frame, as a number from 0 (120) or a time (4.5, 4s, 1:02.5)"
    )
    parser.add_argument(
        "--end", type=_position, metavar="WHEN", help="first frame that is left out again, written in the same way"
    )
    parser.add_argument("--stride", type=at_least(1), default=1, metavar="N", help="take every Nth frame only")
    parser.add_argument(
        "--direction",
        choices=("forward", "backward", "both"),
        default="forward",
        help="follow objects forwards from their masks (default), backwards, or both, blended between two masks",
    )
    add_cut_option(parser, None, "default: ask; follow for cameras and streams, which come only once")
    add_engine_options(parser)
    parser.add_argument(
        "--backend",
        choices=("auto", "torch", "onnxruntime"),
        default="auto",
        help="what computes: torch, or onnxruntime, which needs no PyTorch and reads an ONNX folder of vos export, or lite; "
        "default: onnxruntime for such a folder and where PyTorch is not installed, else torch",
    )
    add_proposal_options(parser)
    return parser
