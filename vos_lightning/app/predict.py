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

from vos_lightning.app.given_masks import GivenMasks, add_arguments
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import overlay, write_label_map
from vos_lightning.io.outputs import OutputFolder, naming
from vos_lightning.io.videos import FrameSource, VideoWriter, open_frames
from vos_lightning.mask_ops import object_ids_in
from vos_lightning.modules.proposal_detector import load_detector
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.frames import DetectedFrames, FrameProposals, StoredFrames
from vos_lightning.proposals.store import precompute_command
from vos_lightning.structures import FramePrediction

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
AREA_FACTOR = 2.0
"""An object that grows or shrinks by more than this from one frame to the next is flagged ``area_jump``."""
MEMORY_FRAMES = 100
"""Remembered frames without annotation, at most, where a network would keep ever more of them."""
LOW_CONFIDENCE = 0.7
"""An object whose pixels have a lower mean probability is flagged ``low_confidence``."""


# Proposals ------------------------------------------------------------------------------------------------------------


def open_proposals(
    network: VOSNetwork[Any, Any, Any], frames: FrameSource, file: Path | None, detector: str | None
) -> FrameProposals | None:
    """The proposals of a video of one's own, from a file or from a detector that runs beside the network.

    Args:
        network: which says whether it needs them.
        frames: the video.
        file: of stored proposals (``--proposals``).
        detector: see :func:`vos_lightning.modules.proposal_detector.load_detector` (``--detector``).

    Returns:
        None for networks without proposals.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the network needs proposals and there are none, or the other way round; the file is of another video.
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


@dataclass(frozen=True)
class ObjectRow:
    """A line of ``index.csv``: one object in one frame."""

    frame: int
    name: str
    object_id: int
    area: int
    """Pixels."""
    confidence: float
    """Mean probability of the object's pixels; 0 where it has none."""
    flags: str
    """Where to look: ``absent``, ``area_jump``, ``low_confidence``, joined by spaces; ``given`` where a mask was given."""


class DriftIndex:
    """Measures every object in every frame and flags what looks like drift."""

    def __init__(self) -> None:
        self._areas: dict[int, int] = {}

    def rows(self, name: str, prediction: FramePrediction, given: tuple[int, ...]) -> Iterator[ObjectRow]:
        """One row for each object; ``given`` holds the ids that a mask was given for in this frame."""
        ids = prediction.object_ids
        masks = prediction.label_map == torch.tensor(ids, dtype=torch.uint8).view(-1, 1, 1)
        areas = masks.flatten(1).sum(dim=1)
        confidence = (prediction.probabilities * masks).flatten(1).sum(dim=1) / areas.clamp_min(1)
        for object_id, area, mean in zip(ids, areas.tolist(), confidence.tolist(), strict=True):
            before = self._areas.get(object_id, 0)
            flags = []
            if object_id in given:
                flags.append("given")
            elif area == 0:
                flags.append("absent")
            else:
                if before and max(area, before) > AREA_FACTOR * min(area, before):
                    flags.append("area_jump")
                if mean < LOW_CONFIDENCE:
                    flags.append("low_confidence")
            self._areas[object_id] = area
            yield ObjectRow(prediction.frame_index, name, object_id, area, round(mean, 4), " ".join(flags))


@dataclass
class Summary:
    """What :func:`predict_video` has done."""

    num_frames: int = 0
    num_flagged: int = 0
    """Frames with at least one drift flag."""
    object_ids: tuple[int, ...] = ()


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

    On an error everything up to that frame is kept, the overlay and the table too.

    Args:
        engine: any system.
        frames: the video.
        masks: of the objects; frames before the first one are empty.
        output: where to write.
        overlay_video: write the overlay.
        proposals: of the video, for networks that need them, see :func:`open_proposals`.

    Yields:
        The same summary after every frame.

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
            rows = list(drift.rows(name, prediction, () if label_map is None else object_ids_in(label_map)))
            rows_to.writerows([vars(row).values() for row in rows])
            summary.num_frames = index + 1
            summary.num_flagged += any(row.flags not in ("", "given") for row in rows)
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
    masks.finish(summary.num_frames)
    output.finish()


def step_frame(
    engine: InferenceEngine,
    name: str,
    frame: UInt8[Tensor, "3 H W"],
    label_map: UInt8[Tensor, "H W"] | None,
    proposals: FrameProposals | None,
) -> FramePrediction:
    """Step the engine; a detector does not look at the frames before the first mask."""
    wanted = label_map is not None or len(engine.object_ids) > 0
    found = proposals.of_frame(name, frame) if proposals is not None and wanted else None
    return engine.step(frame, label_map, proposals=found)


# Command line ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments after ``predict``; those of the process if None.

    Returns:
        The exit code.

    Raises:
        ValueError: something cannot be used; the message is for the user.
        OSError: something cannot be read or written.
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
        "--proposals", type=Path, metavar="FILE", help="for networks that match proposals: those of the video, precomputed"
    )
    parser.add_argument(
        "--detector", metavar="FILE", help="instead: checkpoint of a detector, or COCO_V1, which finds them on the way"
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
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run of predict has written there")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="32", help="32 (default), bf16 or 16")
    parser.add_argument(
        "--short-side",
        type=_at_least_0,
        metavar="N",
        help="pixels of the short side inside the network; 0: as the video; default: as trained",
    )
    parser.add_argument(
        "--memory-frames",
        type=_at_least_0,
        default=MEMORY_FRAMES,
        metavar="N",
        help=f"frames that a network which remembers one in k keeps at most, the latest ones; 0: all; default: {MEMORY_FRAMES}",
    )
    add_proposal_options(parser)
    parser.add_argument("--overlay", action=argparse.BooleanOptionalAction, default=True, help="write overlay.mp4")
    return parser
