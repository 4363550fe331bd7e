"""Proposals frame by frame: read from a file, or found by a detector while the video is processed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.proposals.detector import ProposalDetector
from vos_lightning.proposals.store import NUM_PROPOSALS, Found, ProposalFile, as_stored, batch_proposals
from vos_lightning.structures import Proposals


class FrameProposals(ABC):
    """Source of the proposals of a video's frames; it counts the frames without any.

    Attributes:
        num_frames: number of frames whose proposals were requested.
        num_empty: number of these frames in which the detector found nothing.
    """

    def __init__(self) -> None:
        self.num_frames = self.num_empty = 0

    def of_frame(self, name: str, frame: UInt8[Tensor, "3 H W"]) -> Proposals:
        """The best proposals of a frame, in the form that the engine takes.

        Args:
            name: name of the frame.
            frame: RGB image on the host.

        Raises:
            ValueError: a file does not belong to the video.
        """
        found = self._find(name, frame)
        self.num_frames += 1
        self.num_empty += len(found.scores) == 0
        return batch_proposals([found], NUM_PROPOSALS)

    @abstractmethod
    def _find(self, name: str, frame: UInt8[Tensor, "3 H W"]) -> Found: ...

    @property
    def note(self) -> str | None:
        """One line about frames without proposals; None if every frame has some."""
        if not self.num_empty:
            return None
        if self.num_empty == self.num_frames:
            return (
                f"the detector found nothing in any of {self.num_frames} frames: no object was matched, every mask continues "
                "from the one before; use another detector"
            )
        return (
            f"the detector found nothing in {self.num_empty} of {self.num_frames} frames: there, masks continue from those before"
        )


class StoredFrames(FrameProposals):
    """Proposals from a file, see :mod:`vos_lightning.proposals.store`.

    Args:
        path: file of stored proposals.
        names: names of the frames of the video; None if they are not known (a video file), then ``length`` is compared.
        length: number of frames, if it is known.
        size: height and width of the frames in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or belongs to another video.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str] | None = None,
        length: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.file = ProposalFile(path)
        if size is not None:
            self.file.check([], size)
        if names is not None:
            self.file.check(names)
        elif length is not None and len(self.file.frames) < length:
            raise ValueError(
                f"{path}: proposals of {len(self.file.frames)} frames for a video of {length} frames; compute them for this video"
            )

    def _find(self, name: str, frame: UInt8[Tensor, "3 H W"]) -> Found:
        self.file.check([name], (int(frame.shape[1]), int(frame.shape[2])))
        return self.file.read([name])[0]


class DetectedFrames(FrameProposals):
    """Proposals that a detector finds on demand, equal to those that it would write into a file.

    Args:
        detector: the detector, on the device on which it should run.
    """

    def __init__(self, detector: ProposalDetector) -> None:
        super().__init__()
        self.detector = detector

    def _find(self, name: str, frame: UInt8[Tensor, "3 H W"]) -> Found:  # noqa: ARG002
        return as_stored(self.detector.find([frame])[0])
