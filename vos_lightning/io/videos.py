"""Videos of any kind, opened by their path; their writer stands beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vos_lightning.io.frames import FrameSource as FrameSource
from vos_lightning.io.frames import open_folder
from vos_lightning.io.video_files import VideoFile
from vos_lightning.io.video_files import count_frames as count_frames
from vos_lightning.io.video_writers import VideoWriter as VideoWriter


def open_frames(path: str | os.PathLike[str], links_into: Sequence[str | os.PathLike[str]] = ()) -> FrameSource:
    """Open a video file, or a folder of images in the natural order of their names.

    Frames are returned upright, as players and viewers show them; telephones store turned or mirrored frames and a tag.

    Args:
        path: a video file in a container that FFmpeg reads and that holds its frames itself
            (:data:`vos_lightning.io.video_files.CONTAINERS`), or a folder of images
            (:data:`vos_lightning.io.frames.FRAME_SUFFIXES`); hidden files in it are ignored.
        links_into: folders that links in the folder may lead to, besides the folder itself.

    Returns:
        The frames, see :class:`FrameSource`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder has no images, two for one frame, or a link that leads out of it; the file is not a video, has no
            video stream, or is shorter than it claims (MP4, MOV, Matroska and WebM; with other containers this is found at the
            end).
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path, links_into)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such video file or folder of images")
    return VideoFile(path)
