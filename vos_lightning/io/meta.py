"""The descriptions of objects that come with YouTube-VOS (``meta.json``) and LVOS (``<split>_meta.json``)."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Annotated,
    NotRequired,  # pydantic reads these from `typing` from Python 3.12 on
)

from pydantic import Field
from typing_extensions import TypedDict

from vos_lightning.io.documents import read_document

ObjectId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
"""An object's id as a key of JSON."""
Number = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")] | Annotated[int, Field(ge=0, lt=10**9)]
"""The number of a frame."""


class YouTubeObject(TypedDict):
    """An object of YouTube-VOS."""

    frames: list[str]
    category: NotRequired[str | None]


class YouTubeVideo(TypedDict):
    """A video of YouTube-VOS."""

    objects: dict[ObjectId, YouTubeObject]


class YouTubeMeta(TypedDict):
    """Content of a ``meta.json``."""

    videos: dict[str, YouTubeVideo]


class LVOSRange(TypedDict):
    """First and last frame of an object."""

    start: Number
    end: Number


class LVOSObject(TypedDict):
    """An object of LVOS."""

    frame_range: LVOSRange


class LVOSVideo(TypedDict):
    """A video of LVOS."""

    objects: dict[ObjectId, LVOSObject]


class LVOSMeta(TypedDict):
    """Content of a ``<split>_meta.json``."""

    videos: dict[str, LVOSVideo]


def read_youtube_meta(path: Path) -> dict[str, YouTubeVideo]:
    """Videos of a ``meta.json``.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has another structure; the message names the key.
    """
    return read_document(path, YouTubeMeta, "this is not a meta.json of YouTube-VOS, copy the one of the data set")["videos"]


def read_lvos_meta(path: Path) -> dict[str, LVOSVideo]:
    """Videos of a ``<split>_meta.json``.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has another structure; the message names the key.
    """
    return read_document(path, LVOSMeta, "this is not a meta file of LVOS, copy the one of the data set")["videos"]
