"""Segment your own video: ``vos predict --video FILE --masks MASK --output DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vos_lightning.app.options import PRECISIONS, add_mask_options, add_proposal_options, at_least
from vos_lightning.checkpoints.files import LITE

MEMORY_FRAMES = 100
"""Most remembered frames without annotation, for networks whose memory would otherwise grow without a bound."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments after ``predict``; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        ValueError: an input cannot be used; the message is for the user.
        OSError: a file cannot be read or written.
    """
    arguments = _parser().parse_args(argv)

    import torch

    from vos_lightning.app.own_videos import open_proposals, read_masks
    from vos_lightning.checkpoints import loading
    from vos_lightning.checkpoints.portable import describe_lite
    from vos_lightning.io.given_masks import own_video
    from vos_lightning.io.outputs import OutputFolder
    from vos_lightning.io.videos import open_frames
    from vos_lightning.predictions.renderings import Renderings
    from vos_lightning.predictions.writer import PredictionFiles

    short_side = {None: "checkpoint", 0: None}.get(arguments.short_side, arguments.short_side)
    precision = PRECISIONS[arguments.precision]
    frames = open_frames(arguments.video)
    inputs = (arguments.video, arguments.masks, arguments.checkpoint, arguments.proposals)
    output = OutputFolder(arguments.output, "predict", inputs, arguments.overwrite)
    masks = read_masks(arguments, frames)
    if arguments.checkpoint == Path(LITE):
        sys.stdout.write(f"{describe_lite()}\n")
    engine = loading.load_engine(
        arguments.checkpoint,
        device=arguments.device,
        precision=None if precision is None else getattr(torch, precision),
        short_side=short_side,
        max_memory_frames=arguments.memory_frames or None,
    )
    proposals = open_proposals(engine.network, frames, arguments.proposals, arguments.detector)
    video = own_video(frames, masks, proposals)
    files = PredictionFiles(output, Renderings(("overlay",) if arguments.overlay else ()), contact_sheet=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with files, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(arguments.video.name, total=frames.length)
        for prediction in engine.run(video):
            files.take(video, prediction)
            progress.update(task, completed=files.num_frames)
    sys.stdout.write(
        f"{files.num_frames} frames, {len(engine.object_ids)} objects, {files.num_flagged} frames to look at "
        f"(flags in {output.folder / 'index' / f'{video.name}.csv'})\n"
    )
    advice = files.drift.advice() if files.drift is not None else None
    for line in (advice, None if proposals is None else proposals.note):
        if line is not None:
            sys.stdout.write(f"{line}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vos predict", description="Segment objects in your own video.")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(LITE),
        help=".ckpt file of a run, or .safetensors file of vos export; default: the small network that comes with the library",
    )
    parser.add_argument("--video", type=Path, required=True, help="video file, or folder of .jpg or .png frames")
    parser.add_argument(
        "--masks",
        type=Path,
        required=True,
        help="PNG for the first frame, or folder of PNGs with the names or numbers of their frames",
    )
    add_mask_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for masks/, overlays/ and index/")
    parser.add_argument("--overwrite", action="store_true", help="remove the output of an earlier run of predict")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--precision", choices=sorted(PRECISIONS), default="32-true", help="32-true (default), bf16-mixed or 16-mixed"
    )
    parser.add_argument(
        "--short-side",
        type=at_least(0),
        metavar="N",
        help="short side in pixels inside the network; 0: the video's own; default: as in training",
    )
    parser.add_argument(
        "--memory-frames",
        type=at_least(0),
        default=MEMORY_FRAMES,
        metavar="N",
        help=f"most frames without annotation in a memory that would grow without a bound; the latest are kept; 0: all; "
        f"default: {MEMORY_FRAMES}",
    )
    add_proposal_options(parser)
    parser.add_argument("--overlay", action=argparse.BooleanOptionalAction, default=True, help="write an overlay video")
    return parser
