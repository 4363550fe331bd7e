"""What computes the masks of one's own videos: PyTorch, or ONNX Runtime, which needs no PyTorch to be installed."""

from __future__ import annotations

import argparse
import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vos_lightning import arrays
from vos_lightning.checkpoints.files import LITE
from vos_lightning.io.frames import FrameSource
from vos_lightning.propagation.cuts import AtCut
from vos_lightning.propagation.snapshots import Stored
from vos_lightning.structures import FramePrediction, VideoSample

LITE_FOLDER = Path(__file__).parents[1] / "weights"
"""The graphs of the small network that comes with the library, beside its weights."""


class Backend(ABC):
    """An engine for videos of one's own, chosen by :func:`choose_backend`."""

    title: str
    """One line about the network, or nothing."""
    saves: bool = False
    """Whether :meth:`save` keeps what is known after a frame; otherwise an interrupted video begins anew."""
    chosen_side: int | None = None
    """Short side at which the latest video is processed because it would not fit into memory otherwise; None if it would."""

    @abstractmethod
    def predictions(self, video: VideoSample, stored: Stored | None, at_cut: AtCut) -> Iterator[FramePrediction]:
        """Segment a video in the direction that was asked for.

        Args:
            video: the video.
            stored: the beginning of an interrupted run.
            at_cut: what happens at a scene cut.
        """

    def plan(self, video: VideoSample, left: int | None, goes_on: bool, side: int | None) -> list[str]:  # noqa: ARG002
        """Estimate what a video will cost, and process it at a smaller size if it would not fit into memory otherwise.

        Args:
            video: the video.
            left: number of frames that are still to be segmented; None if nobody knows.
            goes_on: whether an earlier run of the video goes on, whose size is kept.
            side: :attr:`chosen_side` of that run.

        Returns:
            Lines for the user; none where a backend estimates nothing.
        """
        return []

    def proposals(self, frames: FrameSource) -> Any:  # noqa: ARG002
        """Proposals of a video's frames; None for networks that read none.

        Raises:
            ValueError: they do not fit the network, or are missing.
        """
        return None

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        """Write what is known after the latest frame to a file, with some notes."""
        raise NotImplementedError


def choose_backend(arguments: argparse.Namespace) -> str:
    """The backend of ``--backend``.

    ``auto`` takes ONNX Runtime for a folder of graphs and where PyTorch is not installed, and PyTorch otherwise.

    Raises:
        ValueError: it is not installed, or cannot do what other options ask for.
    """
    name: str = arguments.backend
    if name == "auto":
        name = "onnxruntime" if arrays.torch is None or arguments.checkpoint.is_dir() else "torch"
    if name == "torch":
        if arrays.torch is None:
            raise ValueError(
                "--backend torch: PyTorch is not installed; leave the option out, or install PyTorch: pip install vos_lightning"
            )
        return name
    for option, known in (("device", ("auto", "cpu")), ("precision", ("auto", "32-true"))):
        if getattr(arguments, option) not in known:
            raise ValueError(f"--{option} {getattr(arguments, option)} needs PyTorch; ONNX Runtime knows {' and '.join(known)}")
    for option in ("proposals", "detector"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} needs PyTorch: the network of ONNX Runtime reads no proposals; leave it out")
    if arguments.direction != "forward" and arrays.torch is None:
        raise ValueError(f"--direction {arguments.direction} needs PyTorch: pip install vos_lightning")
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("--backend onnxruntime needs a package that is not installed: pip install onnxruntime")
    return name


def weights_of(arguments: argparse.Namespace) -> Path:
    """The file that says which weights the backend will use: the weights, or the rules beside graphs, which name them."""
    if arguments.backend == "torch":
        from vos_lightning.checkpoints.portable import resolve

        return resolve(arguments.checkpoint)
    from vos_lightning.light.parts import RULES, read_rules

    read_rules(_folder(arguments))
    return _folder(arguments) / RULES


class LightBackend(Backend):
    """ONNX Runtime on the CPU.

    Args:
        arguments: those of ``vos segment``.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        from vos_lightning.light.engine import LightEngine

        self._direction = arguments.direction
        side = {None: "export", 0: None}.get(arguments.short_side, arguments.short_side)
        self._engine = LightEngine(
            _folder(arguments), short_side=arguments.max_size or side, max_memory_frames=arguments.memory_frames or None
        )
        self._engine.enlarge = self._engine.enlarge and arguments.max_size is None
        name, system = arguments.checkpoint, self._engine.rules["system"]
        self.title = f"weights: {name} ({system}, computed by ONNX Runtime)"

    def predictions(self, video: VideoSample, stored: Stored | None, at_cut: AtCut) -> Iterator[FramePrediction]:
        """Segment a video; see :meth:`Backend.predictions`."""
        if self._direction == "forward":
            return self._engine.run(video, stored, at_cut=at_cut)
        from vos_lightning.propagation.directions import run_in_direction

        return run_in_direction(functools.partial(self._engine.run, at_cut=at_cut), video, self._direction, "product")


def _folder(arguments: argparse.Namespace) -> Path:
    return LITE_FOLDER if arguments.checkpoint == Path(LITE) else arguments.checkpoint
