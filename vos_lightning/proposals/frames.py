"""Proposals frame by frame: read from a file, or found by a detector while the video is processed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.proposals.detector import ProposalDetector
from vos_lightning.proposals.store import NUM_PROPOSALS, Found, ProposalFile, as_stored, batch_proposals
from vos_lightning.structures import Proposals, frame_name


class CountedProposals(ABC):
    """Proposals of a video's frames (:class:`vos_lightning.structures.FrameProposals`) that count the frames without any.

    Args:
        num_proposals: number of proposals of a frame; the best ones are taken.

    Attributes:
        num_frames: number of frames whose proposals were requested.
        num_empty: number of these frames in which the detector found nothing.
    """

    def __init__(self, num_proposals: int = NUM_PROPOSALS) -> None:
        self.num_proposals = num_proposals
        self.num_frames = self.num_empty = 0

    def of_frame(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Proposals:
        """The best proposals of a frame, in the form that the engine takes.

        Args:
            index: index of the frame.
            frame: RGB image on the host.

        Raises:
            ValueError: a file does not belong to the video.
        """
        found = self._find(index, frame)
        self.num_frames += 1
        self.num_empty += len(found.scores) == 0
        return batch_proposals([found], self.num_proposals)

    @abstractmethod
    def _find(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Found: ...

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


class StoredFrames(CountedProposals):
    """Proposals from a file, see :mod:`vos_lightning.proposals.store`.

    Args:
        file: the file of stored proposals.
        names: names of the frames of the video; None if they are not known (a video file), then ``length`` is compared.
        length: number of frames, if it is known.
        size: height and width of the frames in pixels.
        num_proposals: number of proposals of a frame; the best ones are taken.

    Raises:
        ValueError: the file belongs to another video.
    """

    def __init__(
        self,
        file: ProposalFile,
        names: Sequence[str] | None = None,
        length: int | None = None,
        size: tuple[int, int] | None = None,
        num_proposals: int = NUM_PROPOSALS,
    ) -> None:
        super().__init__(num_proposals)
        self.file, self.names = file, names
        if size is not None:
            self.file.check([], size)
        if names is not None:
            self.file.check(names)
        elif length is not None and len(self.file.frames) < length:
            raise ValueError(
                f"{file.path}: proposals of {len(file.frames)} frames for a video of {length} frames; compute them for this video"
            )

    def _find(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Found:
        name = frame_name(self.names, index)
        self.file.check([name], (int(frame.shape[1]), int(frame.shape[2])))
        return self.file.read([name])[0]


class DetectedFrames(CountedProposals):
    """Proposals that a detector finds on demand, equal to those that it would write into a file.

    Args:
        detector: the detector, on the device on which it should run.
    """

    def __init__(self, detector: ProposalDetector) -> None:
        super().__init__()
        self.detector = detector

    def _find(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Found:  # noqa: ARG002
        return as_stored(self.detector.find([frame])[0])
