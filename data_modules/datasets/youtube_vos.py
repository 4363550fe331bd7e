"""YouTube-VOS 2018 and 2019."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data_modules.base import DEFAULT_LOADING, Loading, VOSDataModule
from data_modules.clips.recipe import DEFAULT_RECIPE, ClipRecipe
from data_modules.clips.videos import RecordClips
from data_modules.records import find_record, folders_in, read_names
from data_modules.videos import RecordVideos
from vos_lightning.io.files import check_name, natural_key
from vos_lightning.io.meta import read_youtube_meta
from vos_lightning.structures import VideoRecord

LEFT_OUT_BY_STCN = frozenset(["01e64dd36a", "04259896e2", "1336440745", "5bc77844da", "5ee23ca60e", "738e5a0a14", "f8af30d4b6"])
"""Training videos that STCN, XMem and Cutie leave out without stating why."""


@dataclasses.dataclass(frozen=True)
class ObjectMeta:
    """Description of an object in ``meta.json``."""

    frames: tuple[str, ...]
    """Stems of the frames from its first appearance to the last annotated frame of the video, whether it is visible or not."""
    category: str | None
    """Category of the object; None if it is not published."""


VideoMeta = dict[int, ObjectMeta]


def read_meta(path: Path) -> dict[str, VideoMeta]:
    """Objects of every video of a split, from its ``meta.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another structure.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: every split of YouTube-VOS has a meta.json, copy it there")
    return {
        check_name(name, path): {
            int(object_id): ObjectMeta(tuple(entry["frames"]), entry.get("category"))
            for object_id, entry in video["objects"].items()
        }
        for name, video in read_youtube_meta(path).items()
    }


def required_record(
    record: VideoRecord, meta: VideoMeta, seen: frozenset[str] | None = None, meta_path: str | Path = "meta.json"
) -> VideoRecord:
    """A record with the objects and the required frames of ``meta.json``.

    Frames before the first mask and after the last required frame are cut off: they cannot change a prediction.

    Args:
        record: the video with all of its frames; 0 in its label maps may mean unlabelled.
        meta: objects of the video.
        seen: categories of the training set; None if they are not known.
        meta_path: path of the meta file, for messages.

    Raises:
        FileNotFoundError: a frame or a first mask is missing.
        ValueError: the meta file lists no object of the video.
    """
    position = {stem: i for i, stem in enumerate(record.frame_names)}
    if not meta or not all(entry.frames for entry in meta.values()):
        raise ValueError(f"{meta_path}: video {record.name} lists no object, or one without frames")
    missing = [stem for entry in meta.values() for stem in entry.frames if stem not in position]
    if missing:
        folder = Path(record.frame_paths[0]).parent
        raise FileNotFoundError(f"{folder} has no frame {missing[0]}, which {meta_path} lists for video {record.name}")
    first = {object_id: min(position[stem] for stem in entry.frames) for object_id, entry in meta.items()}
    for object_id, index in first.items():
        if index not in record.label_paths:
            raise FileNotFoundError(
                f"{record.name}: object {object_id} starts in frame {record.frame_names[index]}, which has no label map"
            )
    required = sorted({position[stem] for entry in meta.values() for stem in entry.frames})
    start, stop = min(first.values()), required[-1] + 1
    return dataclasses.replace(
        record,
        frame_names=record.frame_names[start:stop],
        frame_paths=record.frame_paths[start:stop],
        label_paths={i - start: path for i, path in record.label_paths.items() if start <= i < stop},
        first_frame={object_id: index - start for object_id, index in first.items()},
        required_frames=tuple(i - start for i in required),
        unseen_ids=tuple(i for i, entry in meta.items() if seen is not None and entry.category not in seen),
    )


