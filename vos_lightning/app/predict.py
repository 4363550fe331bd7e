"""Segment your own video: ``python -m vos_lightning predict --checkpoint CKPT --video FILE --masks MASK --output DIR``."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vos_lightning.app.drift import DriftIndex, ObjectRow, is_flagged
from vos_lightning.app.given_masks import GivenMasks, add_arguments
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.outputs import OutputFolder, naming
from vos_lightning.io.videos import FrameSource, VideoWriter, open_frames
from vos_lightning.mask_ops import object_ids_in
from vos_lightning.modules.proposal_detector import load_detector
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.frames import DetectedFrames, FrameProposals, StoredFrames
from vos_lightning.proposals.store import precompute_command
from vos_lightning.structures import FramePrediction
from vos_lightning.visualization.overlays import overlay

PRECISIONS = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "32": None,
    "bf16": torch.bfloat16,
    "16": torch.float16,
}
MEMORY_FRAMES = 100
"""Most remembered frames without annotation, for networks whose memory would otherwise grow without a bound."""


# Proposals ------------------------------------------------------------------------------------------------------------


def open_proposals(
    network: VOSNetwork[Any, Any, Any], frames: FrameSource, file: Path | None, detector: str | None
) -> FrameProposals | None:
    """The proposals of a user's video, from a file or from a detector that runs beside the network.

    Args:
        network: the network, which says whether it needs proposals.
        frames: the video.
        file: file of stored proposals (``--proposals``).
        detector: name or file of a detector, see :func:`vos_lightning.modules.proposal_detector.load_detector` (``--detector``).

    Returns:
        None for networks without proposals.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the network needs proposals and none are given, or proposals are given to a network that does not read them;
            the file belongs to another video.
    """
    name = type(network).__name__
    if not network.needs_proposals:
        if file is not None or detector is not None:
            raise ValueError(f"{name} does not read proposals: leave --{'detector' if file is None else 'proposals'} out")
        return None
    if file is not None and detector is not None:
        raise ValueError("pass either --proposals or --detector, not both")
    if file is not None:
        return StoredFrames(file, frames.names, frames.length, frames.size())
    if detector is not None:
        return DetectedFrames(load_detector(detector).to(network.device))
    raise ValueError(
        f"{name} matches objects to proposals of a detector: pass --proposals FILE, made by "
        f"`{precompute_command(str(frames.path))}`, or --detector FILE|COCO_V1, which runs beside it"
    )


# What is written ------------------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What :func:`predict_video` has done so far."""

    num_frames: int = 0
    num_flagged: int = 0
    """Frames with at least one drift flag."""
    object_ids: tuple[int, ...] = ()
    advice: str | None = None
    """What :meth:`DriftIndex.advice` says of the whole video; set after its last frame."""


def predict_video(
    engine: InferenceEngine,
    frames: FrameSource,
    masks: GivenMasks,
    output: OutputFolder,
    overlay_video: bool = True,
    proposals: FrameProposals | None = None,
) -> Iterator[Summary]:
    """Segment a video frame by frame; only one frame is in memory at a time.

    ::

        <output>/masks/<frame>.png   indexed PNGs in the ids of the given masks, at the size of the frames
        <output>/overlay.mp4         as many frames, and as many a second, as the video
        <output>/index.csv           area, confidence and drift flags of every object in every frame, see :class:`ObjectRow`
        <output>/written.jsonl       what was written, and whether the run has finished, see :class:`OutputFolder`

    On an error, everything up to that frame is kept, also the overlay and the table.

    Args:
        engine: an engine on any system.
        frames: the video.
        masks: given masks of the objects; frames before the first mask have no prediction.
        output: where to write.
        overlay_video: write the overlay.
        proposals: proposals of the video, for networks that need them, see :func:`open_proposals`.

    Yields:
        The same summary object after every frame.

    Raises:
        ValueError: a frame or mask cannot be used.
    """
    engine.reset()
    output.start()
    summary, drift = Summary(), DriftIndex()
    table = io.StringIO()
    rows_to = csv.writer(table)
    rows_to.writerow(ObjectRow.__dataclass_fields__)
    writer = VideoWriter(output.place("overlay.mp4"), frames.fps) if overlay_video else None
    try:
        for index, (name, frame) in enumerate(frames):
            label_map = masks.read(index)
            prediction = step_frame(engine, name, frame, label_map, proposals)
            output.put(f"masks/{name}.png", functools.partial(write_label_map, label_map=prediction.label_map))
            if writer is not None:
                with naming(writer.path):
                    writer.write(overlay(frame, prediction.label_map))
            rows = drift.rows(name, frame, prediction, () if label_map is None else object_ids_in(label_map))
            rows_to.writerows([vars(row).values() for row in rows])
            summary.num_frames = index + 1
            summary.num_flagged += is_flagged(rows)
            summary.object_ids = prediction.object_ids
            yield summary
    finally:
        try:
            output.put("index.csv", functools.partial(write_atomically, content=table.getvalue().encode()))
        finally:
            if writer is not None:
                with naming(writer.path):
                    writer.close()
                output.keep("overlay.mp4")
    summary.advice = drift.advice()
    masks.finish(summary.num_frames)
    output.finish()


