"""Evaluation servers and their rules.

=================  ==========================  ==========================================================================
server             in the zip                  frames
=================  ==========================  ==========================================================================
davis17-testdev    ``<video>/<frame>.png``     every frame of the 30 videos
youtube-vos18, 19  ``Annotations/<video>/...``  what ``meta.json`` names for an object of the video
mose               ``<video>/<frame>.png``     every frame
lvos               ``Annotations/<video>/...``  every frame
=================  ==========================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Server = Literal["davis17-testdev", "youtube-vos18", "youtube-vos19", "mose", "lvos"]


@dataclass(frozen=True)
class Rules:
    """Rules of a server."""

    kind: str
    """Layout of its data set."""
    splits: tuple[str, ...]
    """Names of the split that the server scores."""
    num_videos: int | None
    top: str
    """Folder of the videos inside the zip file."""
    stem: str
    """Pattern of the frames' names."""


SERVERS: dict[Server, Rules] = {
    "davis17-testdev": Rules("davis17", ("test-dev",), 30, "", r"\d{5}"),
    "youtube-vos18": Rules("youtube_vos", ("valid",), 474, "Annotations/", r"\d{5}"),
    "youtube-vos19": Rules("youtube_vos", ("valid",), 507, "Annotations/", r"\d{5}"),
    "mose": Rules("mose", ("valid", "test"), None, "", r"\d{5}"),
    "lvos": Rules("lvos", ("test", "val", "valid"), None, "Annotations/", r"\d{8}"),
}