class YouTubeVOSDataModule(VOSDataModule):
    """YouTube-VOS as published: ``<split>/JPEGImages/<video>``, ``<split>/Annotations/<video>`` and ``<split>/meta.json``.

    Training videos are stored at 6 frames a second with every frame annotated. The label maps of a validation video show only the
    new objects of a frame (0 is not background), and predictions are required at 6 frames a second. Their truth is on a server,
    so ``test`` cannot score them and ``predict`` writes the files for submission. For validation during training, some training
    videos can be held out.

    Args:
        root: folder that contains ``train`` and ``valid``; 2018 and 2019 share the videos of ``train``, not its annotations.
        frames: ``all`` segments the 30 frames a second of ``<split>_all_frames/JPEGImages`` (here or in ``all_frames``); ``6fps``
            segments the frames of ``<split>/JPEGImages``. Results differ, so state which was used.
        train_split: folder of the training videos, e.g. ``train_480p`` for a smaller copy.
        test_split: folder of the videos to predict, ``valid`` or ``test``.
        train_subset: ``stcn`` leaves out the seven videos that STCN leaves out.
        train_list: text file of the training videos, one a line; None takes all.
        val_list: text file of training videos that are held out for validation.
        num_held_out: number of training videos that are held out without ``val_list``, evenly spread over their names in order.
        recipe: how clips are made; its gaps count annotated frames, which are five frames apart.
        loading: batches, workers and seed, see :class:`Loading`.
    """

    def __init__(
        self,
        root: str,
        frames: Literal["all", "6fps"] = "all",
        train_split: str = "train",
        test_split: str = "valid",
        train_subset: Literal["all", "stcn"] = "all",
        train_list: str | None = None,
        val_list: str | None = None,
        num_held_out: int = 0,
        recipe: ClipRecipe = DEFAULT_RECIPE,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        super().__init__(loading, recipe)
        self.root = Path(root)
        self.frames = frames
        self.train_split = train_split
        self.test_split = test_split
        self.train_subset = train_subset
        self.train_list = train_list
        self.val_list = val_list
        self.num_held_out = num_held_out

    def clip_source(self) -> RecordClips:
        """Clips of the training videos that are not held out."""
        images, labels = self._folders(self.train_split)
        held_out = set(self._held_out)
        names = [name for name in self._train_names if name not in held_out]
        return RecordClips([find_record(name, images, labels, self.root) for name in names])

    def val_videos(self) -> RecordVideos:
        """Held-out training videos, every annotated frame scored."""
        if not self._held_out:
            return RecordVideos([], with_targets=True)
        images, labels = self._folders(self.train_split)
        meta, path = self._train_meta
        return RecordVideos(
            [
                required_record(find_record(n, images, labels, self.root), _entry(meta, n, path), meta_path=path)
                for n in self._held_out
            ],
            with_targets=True,
        )

    def test_videos(self) -> RecordVideos:
        """Videos to predict, with targets if all label maps are there."""
        images, labels = self._folders(self.test_split)
        if self.frames == "all":
            images = self._all_frames(self.test_split)
        path = self.root / self.test_split / "meta.json"
        videos = read_meta(path)
        published = any(entry.category for meta in videos.values() for entry in meta.values())
        seen = (
            frozenset(e.category for m in self._train_meta[0].values() for e in m.values() if e.category) if published else None
        )
        records = [
            required_record(find_record(name, images, labels, self.root, exhaustive=False), meta, seen, path)
            for name, meta in sorted(videos.items(), key=lambda item: natural_key(item[0]))
        ]
        return RecordVideos(records, with_targets=True)

    @functools.cached_property
    def _train_names(self) -> list[str]:
        names = read_names(self.train_list) if self.train_list is not None else folders_in(self._folders(self.train_split)[1])
        return [n for n in names if n not in LEFT_OUT_BY_STCN] if self.train_subset == "stcn" else names

    @functools.cached_property
    def _held_out(self) -> Sequence[str]:
        if self.val_list is not None:
            return read_names(self.val_list)
        names = sorted(self._train_names, key=natural_key)
        if not 0 <= self.num_held_out < len(names):
            raise ValueError(f"num_held_out must be at least 0 and below the {len(names)} training videos: {self.num_held_out}")
        return [names[i * len(names) // self.num_held_out] for i in range(self.num_held_out)]

    @functools.cached_property
    def _train_meta(self) -> tuple[dict[str, VideoMeta], Path]:
        path = self.root / self.train_split / "meta.json"
        if not path.is_file():
            path = self.root / "train" / "meta.json"  # copies of another size have no meta file
        return read_meta(path), path

    def _folders(self, split: str) -> tuple[Path, Path]:
        images, labels = self.root / split / "JPEGImages", self.root / split / "Annotations"
        for folder in (images, labels):
            if not folder.is_dir():
                raise FileNotFoundError(f"YouTube-VOS root {self.root} has no {split}/{folder.name}: pass --data.init_args.root")
        return images, labels

    def _all_frames(self, split: str) -> Path:
        places = [
            self.root / f"{split}_all_frames" / "JPEGImages",
            self.root / "all_frames" / f"{split}_all_frames" / "JPEGImages",
        ]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise FileNotFoundError(
                f"{places[0]} does not exist: the frames at 30 a second are a download of their own (not there since 2024); "
                "--data.init_args.frames=6fps segments the others"
            )
        return found


def _entry(meta: dict[str, VideoMeta], name: str, path: Path) -> VideoMeta:
    if name not in meta:
        raise ValueError(f"{path} has no video {name}: take the meta.json and the list of the same release")
    return meta[name]
