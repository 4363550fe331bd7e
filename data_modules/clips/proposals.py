"""Clips and videos of any source, together with their proposals."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.maps import ClipProposals
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.transforms import RawClip
from data_modules.videos import LazyVideos, RecordVideos
from vos_lightning.structures import FrameProposals, LazySequence, VideoSample


class ProposalSource(ABC):
    """Source of proposals."""

    num_proposals: int

    @abstractmethod
    def of_clip(self, clip: RawClip, frame_names: Sequence[str] | None) -> ClipProposals:
        """Return the function that makes the proposals of a clip after its transforms.

        Args:
            clip: the clip as read.
            frame_names: names of its frames; None for a still image.
        """

    @abstractmethod
    def of_video(self, video: VideoSample) -> FrameProposals:
        """Proposals of every frame, made or read when they are asked for."""

    @abstractmethod
    def check(self, items: Iterable[ItemNames]) -> None:
        """Check that all these videos and images have proposals, before anything is computed.

        Raises:
            FileNotFoundError: proposals of a video or an image are missing; the message names it and the command that makes them.
            ValueError: proposals of a frame are missing.
        """


class ProposalClips(ClipSource):
    """Clips of another source, each with a function that makes its proposals.

    Args:
        source: source of the clips.
        proposals: source of the proposals.
    """

    def __init__(self, source: ClipSource, proposals: ProposalSource) -> None:
        self.source = source
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.source)

    def names(self, index: int) -> ItemNames:
        """Names of the source's item."""
        return self.source.names(index)

    def check_objects(self) -> None:
        """Check the objects of the source."""
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
        videos: the videos, which are opened when they are accessed.
        proposals: source of the proposals.
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
        """Names of every video and its frames; videos on disk are not opened."""
        if isinstance(self.videos, RecordVideos):
            for record in self.videos.records:
                yield ItemNames(record.name, dict(enumerate(record.frame_names)), record.frame_paths[0])
        else:
            for video in self.videos:
                yield ItemNames(video.name, dict(enumerate(video.frame_names or ())))


def name_of(videos: LazySequence[VideoSample], index: int) -> str:
    """Name of a video that may not be possible to open: its own if it is a video on disk, else its number, counted from 1."""
    inner = videos.videos if isinstance(videos, ProposalVideos) else videos
    return inner.records[index].name if isinstance(inner, RecordVideos) else f"video {index + 1}"


def add_proposals(
    parts: Iterable[tuple[ClipSource, ClipRecipe]], proposals: ProposalSource
) -> list[tuple[ClipSource, ClipRecipe]]:
    """Add proposals to sources, each of which comes with its recipe.

    Raises:
        ValueError: see :func:`refuse_pasting`.
    """
    parts = list(parts)
    for _, recipe in parts:
        refuse_pasting(recipe)
    wrapped = {id(source): ProposalClips(source, proposals) for source, _ in parts}  # a source may be listed several times
    return [(wrapped[id(source)], recipe) for source, recipe in parts]


def refuse_pasting(recipe: ClipRecipe) -> None:
    """Refuse recipes that paste objects of other clips, because proposals do not follow them.

    Raises:
        ValueError: the recipe pastes objects.
    """
    if recipe.swap_probability:
        raise ValueError("proposals do not follow objects into other clips: set recipe.swap_probability of the source to 0")


def needed_proposals(
    clips: Iterable[ClipSource], videos: Iterable[LazySequence[VideoSample]]
) -> list[tuple[ProposalSource, Iterator[ItemNames]]]:
    """Every source of proposals that clips and videos have, with all that it has to have proposals of."""
    wanted: dict[int, tuple[ProposalSource, list[Iterable[ItemNames]]]] = {}
    for source in clips:
        if isinstance(source, ProposalClips):
            _, names = wanted.setdefault(id(source.proposals), (source.proposals, []))
            names.append(map(source.names, range(len(source))))
    for group in videos:
        if isinstance(group, ProposalVideos):
            _, names = wanted.setdefault(id(group.proposals), (group.proposals, []))
            names.append(group.names())
    return [(proposals, chain.from_iterable(names)) for proposals, names in wanted.values()]


def check_proposals(clips: Sequence[ClipSource], videos: Sequence[LazySequence[VideoSample]]) -> bool:
    """Check the proposals of everything that is going to be used, see :meth:`ProposalSource.check`.

    Args:
        clips: sources of training clips.
        videos: videos to evaluate.

    Returns:
        Whether all clips and all videos have proposals.

    Raises:
        FileNotFoundError: see :meth:`ProposalSource.check`.
        ValueError: see :meth:`ProposalSource.check`.
    """
    for proposals, names in needed_proposals(clips, videos):
        proposals.check(names)
    return all(isinstance(source, ProposalClips) for source in clips) and all(
        isinstance(group, ProposalVideos) for group in videos if len(group)
    )