def step_frame(
    engine: InferenceEngine,
    name: str,
    frame: UInt8[Tensor, "3 H W"],
    label_map: UInt8[Tensor, "H W"] | None,
    proposals: FrameProposals | None,
) -> FramePrediction:
    """Step the engine; a detector is not run on the frames before the first mask."""
    wanted = label_map is not None or len(engine.object_ids) > 0
    found = proposals.of_frame(name, frame) if proposals is not None and wanted else None
    return engine.step(frame, label_map, proposals=found)


# Command line ---------------------------------------------------------------------------------------------------------


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
    short_side = {None: "checkpoint", 0: None}.get(arguments.short_side, arguments.short_side)
    frames = open_frames(arguments.video)
    inputs = (arguments.video, arguments.masks, arguments.checkpoint, arguments.proposals)
    output = OutputFolder(arguments.output, "predict", inputs, arguments.overwrite)
    masks = GivenMasks(arguments.masks, frames, arguments.first_number, arguments.allow_rims)
    sys.stdout.write("".join(f"{line}\n" for line in masks.report()))
    engine = load_engine(
        arguments.checkpoint,
        device=arguments.device,
        precision=PRECISIONS[arguments.precision],
        short_side=short_side,
        max_memory_frames=arguments.memory_frames or None,
    )
    proposals = open_proposals(engine.network, frames, arguments.proposals, arguments.detector)
    summary = Summary()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(arguments.video.name, total=frames.length)
        for summary in predict_video(engine, frames, masks, output, arguments.overlay, proposals):
            progress.update(task, completed=summary.num_frames)
    sys.stdout.write(
        f"{summary.num_frames} frames, {len(summary.object_ids)} objects, {summary.num_flagged} frames to look at "
        f"(flags in {arguments.output / 'index.csv'})\n"
    )
    if summary.advice is not None:
        sys.stdout.write(f"{summary.advice}\n")
    if proposals is not None and proposals.note is not None:
        sys.stdout.write(f"{proposals.note}\n")
    return 0


def _at_least_0(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def add_proposal_options(parser: argparse.ArgumentParser) -> None:
    """``--proposals`` and ``--detector``, see :func:`open_proposals`."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vos_lightning predict", description="Segment objects in your own video.")
    parser.add_argument("--checkpoint", type=Path, required=True, help=".ckpt file of a run")
    parser.add_argument("--video", type=Path, required=True, help="video file, or folder of .jpg or .png frames")
    parser.add_argument(
        "--masks",
        type=Path,
        required=True,
        help="PNG for the first frame, or folder of PNGs with the names or numbers of their frames",
    )
    add_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for masks/, overlay.mp4 and index.csv")
    parser.add_argument("--overwrite", action="store_true", help="remove the output of an earlier run of predict")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--precision", choices=sorted(PRECISIONS), default="32-true", help="32-true (default), bf16-mixed or 16-mixed"
    )
    parser.add_argument(
        "--short-side",
        type=_at_least_0,
        metavar="N",
        help="short side in pixels inside the network; 0: the video's own; default: as in training",
    )
    parser.add_argument(
        "--memory-frames",
        type=_at_least_0,
        default=MEMORY_FRAMES,
        metavar="N",
        help=f"most frames without annotation in a memory that would grow without a bound; the latest are kept; 0: all; "
        f"default: {MEMORY_FRAMES}",
    )
    add_proposal_options(parser)
    parser.add_argument("--overlay", action=argparse.BooleanOptionalAction, default=True, help="write overlay.mp4")
    return parser
