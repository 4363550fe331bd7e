"""What a user names as videos: files, folders, patterns, cameras and addresses."""

from __future__ import annotations

import functools
import glob
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vos_lightning.io.files import list_files, list_folders, natural_key
from vos_lightning.io.frames import FRAME_SUFFIXES, FrameSource, ImageFrames
from vos_lightning.io.live import SCHEMES, name_of_address, open_address, open_camera
from vos_lightning.io.videos import open_frames

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".gif",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
    }
)
"""Files that a folder of videos is searched for; a file that is named itself may have any suffix."""
_CAMERA = re.compile(r"camera:(\d+)")


@dataclass(frozen=True)
class Source:
    """A video that the user has named."""

    text: str
    """The video in messages."""
    name: str
    """Name of the video in outputs."""
    path: Path | None
    """The file or folder; None for a camera or an address."""
    open: Callable[[], FrameSource]


def find_sources(texts: Sequence[str]) -> list[Source]:
    """The videos behind the arguments of a command, without opening them.

    ========================================  ==========================================================================
    an argument that is                       stands for
    ========================================  ==========================================================================
    a video file                              itself
    a folder of images                        a video, whose frames they are
    a folder of videos, or of such folders    each of them
    a pattern (``shots/*.png``, ``a/*.mp4``)  the frames of a video, if all its files are images; otherwise each file
    several image files                       the frames of a video (a shell has replaced a pattern by them)
    ``camera:0``                              a camera
    ``http://...``, ``rtsp://...``            a video or stream in a network
    ========================================  ==========================================================================

    Raises:
        FileNotFoundError: there is nothing of a name.
        ValueError: a folder holds images as well as videos, images of several folders are named, or two videos would have the
            same name in outputs.
    """
    images = [Path(text) for text in texts if Path(text).suffix.lower() in FRAME_SUFFIXES and Path(text).is_file()]
    if len(images) == len(texts):
        found = [_frames(", ".join(texts[:1]) + (" ..." if len(texts) > 1 else ""), images)]
    else:
        found = [source for text in texts for source in _behind(text)]
    twice = [name for name, count in Counter(source.name for source in found).items() if count > 1]
    if twice:
        same = [source.text for source in found if source.name == twice[0]]
        raise ValueError(
            f"{same[1]}: its outputs would have the name {twice[0]!r} of {same[0]}; segment it by a command of its own"
        )
    return found


def _behind(text: str) -> list[Source]:
    camera = _CAMERA.fullmatch(text)
    if camera:
        return [Source(text, f"camera_{camera[1]}", None, functools.partial(open_camera, int(camera[1])))]
    if text.partition("://")[0].lower() in SCHEMES and "://" in text:
        return [Source(text, name_of_address(text), None, functools.partial(open_address, text))]
    path = Path(text)
    if path.is_dir():
        return _in_folder(path)
    if not path.exists() and set(text) & set("*?["):
        files = sorted((Path(name) for name in glob.glob(text, recursive=True)), key=lambda file: natural_key(file.as_posix()))
        if not files:
            raise FileNotFoundError(f"{text}: no file has a name of this pattern")
        if all(file.suffix.lower() in FRAME_SUFFIXES and file.is_file() for file in files):
            return [_frames(text, files)]
        return [source for file in files for source in _behind(glob.escape(str(file)) if not file.exists() else str(file))]
    return [_video(path)]


def _video(path: Path) -> Source:
    name = path.resolve().name if path.is_dir() else path.resolve().stem
    return Source(str(path), name, path, functools.partial(open_frames, path))


def _in_folder(folder: Path) -> list[Source]:
    images, videos, folders = (
        list_files(folder, FRAME_SUFFIXES, (folder,)),
        list_files(folder, VIDEO_SUFFIXES),
        list_folders(folder),
    )
    if images and videos:
        picture, video = next(iter(images.values())), next(iter(videos.values()))
        raise ValueError(
            f"{folder}: the folder holds images ({picture.name}) as well as videos ({video.name}); name one kind, as "
            f"'{folder / '*'}{picture.suffix}' or '{folder / '*'}{video.suffix}'"
        )
    if images:
        return [_video(folder)]
    below = [folder / name for name in folders if list_files(folder / name, FRAME_SUFFIXES)]
    if not videos and not below:
        raise ValueError(f"{folder}: the folder holds no images, no videos and no folders of images")
    return [_video(path) for path in (*videos.values(), *below)]


def _frames(text: str, files: Sequence[Path]) -> Source:
    folders = {file.resolve().parent for file in files}
    if len(folders) > 1:
        raise ValueError(f"{text}: images of several folders are no video; name the folders instead")
    folder = files[0].parent
    named: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: natural_key(file.stem)):
        if file.stem in named:
            raise ValueError(f"{file} and {named[file.stem].name} are the same frame: name one of them")
        named[file.stem] = file
    name = folder.resolve().name
    return Source(text, name, folder, functools.partial(ImageFrames, folder, named, name))
