"""Proposals for the clips and videos of any data module: read from files, or made from ground truth."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.dataset import ClipSource, ItemNames
from data_modules.clips.maps import ClipProposals, Maps
from data_modules.clips.proposals import ProposalSource, ProposalVideos, add_proposals, refuse_pasting
from data_modules.clips.recipe import ClipRecipe
from data_modules.clips.transforms import RawClip
from vos_lightning.io.files import find_files, inside
from vos_lightning.proposals.boxes import transform_proposals
from vos_lightning.proposals.frames import StoredFrames
from vos_lightning.proposals.store import NUM_PROPOSALS, ProposalFile, batch_proposals, precompute_command
from vos_lightning.proposals.truth import EXACT, TruthNoise, proposals_from_truth
from vos_lightning.structures import FrameProposals, LazySequence, Proposals, VideoSample

DEFAULT_NOISE = TruthNoise()


# Files ----------------------------------------------------------------------------------------------------------------


class StoredProposals(ProposalSource):
    """Proposals that were computed earlier by ``vos precompute-proposals``.

    Args:
        roots: folders with one file ``<video>.npz`` for each video (or for each still image), searched in order.
        num_proposals: number of proposals of a frame; the best ones are taken.
        truth_probability: probability that a training clip gets its true objects as additional proposals, in place of the last
            ones.
        generator: origin that the files must record; None accepts any.

    Raises:
        ValueError: no folder is given, or the probability is not in [0, 1].
    """

    def __init__(
        self, roots: list[str], num_proposals: int = NUM_PROPOSALS, truth_probability: float = 0.0, generator: str | None = None
    ) -> None:
        if not roots:
            raise ValueError("roots must name at least one folder of proposals")
        if not 0 <= truth_probability <= 1:
            raise ValueError(f"truth_probability must be in [0, 1], not {truth_probability}")
        self.roots = [Path(root) for root in roots]
        self.generator = generator
        self.num_proposals = num_proposals
        self.truth_probability = truth_probability

    def check(self, items: Iterable[ItemNames]) -> None:
        """Look for the files, and for the frames in the files of videos; only their headers are read."""
        wanted = {item.name: item for item in items}
        there: set[str] = set()
        for root in filter(Path.is_dir, self.roots):
            there.update(str(path.relative_to(root).with_suffix("")) for path in find_files(root, {".npz"}))
        missing = [item for name, item in wanted.items() if name not in there]
        if missing:
            raise FileNotFoundError(
                f"there are no proposals of {missing[0].name} ({len(missing)} of {len(wanted)} files are missing) in "
                f"{', '.join(map(str, self.roots))}: compute them with `{self.command(missing[0])}`"
            )
        empty: list[bool] = []
        for name, item in wanted.items():
            if item.frames is not None:
                file = self.file(name)
                file.check(list(item.frames.values()))
                empty.append(file.is_empty)
        if empty and all(empty):
            rank_zero_warn(f"the detector has found nothing in any frame of the {len(empty)} videos: no object will be matched")

    def command(self, item: ItemNames) -> str:
        """The command line that computes the proposals of a video or an image, and of those beside it."""
        stills = item.frames is None
        # The image is `<folder>/<name>.jpg`, or `<folder>/<name>/<frame>.jpg` of a video.
        place = os.path.splitext(item.image)[0] if stills else os.path.dirname(item.image)
        images = place.removesuffix(item.name).rstrip("/") if place.endswith(f"/{item.name}") else ""
        output = str(self.roots[0]) if len(self.roots) == 1 else "ONE_OF_THEM"
        return precompute_command(images or f"FOLDER_OF_{'IMAGES' if stills else 'VIDEOS'}", output, stills, self.generator)

    def place(self, video: str) -> Path:
        """Path of the file of a video: in the first folder that has it, otherwise in the last one.

        Raises:
            ValueError: the name or a link leads out of the folders.
        """
        places = [inside(root, f"{video}.npz") for root in self.roots]
        return next((place for place in places if place.is_file()), places[-1])

    def file(self, video: str) -> ProposalFile:
        """The file of a video.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: the file comes from another generator.
        """
        file = ProposalFile(self.place(video))
        if self.generator is not None and file.header.get("generator") != self.generator:
            raise ValueError(f"{file.path}: made by {file.header.get('generator')!r}, not by {self.generator!r}")
        return file

    def of_clip(self, clip: RawClip, frame_names: Sequence[str] | None) -> ClipProposals:
        """Read the frames of the clip, and move the proposals with the clip."""
        file = self.file(clip.video_name)
        if frame_names is None:
            # A still image has one frame, whatever its name.
            if len(file.frames) != 1:
                raise ValueError(f"{file.path}: proposals of {len(file.frames)} frames for an image; compute it with --stills")
            frame_names = file.frames * len(clip.frames)
        file.check(frame_names, (clip.frames.shape[1], clip.frames.shape[2]))
        stored = batch_proposals(file.read(frame_names), self.num_proposals)

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

    def of_video(self, video: VideoSample) -> FrameProposals:
        """Read the proposals frame by frame."""
        return StoredFrames(self.file(video.name), video.frame_names, size=video.original_size, num_proposals=self.num_proposals)


def _put_last(proposals: Proposals, others: Proposals) -> Proposals:
    """Put other proposals in the last places, where they exist."""
    exists = others.scores.flip(1) > 0
    return Proposals(
        torch.where(exists[..., None], others.boxes.flip(1), proposals.boxes),
        torch.where(exists[..., None, None], others.masks.flip(1), proposals.masks),
        torch.where(exists, others.scores.flip(1), proposals.scores),
    )


# Ground truth ---------------------------------------------------------------------------------------------------------


class ProposalsFromTruth(ProposalSource):
    """Noisy proposals from the true label maps, also in evaluation: scores that use them are not results of a system.

    Args:
        num_proposals: number of proposals of a frame; missing ones are padding.
        noise: noise of the proposals.
        seed: seed of the noise in evaluation, which is the same in every run; the noise in training comes from the clip's
            generator.
    """

    def __init__(self, num_proposals: int = 30, noise: TruthNoise = DEFAULT_NOISE, seed: int = 0) -> None:
        self.num_proposals = num_proposals
        self.noise = noise
        self.seed = seed

    def check(self, items: Iterable[ItemNames]) -> None:
        """Check nothing, because the proposals are made on demand."""

    def of_clip(self, clip: RawClip, frame_names: Sequence[str] | None) -> ClipProposals:  # noqa: ARG002
        """Make the proposals from the label maps of the transformed clip."""

        def make(rng: np.random.Generator, label_maps: UInt8[Tensor, "T H W"], maps: Maps) -> Proposals:  # noqa: ARG001
            return batch_proposals([proposals_from_truth(m, self.noise, rng) for m in label_maps], self.num_proposals)

        return make

    def of_video(self, video: VideoSample) -> FrameProposals:
        """Make the proposals from the targets.

        Raises:
            ValueError: a frame has no target; without proposals nothing would be matched in it.
        """
        there = set(video.targets)  # the indices only: accessing a target would read its file
        missing = [index for index in range(video.length or 0) if index not in there]
        if missing:
            raise ValueError(
                f"{video.name}: frame {video.name_of(missing[0])} has no true mask to make proposals of ({len(missing)} "
                "frames lack one): use StoredProposals"
            )
        return _TrueVideo(video, self)


class _TrueVideo:
    def __init__(self, video: VideoSample, source: ProposalsFromTruth) -> None:
        self.targets, self.source = video.targets, source
        self.seed = zlib.crc32(video.name.encode())

    def of_frame(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Proposals:  # noqa: ARG002
        """Proposals of a frame, the same in every run."""
        target = self.targets[index]
        rng = np.random.Generator(np.random.PCG64([self.source.seed, self.seed, index]))
        return batch_proposals([proposals_from_truth(target, self.source.noise, rng)], self.source.num_proposals)


# Any data module with proposals ---------------------------------------------------------------------------------------


PROPOSALS_LOADING = Loading(batch_size=4)


class ProposalsDataModule(VOSDataModule):
    """The clips and videos of another data module, with proposals.

    Args:
        source: the data module; its recipes make the clips.
        proposals: where the proposals come from.
        loading: batches, workers and seed, see :class:`Loading`.

    Raises:
        ValueError: the recipe of ``source`` pastes the objects of other clips.
    """

    def __init__(
        self,
        source: VOSDataModule,
        proposals: ProposalSource,
        loading: Loading = PROPOSALS_LOADING,
    ) -> None:
        refuse_pasting(source.recipe)
        super().__init__(loading, source.recipe)
        self.source = source
        self.proposals = proposals

    def clip_source(self) -> ClipSource:
        """Not available, as there may be several sources: see :meth:`clip_parts`."""
        raise NotImplementedError("the source may have several parts: use clip_parts")

    def clip_parts(self) -> list[tuple[ClipSource, ClipRecipe]]:
        """Parts of the source, with proposals."""
        return add_proposals(self.source.clip_parts(), self.proposals)

    def val_videos(self) -> LazySequence[VideoSample]:
        """Validation videos of the source, with proposals."""
        return ProposalVideos(self.source.val_videos(), self.proposals)

    def test_videos(self) -> LazySequence[VideoSample]:
        """Test videos of the source, with proposals."""
        return ProposalVideos(self.source.test_videos(), self.proposals)

    def predict_videos(self) -> LazySequence[VideoSample]:
        """Videos under ``predict_root``, or test videos of the source, with proposals."""
        return ProposalVideos(
            super().predict_videos() if self.loading.predict_root else self.source.test_videos(), self.proposals
        )
