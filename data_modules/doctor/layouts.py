"""Recognises the splits of a data set from a folder on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from data_modules.doctor.known import Kind
from data_modules.records import read_names
from vos_lightning.io.files import find_files, list_everything, list_folders, natural_key
from vos_lightning.io.meta import LVOSRange, LVOSVideo, YouTubeVideo, read_lvos_meta, read_youtube_meta

T_ = TypeVar("T_")
RESOLUTIONS = ("480p", "1080p", "Full-Resolution")
SPLIT_FOLDERS = ("train", "valid", "val", "test")
IMAGE_FOLDERS = (
    ("images", "masks"), ("images", "ground_truth_mask"), ("imgs", "gt"), ("Imgs", "Imgs"), ("DUTS-TR-Image", "DUTS-TR-Mask"),
    ("DUTS-TE-Image", "DUTS-TE-Mask"), ("datasets/imgs/pascal", "datasets/masks/pascal"), ("JPEGImages", "SegmentationObject"),
)  # fmt: skip
"""Pairs of folders of images and of masks in which sets of still images are distributed."""
ALL_FRAMES = ("valid_all_frames", "all_frames/valid_all_frames")


@dataclass(frozen=True)
class Split:
    """A part of a data set that is checked as a unit."""

    root: Path
    kind: Kind
    name: str
    images: Path
    """Folder of video folders; for still images, the folder of the images."""
    labels: Path
    videos: tuple[str, ...]
    """Videos that a list or a description names, else those that are found; for still images, paths of masks without suffix."""
    listed: bool = False
    annotated: Literal["all", "first", "some"] = "all"
    """Whether every frame, the first one, or some frames have a mask."""
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Frames that a description names, by video."""
    first_frames: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Frames in which objects begin according to a description, by video; their masks must exist."""
    num_objects: int | None = None
    """Number of objects in a description; None without a description."""
    remarks: tuple[str, ...] = ()
    endings: tuple[str, str] = ("", "")
    """Endings of the names of still images and of their masks."""

    @property
    def data_set(self) -> Path:
        """Folder of the data set, which holds the splits where they are folders; links may lead to anything in it."""
        return self.root.parent if self.name in SPLIT_FOLDERS and self.root.name == self.name else self.root

    def image_of(self, mask: str) -> str:
        """Name of the still image that a mask belongs to."""
        return mask.removesuffix(self.endings[1]) + self.endings[0]


def recognise(root: Path, depth: int = 2) -> list[Split]:
    """Splits of the data set in a folder, or of the data sets in its sub-folders; empty if there are none.

    Args:
        root: a data set, or a folder of data sets.
        depth: number of levels below the folder that are searched (``data/YouTube-VOS/2018`` lies two below ``data``).
    """
    splits = list(_recognise(root))
    if not splits and depth:
        splits = [split for folder in subfolders(root) for split in recognise(root / folder, depth - 1)]
    return splits


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, in natural order; empty if the folder does not exist."""
    return list_folders(folder) if folder.is_dir() else []


def _visible(folder: Path, suffix: str) -> list[Path]:
    """Visible files of a folder in natural order; empty if it does not exist. Two files for one frame are no error here."""
    everything = list_everything(folder) if folder.is_dir() else []
    return [path for path in everything if path.suffix.lower() == suffix and not path.name.startswith(".")]


def _recognise(root: Path) -> Iterator[Split]:
    images = root / "JPEGImages"
    if any((images / resolution).is_dir() for resolution in RESOLUTIONS):
        yield from _davis(root)
    elif (root / "SegmentationObject").is_dir():
        yield from _still_images(root)
    elif (root / "ImageSets").is_dir() and images.is_dir() and not (root / "ImageSets" / "Segmentation").is_dir():
        for path in _visible(root / "ImageSets", ".txt"):
            yield Split(root, "vost", path.stem, images, root / "Annotations", tuple(read_names(path)), listed=True)
    elif subfolders(images):
        yield _split_folder(root, root.name)
    else:
        parts = [root / name for name in SPLIT_FOLDERS if (root / name / "JPEGImages").is_dir()]
        if parts:
            yield from (_split_folder(part, part.name) for part in parts)
        else:
            yield from _still_images(root)


def _davis(root: Path) -> Iterator[Split]:
    remarks: tuple[str, ...] = ()
    if not (root / "Annotations").is_dir() and (root / "Annotations_unsupervised").is_dir():
        remarks = ("Annotations_unsupervised is for another task; the semi-supervised masks (Annotations) are missing",)
    for resolution in RESOLUTIONS:
        images, labels = root / "JPEGImages" / resolution, root / "Annotations" / resolution
        if not images.is_dir():
            continue
        suffix = "" if resolution == "480p" else f" ({resolution})"
        # The 2016 download keeps its lists by resolution, later downloads by year.
        years = [name for name in subfolders(root / "ImageSets") if name.startswith("20")]
        lists = [path for folder in (*years, resolution) for path in _visible(root / "ImageSets" / folder, ".txt")]
        lists = [path for path in lists if not path.stem.startswith("trainval")]
        for path in lists:
            year = path.parent.name if path.parent.name.startswith("20") else "2016"
            yield Split(
                root=root,
                kind="davis16" if year == "2016" else "davis17",
                name=f"{path.stem}{suffix}",
                images=images,
                labels=labels,
                videos=tuple(read_names(path)),
                listed=True,
                annotated="first" if path.stem.startswith("test") else "all",
                remarks=remarks,
            )
        if not lists:
            yield Split(root, "davis17", f"all{suffix}", images, labels, tuple(subfolders(images)), remarks=remarks)


