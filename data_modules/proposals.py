"""Proposals for the clips and videos of any data module: read from files, or made from ground truth."""

from __future__ import annotations

import dataclasses
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from data_modules.base import VOSDataModule
from data_modules.clip_dataset import ClipSource
from data_modules.clip_geometry import ClipProposals, Maps
from data_modules.recipe import ClipRecipe
from data_modules.sources import RecordClips
from data_modules.transforms import RawClip
from vos_lightning.proposals.boxes import transform_proposals
from vos_lightning.proposals.store import ProposalFile, batch_proposals, nothing_found
from vos_lightning.proposals.truth import EXACT, TruthNoise, proposals_from_truth
from vos_lightning.structures import LazySequence, Proposals, VideoSample

DEFAULT_NOISE = TruthNoise()


class ProposalSource(ABC):
    """Where proposals come from."""

    num_proposals: int

    @abstractmethod
    def of_clip(self, clip: RawClip, frame_names: Sequence[str]) -> ClipProposals:
        """What makes the proposals of a clip once it is transformed."""

    @abstractmethod
    def of_video(self, video: VideoSample) -> Mapping[int, Proposals]:
        """Proposals of every frame, made or read when they are accessed."""


class LazyProposals(Mapping[int, Proposals]):
    """Frame index -> proposals of one row, made when they are accessed."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


# Files ----------------------------------------------------------------------------------------------------------------


class StoredProposals(ProposalSource):
    """Proposals that were computed before, see ``python -m vos_lightning precompute-proposals``.

    Args:
        roots: folders with one file a video, ``<video>.npz`` (of still images one an image), searched in order.
        num_proposals: the best ones of every frame.
        truth_probability: how often a training clip gets its true objects as further proposals, in place of the last ones.
        generator: what the files must say of where they come from; None takes any.

    Raises:
        ValueError: there is no folder, or the probability is none.
    """

    def __init__(
        self, roots: list[str], num_proposals: int = 30, truth_probability: float = 0.0, generator: str | None = None
    ) -> None:
        if not roots:
            raise ValueError("roots must name at least one folder of proposals")
        if not 0 <= truth_probability <= 1:
            raise ValueError(f"truth_probability must be in [0, 1], not {truth_probability}")
        self.roots = [Path(root) for root in roots]
        self.generator = generator
        self.num_proposals = num_proposals
        self.truth_probability = truth_probability

    def file(self, video: str) -> ProposalFile:
        """The file of a video.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it comes from another generator.
        """
        places = [root / f"{video}.npz" for root in self.roots]
        file = ProposalFile(next((place for place in places if place.is_file()), places[-1]))
        if self.generator is not None and file.header.get("generator") != self.generator:
            raise ValueError(f"{file.path}: made by {file.header.get('generator')!r}, not by {self.generator!r}")
        return file

    def of_clip(self, clip: RawClip, frame_names: Sequence[str]) -> ClipProposals:
        """Read the frames of the clip; they are moved with the clip."""
        file = self.file(clip.video_name)
        # A still image has one frame, whatever its name.
        names = list(frame_names) or file.frames[:1] * len(clip.frames)
        stored = batch_proposals(file.read(names), self.num_proposals)

        def move(rng: np.random.Generator, label_maps: UInt8[Tensor, "T H W"], maps: Maps) -> Proposals:
            height, width = label_maps.shape[1:]
            forward = torch.from_numpy(maps).float()
            boxes, masks, left = transform_proposals(stored.boxes, stored.masks, forward, height, width)
            scores = stored.scores * left
            if rng.random() < self.truth_probability:
                true = batch_proposals([proposals_from_truth(m, EXACT, rng) for m in label_maps], self.num_proposals)
                return _put_last(Proposals(boxes, masks, scores), true)
            return Proposals(boxes, masks, scores)

        return move

    def of_video(self, video: VideoSample) -> Mapping[int, Proposals]:
        """Read frame by frame."""
        return _StoredVideo(self.file(video.name), video.frame_names, self.num_proposals)


class _StoredVideo(LazyProposals):
    def __init__(self, file: ProposalFile, frame_names: Sequence[str], num_proposals: int) -> None:
        super().__init__(len(frame_names))
        self.file, self.frame_names, self.num_proposals = file, frame_names, num_proposals

    def __getitem__(self, index: int) -> Proposals:
        return batch_proposals(self.file.read([self.frame_names[index]]), self.num_proposals)


def _put_last(proposals: Proposals, others: Proposals) -> Proposals:
    """Other proposals in the last places, where they exist."""
    exists = others.scores.flip(1) > 0
    return Proposals(
        torch.where(exists[..., None], others.boxes.flip(1), proposals.boxes),
        torch.where(exists[..., None, None], others.masks.flip(1), proposals.masks),
        torch.where(exists, others.scores.flip(1), proposals.scores),
    )


# Ground truth ---------------------------------------------------------------------------------------------------------


class ProposalsFromTruth(ProposalSource):
    """Noisy proposals from the true label maps, of evaluation too: what is reached with them is no result of a system.

    Args:
        num_proposals: places; those that the noise leaves free stay empty.
        noise: recall, jitter, distractors.
        seed: of the noise in evaluation, which is the same in every run; that of training comes from the clip.
    """

    def __init__(self, num_proposals: int = 30, noise: TruthNoise = DEFAULT_NOISE, seed: int = 0) -> None:
        self.num_proposals = num_proposals
        self.noise = noise
        self.seed = seed

    def of_clip(self, clip: RawClip, frame_names: Sequence[str]) -> ClipProposals:  # noqa: ARG002
        """Make them from the label maps of the transformed clip."""

        def make(rng: np.random.Generator, label_maps: UInt8[Tensor, "T H W"], maps: Maps) -> Proposals:  # noqa: ARG001
            return batch_proposals([proposals_from_truth(m, self.noise, rng) for m in label_maps], self.num_proposals)

        return make

    def of_video(self, video: VideoSample) -> Mapping[int, Proposals]:
        """Make them from the targets; a frame without a target has none."""
        return _TrueVideo(video, self)


class _TrueVideo(LazyProposals):
    def __init__(self, video: VideoSample, source: ProposalsFromTruth) -> None:
        super().__init__(len(video.frames))
        self.targets, self.source = video.targets, source
        self.seed = zlib.crc32(video.name.encode())

    def __getitem__(self, index: int) -> Proposals:
        target = self.targets.get(index)
        if target is None:
            return batch_proposals([nothing_found()], self.source.num_proposals)
        rng = np.random.Generator(np.random.PCG64([self.source.seed, self.seed, index]))
        return batch_proposals([proposals_from_truth(target, self.source.noise, rng)], self.source.num_proposals)


# Any data module with proposals ---------------------------------------------------------------------------------------


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

    def check_objects(self) -> None:
        """That of the source."""
        self.source.check_objects()

    def draw(self, index: int, rng: np.random.Generator, recipe: ClipRecipe) -> RawClip:
        """A clip of the source."""
        clip = self.source.draw(index, rng, recipe)
        names: list[str] = []
        if isinstance(self.source, RecordClips):
            names = [self.source.records[index].frame_names[i] for i in clip.frame_indices]
        return dataclasses.replace(clip, proposals=self.proposals.of_clip(clip, names))


class ProposalVideos(Sequence[VideoSample]):
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

    def __getitem__(self, index: int) -> VideoSample:  # type: ignore[override]
        video = self.videos[index]
        return dataclasses.replace(video, proposals=self.proposals.of_video(video))


class ProposalsDataModule(VOSDataModule):
    """The clips and videos of another data module, with proposals.

    Args:
        source: the data module; its recipes make the clips.
        proposals: where the proposals come from.
        batch_size: see :class:`data_modules.base.VOSDataModule`, as for the rest; those of ``source`` do not matter.
        num_workers: likewise.
        seed: likewise.
        pin_memory: likewise.
        predict_root: likewise.
        max_device_batch: likewise.

    Raises:
        ValueError: the recipe of ``source`` pastes the objects of other clips.
    """

    def __init__(
        self,
        source: VOSDataModule,
        proposals: ProposalSource,
        batch_size: int = 4,
        num_workers: int = 4,
        seed: int = 0,
        pin_memory: bool = False,
        predict_root: str | None = None,
        max_device_batch: int | None = None,
    ) -> None:
        if source.recipe.swap_probability:
            raise ValueError("proposals do not follow objects into other clips: set recipe.swap_probability of the source to 0")
        super().__init__(batch_size, num_workers, seed, source.recipe, pin_memory, predict_root, max_device_batch)
        self.source = source
        self.proposals = proposals

    def clip_source(self) -> ClipSource:
        """Not one: see :meth:`clip_parts`."""
        raise NotImplementedError("the source may have several parts: use clip_parts")

    def clip_parts(self) -> list[tuple[ClipSource, ClipRecipe]]:
        """Those of the source, with proposals."""
        return [(ProposalClips(source, self.proposals), recipe) for source, recipe in self.source.clip_parts()]

    def val_videos(self) -> ProposalVideos:
        """Those of the source, with proposals."""
        return ProposalVideos(self.source.val_videos(), self.proposals)

    def test_videos(self) -> ProposalVideos:
        """Those of the source, with proposals."""
        return ProposalVideos(self.source.test_videos(), self.proposals)

    def predict_videos(self) -> ProposalVideos:
        """Those under ``predict_root``, or of the test split, with proposals."""
        return ProposalVideos(super().predict_videos() if self.predict_root else self.source.test_videos(), self.proposals)
