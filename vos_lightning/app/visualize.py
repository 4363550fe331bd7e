"""Pictures of what a network computes for chosen frames, see :mod:`vos_lightning.visualization.papers`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.app.given_masks import GivenMasks
from vos_lightning.app.predict import step_frame
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.io.videos import FrameSource
from vos_lightning.modules.base import VOSModule
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.proposals.frames import FrameProposals
from vos_lightning.structures import FramePrediction, VideoSample
from vos_lightning.visualization.papers import panels_of
from vos_lightning.visualization.sheets import write_panels

Segmented = Iterator[tuple[str, UInt8[Tensor, "3 H W"], FramePrediction]]
"""Yields name, frame and prediction of one frame after the other."""


def draw(module: VOSModule, segmented: Segmented, frames: Sequence[int], output: OutputFolder) -> list[Path]:
    """Draw frames of a video; frames after the last requested one are not segmented.

    Args:
        module: module with the network that has segmented the frames.
        segmented: the frames of the video with their predictions.
        frames: frame indices, counted from 0.
        output: ``<output>/<frame>/<row>_<title>.png`` for every panel, and ``<output>/<frame>/sheet.png`` with all of them.

    Returns:
        Paths of the sheets.

    Raises:
        ValueError: the video is too short, or nothing is predicted in a frame.
    """
    sheets, index = [], -1
    for index, (name, frame, prediction) in enumerate(segmented):
        if index in frames:
            panels = panels_of(module.network, frame, prediction)
            if not panels:
                raise ValueError(f"frame {index}: no object is annotated up to here, so there is nothing to draw")
            sheets.append(write_panels(output, name, panels))
        if index >= max(frames):
            output.finish()
            return sheets
    raise ValueError(f"frame {max(frames)}: the video has frames 0 to {index}")


def of_sample(engine: InferenceEngine, video: VideoSample) -> Segmented:
    """Segment a video of a data set."""
    for prediction in engine.run(video):
        yield video.frame_names[prediction.frame_index], video.frames[prediction.frame_index], prediction


def of_files(
    engine: InferenceEngine, frames: FrameSource, masks: GivenMasks, proposals: FrameProposals | None = None
) -> Segmented:
    """Segment a user's video, see ``predict``."""
    for index, (name, frame) in enumerate(frames):
        yield name, frame, step_frame(engine, name, frame, masks.read(index), proposals)
