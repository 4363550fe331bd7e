"""The user's own annotated videos."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from data_modules.base import Loading, VOSDataModule
from data_modules.clips.dataset import ClipSource
from data_modules.clips.proposals import ProposalVideos, add_proposals
from data_modules.clips.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.clips.videos import RecordClips, no_object_in, shows_object
from data_modules.proposals import StoredProposals
from data_modules.records import find_record, read_names
from data_modules.videos import RecordVideos
from vos_lightning.io.files import list_folders, natural_key
from vos_lightning.proposals.store import NUM_PROPOSALS
from vos_lightning.structures import LazySequence, VideoRecord, VideoSample

MIN_SCORED = 3
"""Fewest masks of a held-out video: the first annotated frame is given and the last is not scored."""


OWN_VIDEOS_LOADING = Loading(batch_size=4, num_workers=2)


class OwnVideosDataModule(VOSDataModule):
    """A folder of videos in which some frames have masks; some of the videos are held out for scoring.

    ::

        <root>/JPEGImages/<video>/<frame>.jpg     or .png; every frame, in the natural order of the names (2 before 10)
        <root>/Annotations/<video>/<frame>.png    indexed masks, ids 1, 2, ..., or black and white ones of a single object;
                                                  the first one holds every object that is scored
        <root>/val.txt                            optional: names of the held-out videos, one a line

    A system that matches proposals (DMN-AOA) needs a file ``<video>.npz`` for every video in the folder ``proposals``: ``python
    -m vos_lightning precompute-proposals --images <root>/JPEGImages --output <proposals> ...``.

    Frames before the first mask of a video are not used. Training draws from the annotated frames only, so their spacing is the
    step from frame to frame. Held-out videos are segmented frame by frame and scored where they are annotated.

    Args:
        root: folder of the videos, see above.
        held_out: share of the videos that is held out if there is no ``val.txt``, in (0, 1); at least one video, evenly spaced
            in the order of their names.
        recipe: how clips are made.
        loading: batches, workers and seed, see :class:`Loading`.
        proposals: folder of proposals; None for none.
        num_proposals: number of proposals of a frame; the best ones are taken.
    """

    proposals_option = "pass --data.init_args.proposals=FOLDER"

    def __init__(
        self,
        root: str,
        held_out: float = 0.25,
        recipe: ClipRecipe = DEFAULT_RECIPE,
        loading: Loading = OWN_VIDEOS_LOADING,
        proposals: str | None = None,
        num_proposals: int = NUM_PROPOSALS,
    ) -> None:
        super().__init__(loading, recipe)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share of the videos in (0, 1), not {held_out}")
        self.root = Path(root)
        self.held_out = held_out
        self.proposals = None if proposals is None else StoredProposals([proposals], num_proposals)

    def clip_source(self) -> RecordClips:
        """Clips of the videos that are not held out."""
        return _OwnClips(self.records(held_out=False))

    def clip_parts(self) -> list[tuple[ClipSource, ClipRecipe]]:
        """The single source, with proposals if there are any."""
        parts = super().clip_parts()
        return parts if self.proposals is None else add_proposals(parts, self.proposals)

    def val_videos(self) -> LazySequence[VideoSample]:
        """Held-out videos."""
        return self._with_proposals(RecordVideos(self.records(held_out=True), with_targets=True))

    def test_videos(self) -> LazySequence[VideoSample]:
        """Held-out videos."""
        return self.val_videos()

    def predict_videos(self) -> LazySequence[VideoSample]:
        """Videos under ``predict_root``, or the held-out ones."""
        return self.test_videos() if self.loading.predict_root is None else self._with_proposals(super().predict_videos())

    def _with_proposals(self, videos: LazySequence[VideoSample]) -> LazySequence[VideoSample]:
        return videos if self.proposals is None else ProposalVideos(videos, self.proposals)

    def records(self, held_out: bool) -> list[VideoRecord]:
        """Videos of the held-out part or of the training part.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: there are too few videos, an unknown name in ``val.txt``, or a held-out video with too few masks.
        """
        images, labels = self.root / "JPEGImages", self.root / "Annotations"
        names = self._names
        if len(names) < 2:
            raise ValueError(f"{images} holds {len(names)} videos: at least one to train on and one to hold out are needed")
        chosen = self._held_out(names)
        if len(chosen) == len(names):
            raise ValueError(f"{self.root / 'val.txt'} holds out every video: leave at least one to train on")
        records = [_from_first_mask(find_record(n, images, labels, self.root)) for n in names if (n in chosen) == held_out]
        for record in records:
            if held_out and len(record.label_paths) < MIN_SCORED:
                raise ValueError(
                    f"{labels / record.name} holds {len(record.label_paths)} masks: a held-out video needs at least {MIN_SCORED} "
                    "(the first is given, the last is not scored)"
                )
        return records

    @functools.cached_property
    def _names(self) -> list[str]:
        images = self.root / "JPEGImages"
        if not images.is_dir():
            raise FileNotFoundError(f"{self.root} has no folder JPEGImages with a folder for each video: pass DATA=folder")
        return list_folders(images)

    def _held_out(self, names: list[str]) -> set[str]:
        listed = self.root / "val.txt"
        if listed.is_file():
            chosen = set(read_names(listed))
            unknown = sorted(chosen - set(names), key=natural_key)
            if unknown:
                raise ValueError(f"{listed} names {unknown[0]}, which is no folder of {self.root / 'JPEGImages'}")
            return chosen
        count = min(max(round(self.held_out * len(names)), 1), len(names) - 1)
        return {names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)}


class _OwnClips(RecordClips):
    def check_objects(self) -> None:
        """Look for an object in every video, because there are few and each should show one."""
        for record in self.records:
            if not shows_object(record):
                raise no_object_in(record)


def _from_first_mask(record: VideoRecord) -> VideoRecord:
    """The video from the frame of its first mask on."""
    first = min(record.label_paths)
    return dataclasses.replace(
        record,
        frame_names=record.frame_names[first:],
        frame_paths=record.frame_paths[first:],
        label_paths={index - first: path for index, path in record.label_paths.items()},
    )