def _split_folder(folder: Path, name: str) -> Split:
    """``JPEGImages/<video>`` and ``Annotations/<video>``, with or without a description: YouTube-VOS, LVOS, MOSE, own videos."""
    images, labels = folder / "JPEGImages", folder / "Annotations"
    split = Split(folder, "videos", name, images, labels, tuple(subfolders(images)), annotated="some")
    if name not in SPLIT_FOLDERS:
        return split
    description = folder / "meta.json"
    lvos = [path for path in (folder.parent / f"{name}_meta.json", folder / f"{name}_meta.json") if path.is_file()]
    if description.is_file():
        return _described(split, description, read_youtube_meta, _youtube_vos)
    if lvos:
        return _described(split, lvos[0], read_lvos_meta, _lvos)
    given = all(len(_visible(labels / video, ".png")) <= 1 for video in split.videos)
    return dataclasses.replace(split, kind="mose", annotated="first" if given else "all")


def _described(
    split: Split, description: Path, find: Callable[[Path], Mapping[str, T_]], read: Callable[[Split, Mapping[str, T_]], Split]
) -> Split:
    """The split as its description has it; without what the description says where that is not one."""
    try:
        return read(split, find(description))
    except ValueError as error:
        remark = f"the description is missing or of another structure: {str(error).removeprefix(f'{description}: ')}"
        return dataclasses.replace(split, remarks=(f"{description.name}: {remark}",))


MAX_FRAMES = 1_000_000
"""Most frames of a video that a description may count."""


def _range_of(entry: LVOSRange) -> range:
    """Numbers of the frames of an object. The numbers of the original 30 fps are kept, so frames are 5 apart."""
    numbers = range(int(entry["start"]), int(entry["end"]) + 1, 5)
    if len(numbers) > MAX_FRAMES:
        raise ValueError(f"an object has {len(numbers)} frames")
    return numbers


def _youtube_vos(split: Split, videos: Mapping[str, YouTubeVideo]) -> Split:
    objects = {name: video["objects"] for name, video in videos.items()}
    remarks = []
    if split.name == "valid" and not any((split.root.parent / folder).is_dir() for folder in ALL_FRAMES):
        remarks.append(
            "valid_all_frames is not there: videos are propagated over the frames at 6 fps, published numbers over all"
        )
    return dataclasses.replace(
        split,
        kind="youtube_vos",
        videos=tuple(sorted(videos, key=natural_key)),
        listed=True,
        required={n: _in_order(f for o in entries.values() for f in o["frames"]) for n, entries in objects.items()},
        first_frames={
            n: _in_order(min(o["frames"], key=natural_key) for o in entries.values() if o["frames"])
            for n, entries in objects.items()
        },
        num_objects=sum(map(len, objects.values())),
        remarks=tuple(remarks),
    )


def _lvos(split: Split, videos: Mapping[str, LVOSVideo]) -> Split:
    ranges = {name: [entry["frame_range"] for entry in video["objects"].values()] for name, video in videos.items()}
    return dataclasses.replace(
        split,
        kind="lvos",
        videos=tuple(sorted(videos, key=natural_key)),
        listed=True,
        required={name: _in_order(f"{n:08d}" for r in entries for n in _range_of(r)) for name, entries in ranges.items()},
        first_frames={name: _in_order(f"{int(r['start']):08d}" for r in entries) for name, entries in ranges.items()},
        num_objects=sum(map(len, ranges.values())),
    )


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=natural_key))


def _still_images(root: Path) -> Iterator[Split]:
    for images, masks in IMAGE_FOLDERS:
        if (root / images).is_dir() and (root / masks).is_dir():
            name = (
                "trainval" if masks == "SegmentationObject" else images.partition("-Image")[0] if "DUTS" in images else "images"
            )
            yield _pairs(root, name, root / images, root / masks)
            return
    for name in ("DUTS-TR", "DUTS-TE"):
        if (root / name / f"{name}-Image").is_dir():
            yield _pairs(root, name, root / name / f"{name}-Image", root / name / f"{name}-Mask")
    pngs = _visible(root, ".png")
    if any(path.stem.endswith("_gt") for path in pngs):  # BIG
        yield _pairs(root, root.name, root, root, ("_im", "_gt"))
    elif pngs and _visible(root, ".jpg"):
        yield _pairs(root, "images", root, root)
    else:
        for inner in (root, root / "fewshot_data" / "fewshot_data"):  # FSS-1000: a folder of ten images and masks for each class
            classes = subfolders(inner)
            if classes and all((inner / name / "1.jpg").is_file() and (inner / name / "1.png").is_file() for name in classes):
                yield _pairs(root, "images", inner, inner)


def _pairs(root: Path, name: str, images: Path, labels: Path, endings: tuple[str, str] = ("", "")) -> Split:
    found = (path.relative_to(labels).with_suffix("").as_posix() for path in find_files(labels, (".png",)))
    names = tuple(mask for mask in found if mask.endswith(endings[1]))
    return Split(root, "images", name, images, labels, names, endings=endings)
