"""Clips and videos of any source, each with its proposals."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.maps import ClipProposals
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.transforms import RawClip
from data_modules.videos import LazyVideos, RecordVideos
from vos_lightning.structures import LazySequence, Proposals, VideoSample


class ProposalSource(ABC):
    """Where proposals come from."""

    num_proposals: int

    @abstractmethod
    def of_clip(self, clip: RawClip, frame_names: Sequence[str] | None) -> ClipProposals:
        """What makes the proposals of a clip once it is transformed.

        Args:
            clip: as read.
            frame_names: of its frames; None for a still image.
        """

    @abstractmethod
    def of_video(self, video: VideoSample) -> Mapping[int, Proposals]:
        """Proposals of every frame, made or read when they are accessed."""

    @abstractmethod
    def check(self, items: Iterable[ItemNames]) -> None:
        """Whether there are proposals of all these videos and images, before anything is computed.

        Raises:
            FileNotFoundError: those of a video or an image are missing; the message says of which, and how they are made.
            ValueError: those of a frame are missing.
        """


class ProposalClips(ClipSource):
    """Clips of another source, each with what makes its proposals.

    Args:
        source: of the clips.
        proposals: of the proposals.
    """

    def __init__(self, source: ClipSource, proposals: ProposalSource) -> None:
        self.source = source
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.source)

    def names(self, index: int) -> ItemNames:
        """Those of the source."""
        return self.source.names(index)

    def check_objects(self) -> None:
        """That of the source."""
        self.source.check_objects()

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """A clip of the source."""
        clip = self.source.draw(index, rng, recipe)
        frames = self.names(index).frames
        names = None if frames is None else [frames[i] for i in clip.frame_indices]
        return dataclasses.replace(clip, proposals=self.proposals.of_clip(clip, names))


class ProposalVideos(LazyVideos):
    """Videos of another sequence, each with its proposals.

    Args:
        videos: opened when they are accessed.
        proposals: of the proposals.
    """

    def __init__(self, videos: LazySequence[VideoSample], proposals: ProposalSource) -> None:
        self.videos = videos
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> VideoSample:
        video = self.videos[index]
        return dataclasses.replace(video, proposals=self.proposals.of_video(video))

    def names(self) -> Iterator[ItemNames]:
        """Of every video and its frames; videos on disk are not opened."""
        for video in self.videos.records if isinstance(self.videos, RecordVideos) else self.videos:
            yield ItemNames(video.name, dict(enumerate(video.frame_names)))


def add_proposals(
    parts: Iterable[tuple[ClipSource, ClipRecipe]], proposals: ProposalSource
) -> list[tuple[ClipSource, ClipRecipe]]:
    """Sources with proposals, each with its recipe.

    Raises:
        ValueError: see :func:`refuse_pasting`.
    """
    parts = list(parts)
    for _, recipe in parts:
        refuse_pasting(recipe)
    wrapped = {id(source): ProposalClips(source, proposals) for source, _ in parts}  # some are listed repeatedly
    return [(wrapped[id(source)], recipe) for source, recipe in parts]


def refuse_pasting(recipe: ClipRecipe) -> None:
    """Refuse recipes that paste the objects of other clips, which proposals would not follow.

    Raises:
        ValueError: the recipe does.
    """
    if recipe.swap_probability:
        raise ValueError("proposals do not follow objects into other clips: set recipe.swap_probability of the source to 0")


def check_proposals(clips: Sequence[ClipSource], videos: Sequence[LazySequence[VideoSample]]) -> bool:
    """Look for the proposals of everything that is going to be used.

    Args:
        clips: sources of training clips.
        videos: to evaluate.

    Returns:
        Whether all clips and all videos have proposals.

    Raises:
        FileNotFoundError: see :meth:`ProposalSource.check`.
        ValueError: likewise.
    """
    wanted: dict[int, tuple[ProposalSource, list[Iterable[ItemNames]]]] = {}
    for source in clips:
        if isinstance(source, ProposalClips):
            _, names = wanted.setdefault(id(source.proposals), (source.proposals, []))
            names.append(map(source.names, range(len(source))))
    for group in videos:
        if isinstance(group, ProposalVideos):
            _, names = wanted.setdefault(id(group.proposals), (group.proposals, []))
            names.append(group.names())
    for proposals, names in wanted.values():
        proposals.check(chain.from_iterable(names))
    return all(isinstance(source, ProposalClips) for source in clips) and all(
        isinstance(group, ProposalVideos) for group in videos if len(group)
    )
