"""Segment your own video: ``python -m vos_lightning predict --checkpoint CKPT --video FILE --masks MASK --output DIR``."""

from __future__ import annotations

import argparse
import csv
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

from vos_lightning.drift import DriftIndex, ObjectRow, is_flagged
from vos_lightning.io.label_maps import overlay, read_label_map, write_label_map
from vos_lightning.io.videos import FrameSource, VideoWriter, list_images, open_frames
from vos_lightning.mask_ops import object_ids_in
from vos_lightning.modules.loading import load_engine
from vos_lightning.modules.proposal_detector import load_detector
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.frames import DetectedFrames, FrameProposals, StoredFrames
from vos_lightning.proposals.store import precompute_command
from vos_lightning.structures import IGNORE_LABEL, FramePrediction

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
MEMORY_FRAMES = 100
"""Remembered frames without annotation, at most, where a network would keep ever more of them."""


# Given masks ----------------------------------------------------------------------------------------------------------


class MaskFiles:
    """The masks a person has drawn: one file for the first frame, or a folder of files named like the frames.

    In a folder, a file belongs to the frame with its name; a number also to the frame with that number (``7.png`` to
    ``00007.jpg``), or with that index, counted from 0, where frames have no numbers for names.

    Args:
        path: a PNG file or a folder of them.
        names: of all frames, if they are known.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder has no PNG files, has other images, or has one that belongs to no frame.
    """

    def __init__(self, path: Path, names: Sequence[str] | None = None) -> None:
        if path.is_dir():
            self._first = None
            self._waiting = {_key(stem): file for stem, file in list_images(path).items()}
        elif path.is_file():
            self._first = path
            self._waiting = {}
        else:
            raise FileNotFoundError(f"{path}: there is no such mask file or folder of masks")
        for file in (self._first, *self._waiting.values()):
            if file is not None and file.suffix.lower() != ".png":
                raise ValueError(f"{file}: masks must be PNG files, as JPEG changes the ids; save it as an indexed PNG")
        if names is not None:
            possible = {key for index, name in enumerate(names) for key in _keys(index, name)}
            self._refuse([file for key, file in self._waiting.items() if key not in possible])

    def take(self, index: int, name: str) -> Path | None:
        """The mask of a frame; frames are asked for in order, each once."""
        if self._first is not None:
            return self._first if index == 0 else None
        for key in _keys(index, name):
            if key in self._waiting:
                return self._waiting.pop(key)
        return None

    def finish(self) -> None:
        """Complain about masks that no frame has asked for (only a video file shows them at its end)."""
        self._refuse(list(self._waiting.values()))

    @staticmethod
    def _refuse(files: list[Path]) -> None:
        if files:
            more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
            raise ValueError(f"{files[0]}{more}: no frame of the video has this name or number; rename the mask")


def _key(stem: str) -> str | int:
    return int(stem) if stem.isdigit() else stem


def _keys(index: int, name: str) -> tuple[str | int, ...]:
    return (_key(name),) if name.isdigit() else (name, index)


def read_given(path: Path, size: tuple[int, int], first: bool) -> UInt8[Tensor, "H W"]:
    """Read a mask that a person has drawn. A black and white mask is object 1.

    Args:
        path: a PNG file, see :func:`vos_lightning.io.label_maps.read_label_map`.
        size: height and width of the frames.
        first: whether it is the first mask, which may not be empty.

    Raises:
        ValueError: it is damaged, smoothed or coloured, of another size, or empty.
    """
    label_map = read_label_map(path)
    if tuple(label_map.shape) != size:
        height, width = label_map.shape
        raise ValueError(f"{path}: the mask is {width}x{height}, the frames are {size[1]}x{size[0]}; draw it on a frame")
    ids = object_ids_in(label_map)
    white = label_map == IGNORE_LABEL
    if bool(white.any()):
        if ids:
            shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
            raise ValueError(
                f"{path}: id 255 beside the ids {shown}: number the objects 1, 2, ... up to 254 without smoothed edges, "
                "or draw a single object in pure white"
            )
        return white.to(torch.uint8)
    if first and not ids:
        raise ValueError(f"{path}: the first mask is empty; number the pixels of the objects 1, 2, ...")
    return label_map


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
        return StoredFrames(file, frames.names, frames.length)
    if detector is not None:
        return DetectedFrames(load_detector(detector).to(network.device))
    raise ValueError(
        f"{name} matches objects to proposals of a detector: pass --proposals FILE, made by "
        f"`{precompute_command(str(frames.path))}`, or --detector FILE|COCO_V1, which runs beside it"
    )


