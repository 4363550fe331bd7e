"""Published figures of the data sets: what a complete copy holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["davis16", "davis17", "youtube_vos", "mose", "lvos", "vost", "videos", "images"]


@dataclass(frozen=True)
class Figures:
    """Figures of a split of a release; None if a figure is not published."""

    kind: Kind
    release: str
    split: str
    videos: int
    """Number of videos, or of images in a set of still images."""
    frames: int | None = None
    objects: int | None = None


KNOWN = (
    Figures("davis16", "DAVIS 2016", "train", 30, 2079, 30),
    Figures("davis16", "DAVIS 2016", "val", 20, 1376, 20),
    Figures("davis17", "DAVIS 2017", "train", 60, 4209, 144),
    Figures("davis17", "DAVIS 2017", "val", 30, 1999, 61),
    Figures("davis17", "DAVIS 2017", "test-dev", 30, 2086, 89),
    Figures("davis17", "DAVIS 2017", "test-challenge", 30),
    Figures("youtube_vos", "YouTube-VOS 2018", "train", 3471, 94404, 5945),
    Figures("youtube_vos", "YouTube-VOS 2018", "valid", 474, 12593, 894),
    Figures("youtube_vos", "YouTube-VOS 2018", "test", 508, None, 915),
    Figures("youtube_vos", "YouTube-VOS 2019", "train", 3471, None, 6459),
    Figures("youtube_vos", "YouTube-VOS 2019", "valid", 507, None, 1063),
    Figures("youtube_vos", "YouTube-VOS 2019", "test", 541),
    Figures("mose", "MOSE v1", "train", 1507),
    Figures("mose", "MOSE v1", "valid", 311),
    Figures("mose", "MOSE v1", "test", 331),
    Figures("lvos", "LVOS v1", "train", 120),
    Figures("lvos", "LVOS v1", "val", 50),
    Figures("lvos", "LVOS v1", "test", 50),
    Figures("lvos", "LVOS v2", "train", 420),
    Figures("lvos", "LVOS v2", "val", 140),
    Figures("lvos", "LVOS v2", "test", 160),
    Figures("vost", "VOST", "train", 572),
    Figures("vost", "VOST", "val", 70),
    Figures("vost", "VOST", "test", 71),
    Figures("images", "DUTS", "DUTS-TR", 10553),
    Figures("images", "DUTS", "DUTS-TE", 5019),
    Figures("images", "MSRA10K", "images", 10000),
    Figures("images", "ECSSD", "images", 1000),
    Figures("images", "HKU-IS", "images", 4447),
    Figures("images", "PASCAL-S", "images", 850),
    Figures("images", "PASCAL VOC 2012", "trainval", 2913),
    Figures("images", "FSS-1000", "images", 10000),
    Figures("images", "BIG", "val", 50),
    Figures("images", "BIG", "test", 100),
)

DAVIS_2016_VAL_FRAMES = {
    "blackswan": 50, "bmx-trees": 80, "breakdance": 84, "camel": 90, "car-roundabout": 75, "car-shadow": 40, "cows": 104,
    "dance-twirl": 90, "dog": 60, "drift-chicane": 52, "drift-straight": 50, "goat": 90, "horsejump-high": 50, "kite-surf": 50,
    "libby": 49, "motocross-jump": 40, "paragliding-launch": 80, "parkour": 100, "scooter-black": 43, "soapbox": 99,
}  # fmt: skip
"""Numbers of frames of the videos of DAVIS 2016 val, which are in DAVIS 2017 too; they reveal copies with truncated videos."""


def release_of(kind: Kind, split: str, name: str, videos: int, frames: int, objects: int) -> Figures | None:
    """The release that matches a split best.

    Args:
        kind: recognised layout of the data set.
        split: name of the split on disk; ``valid`` and ``val`` are the same.
        name: name of the folder, which distinguishes sets of still images.
        videos: number of videos that are found or listed.
        frames: number of frames that are found.
        objects: number of objects that are found.

    Returns:
        Figures of the release that has equally many videos and agrees in most other figures; None if there is none.
    """
    alike = {"valid": "val"}
    folder = "".join(filter(str.isalnum, name.lower()))
    found = [
        known
        for known in KNOWN
        if known.kind == kind
        and known.videos == videos
        and (alike.get(known.split, known.split) == alike.get(split, split))
        and (kind != "images" or "".join(filter(str.isalnum, known.release.lower())) in folder or known.split in name)
    ]
    return max(found, key=lambda known: (known.objects == objects, known.frames == frames), default=None)
