"""A user's video, opened with its masks and proposals for a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vos_lightning.io.given_masks import GivenMasks
from vos_lightning.io.videos import FrameSource
from vos_lightning.modules.proposal_detector import load_detector
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.proposals.frames import CountedProposals, DetectedFrames, StoredFrames
from vos_lightning.proposals.store import ProposalFile, precompute_command


def read_masks(arguments: argparse.Namespace, frames: FrameSource) -> GivenMasks:
    """Read and check the masks of ``--masks``, and print what is in them.

    Args:
        arguments: those of :func:`vos_lightning.app.options.add_mask_options`, and ``masks``.
        frames: the video.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a mask cannot be used, see :class:`GivenMasks`.
    """
    masks = GivenMasks(arguments.masks, frames, arguments.first_number, arguments.allow_rims)
    sys.stdout.write("".join(f"{line}\n" for line in masks.report()))
    return masks


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