# What is written ------------------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What :func:`predict_video` has done."""

    num_frames: int = 0
    num_flagged: int = 0
    """Frames with at least one drift flag."""
    object_ids: tuple[int, ...] = ()
    advice: str | None = None
    """What :meth:`DriftIndex.advice` says of the whole video; set after its last frame."""


def predict_video(
    engine: InferenceEngine,
    frames: FrameSource,
    masks: MaskFiles,
    output: Path,
    overlay_video: bool = True,
    proposals: FrameProposals | None = None,
) -> Iterator[Summary]:
    """Segment a video frame by frame; only one frame is in memory at a time.

    ::

        <output>/masks/<frame>.png   indexed PNGs in the ids of the given masks, at the size of the frames
        <output>/overlay.mp4         as many frames, and as many a second, as the video
        <output>/index.csv           area, confidence and drift flags of every object in every frame, see :class:`ObjectRow`

    On an error everything up to that frame is kept, the overlay too.

    Args:
        engine: any system.
        frames: the video.
        masks: of the objects; frames before the first one are empty.
        output: folder.
        overlay_video: write the overlay.
        proposals: of the video, for networks that need them, see :func:`open_proposals`.

    Yields:
        The same summary after every frame.

    Raises:
        ValueError: a frame or mask cannot be used.
    """
    engine.reset()
    output.mkdir(parents=True, exist_ok=True)
    summary, drift = Summary(), DriftIndex()
    writer = VideoWriter(output / "overlay.mp4", frames.fps) if overlay_video else None
    with (output / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(ObjectRow.__dataclass_fields__)
        try:
            for index, (name, frame) in enumerate(frames):
                mask_file = masks.take(index, name)
                size = (int(frame.shape[1]), int(frame.shape[2]))
                label_map = None if mask_file is None else read_given(mask_file, size, first=not engine.object_ids)
                prediction = step_frame(engine, name, frame, label_map, proposals)
                write_label_map(output / "masks" / f"{name}.png", prediction.label_map)
                if writer is not None:
                    writer.write(overlay(frame, prediction.label_map))
                rows = drift.rows(name, frame, prediction, () if label_map is None else object_ids_in(label_map))
                table.writerows([vars(row).values() for row in rows])
                file.flush()
                summary.num_frames = index + 1
                summary.num_flagged += is_flagged(rows)
                summary.object_ids = prediction.object_ids
                yield summary
        finally:
            if writer is not None:
                writer.close()
    summary.advice = drift.advice()
    masks.finish()
    if not summary.object_ids:
        raise ValueError(f"{frames.path}: no frame has a mask, so there was nothing to segment")


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
    """Run the command; errors of the user are one line and exit code 2.

    Args:
        argv: arguments after ``predict``; those of the process if None.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    short_side = {None: "checkpoint", 0: None}.get(arguments.short_side, arguments.short_side)
    try:
        frames = open_frames(arguments.video)
        masks = MaskFiles(arguments.masks, frames.names)
        engine = load_engine(
            arguments.checkpoint,
            device=arguments.device,
            precision=PRECISIONS[arguments.precision],
            short_side=short_side,
            max_memory_frames=arguments.memory_frames or None,
        )
        proposals = open_proposals(engine.network, frames, arguments.proposals, arguments.detector)
        summary = Summary()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(arguments.video.name, total=frames.length)
            for summary in predict_video(engine, frames, masks, arguments.output, arguments.overlay, proposals):
                progress.update(task, completed=summary.num_frames)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
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
        help="PNG for the first frame, or folder of PNGs named like the frames they belong to",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for masks/, overlay.mp4 and index.csv")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="32", help="32 (default), bf16 or 16")
    parser.add_argument(
        "--short-side",
        type=int,
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
