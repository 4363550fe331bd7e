"""The backend of PyTorch for one's own videos: any network of the library, on any device."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vos_lightning.app.backends import Backend
from vos_lightning.app.options import PRECISIONS
from vos_lightning.checkpoints import loading
from vos_lightning.checkpoints.files import LITE
from vos_lightning.checkpoints.portable import describe_lite
from vos_lightning.io.frames import FrameSource
from vos_lightning.modules.proposal_detector import load_detector
from vos_lightning.propagation.budget import Plan, in_words, plan
from vos_lightning.propagation.cuts import AtCut
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.snapshots import Stored, write_snapshot
from vos_lightning.proposals.frames import CountedProposals, DetectedFrames, StoredFrames
from vos_lightning.proposals.store import ProposalFile, precompute_command
from vos_lightning.structures import FramePrediction, VideoSample

BESIDE = 80
"""Bytes that decoding and writing a video take for every pixel of a frame, as the libraries for it hold tens of frames."""

SECONDS_BESIDE = 1e-7
"""Seconds that decoding a frame, and each kind of output, take for every pixel of a frame, on a CPU of today."""


class TorchBackend(Backend):
    """A network in PyTorch.

    Args:
        arguments: those of ``vos segment``.
    """

    saves = True

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.title = describe_lite() if arguments.checkpoint == Path(LITE) else ""
        self._engine = open_engine(arguments)
        self._asked = self._engine.short_side, self._engine.min_object_pixels

    def plan(self, video: VideoSample, left: int | None, goes_on: bool, side: int | None) -> list[str]:
        """Estimate the cost of a video, and choose its size; see :meth:`Backend.plan`."""
        engine = self._engine
        engine.short_side, engine.min_object_pixels = self._asked
        self.chosen_side = side if goes_on else None
        if self.chosen_side is not None:
            engine.short_side, engine.min_object_pixels = self.chosen_side, 0
        elif engine.keeps_size(video):
            engine.short_side = None
        before = engine.short_side
        shrink = self._arguments.short_side is None and not goes_on
        pixels = video.original_size[0] * video.original_size[1]
        beside = BESIDE * pixels if engine.network.device.type == "cpu" else 0
        made = plan(engine, video.original_size, len(video.object_ids), shrink=shrink, beside=beside)
        if engine.short_side != before:
            # The rule about small objects would process the video at its own size after all.
            self.chosen_side, engine.min_object_pixels = engine.short_side, 0
        seconds = made.cost.seconds * (2 if self._arguments.direction == "both" else 1)
        written = len(set(self._arguments.formats) - {"masks"})
        return describe_plan(video.name, made, left, seconds + SECONDS_BESIDE * pixels * (1 + written))

    def predictions(self, video: VideoSample, stored: Stored | None, at_cut: AtCut) -> Iterator[FramePrediction]:
        """Segment a video; see :meth:`Backend.predictions`."""
        if self._arguments.direction == "forward":
            return self._engine.run(video, stored, at_cut=at_cut)
        return self._engine.segment(video, direction=self._arguments.direction, at_cut=at_cut)

    def proposals(self, frames: FrameSource) -> CountedProposals | None:
        """Proposals of a video's frames, see :func:`open_proposals`."""
        return open_proposals(self._engine.network, frames, self._arguments.proposals, self._arguments.detector)

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        """Write a snapshot of the engine."""
        write_snapshot(path, self._engine.snapshot(), notes)


def describe_plan(name: str, made: Plan, left: int | None, seconds: float) -> list[str]:
    """Lines that say what a video will cost.

    Args:
        name: name of the video.
        made: what was estimated.
        left: number of frames that are still to be segmented; None if nobody knows.
        seconds: time of a frame.
    """
    time = f"about {seconds:.2g} s a frame" if left is None else f"{left} frames, about {_duration(left * seconds)}"
    free = "" if made.free is None else f" ({in_words(made.free)} free)"
    lines = [
        f"{name}: {time} and {in_words(made.cost.memory)} of memory{free}, processed at {made.cost.size[1]} x {made.cost.size[0]}"
    ]
    if made.line is not None:
        lines.append(f"{name}: {made.line}")
    if not made.fits:
        lines.append(
            f"{name}: memory may not suffice; --max-size N processes it at a smaller size, here below {min(made.cost.size)}"
        )
    return lines


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def open_engine(arguments: argparse.Namespace) -> InferenceEngine:
    """The engine that the options ask for.

    Args:
        arguments: those of :func:`vos_lightning.app.options.add_engine_options`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be used, see :func:`vos_lightning.checkpoints.loading.load_engine`.
    """
    short_side = {None: "checkpoint", 0: None}.get(arguments.short_side, arguments.short_side)
    engine: InferenceEngine = loading.load_engine(
        arguments.checkpoint,
        device=arguments.device,
        short_side=arguments.max_size or short_side,
        max_memory_frames=arguments.memory_frames or None,
    )
    engine.precision = autocast_type(arguments.precision, engine.network.device)
    engine.enlarge = engine.enlarge and arguments.max_size is None
    return engine


def autocast_type(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of ``--precision``.

    Args:
        name: name of a precision, or ``auto``: bfloat16 on accelerators that compute with it, full precision elsewhere.
        device: device of the network.
    """
    if name == "auto":
        supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
        return torch.bfloat16 if supported is not None and supported(including_emulation=False) else None
    kind = PRECISIONS[name]
    return None if kind is None else getattr(torch, kind)


# Proposals ------------------------------------------------------------------------------------------------------------


def open_proposals(
    network: VOSNetwork[Any, Any, Any], frames: FrameSource, file: Path | None, detector: str | None
) -> CountedProposals | None:
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
        return StoredFrames(ProposalFile(file), frames.names, frames.length, frames.size())
    if detector is not None:
        return DetectedFrames(load_detector(detector).to(network.device))
    raise ValueError(
        f"{name} matches objects to proposals of a detector: pass --proposals FILE, made by "
        f"`{precompute_command(str(frames.path))}`, or --detector FILE|COCO_V1, which runs beside it"
    )
