"""Proposals of videos or images, computed once and stored, one file a video."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vos_lightning.io.files import find_files, list_files, list_folders
from vos_lightning.io.images import IMAGE_SUFFIXES, read_image
from vos_lightning.io.videos import open_frames
from vos_lightning.proposals.detector import ProposalDetector
from vos_lightning.proposals.store import Found, ProposalFile, write_proposals
from vos_lightning.structures import Frames, frame_name


class Computed(NamedTuple):
    """What :func:`precompute` has done for a video."""

    name: str
    new: bool
    """Whether the proposals were computed now; otherwise the file existed before."""
    empty: bool
    """Whether the detector found nothing in any frame."""


def precompute(
    detector: ProposalDetector, videos: Sequence[tuple[str, Path]], output: Path, batch_size: int = 4
) -> Iterator[Computed]:
    """Write ``<output>/<video>.npz`` for every video that has no such file yet.

    Args:
        detector: makes the proposals, on its own device.
        videos: pairs of name and path: of a folder of images, a single image, or a video file.
        output: output folder, one for each generator.
        batch_size: number of frames that the detector processes together.

    Yields:
        What was done for every video, whether it was computed or existed before.

    Raises:
        ValueError: a file exists but was made with other settings, or a frame cannot be read.
    """
    for name, place in videos:
        path = output / f"{name}.npz"
        if path.is_file():
            there = ProposalFile(path)
            _check_header(there, detector.header)
            yield Computed(name, new=False, empty=there.is_empty)
            continue
        found: dict[str, Found] = {}
        frames, names = _frames(place)
        remaining, size = iter(frames), [0, 0]
        while batch := list(itertools.islice(remaining, batch_size)):
            found |= {frame_name(names, len(found) + i): one for i, one in enumerate(detector.find(batch))}
            size = list(batch[0].shape[1:])
        write_proposals(path, found, {**detector.header, "frame_size": size})
        yield Computed(name, new=True, empty=not any(len(one.scores) for one in found.values()))


def _frames(place: Path) -> tuple[Frames, tuple[str, ...] | None]:
    """Frames and their names."""
    if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
        return [read_image(place)], (place.stem,)
    frames = open_frames(place, links_into=[place.parent])
    return frames, frames.names


def _check_header(file: ProposalFile, header: dict[str, Any]) -> None:
    differing = [key for key, value in header.items() if file.header.get(key) != value]
    if differing:
        raise ValueError(
            f"{file.path} was made with other settings ({', '.join(differing)}): remove it, or choose another --output"
        )


def find_videos(images: Path, stills: bool) -> list[tuple[str, Path]]:
    """Names and paths of everything that has proposals of its own.

    Args:
        images: a folder that has one folder of images for each video, a folder of images, or a video file.
        stills: every image, in sub-folders too, has its own proposals, named by its path without suffix.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there are no images in it.
    """
    if not images.exists():
        raise FileNotFoundError(f"{images}: there is no such file or folder")
    if images.is_file():
        return [(images.stem, images)]
    if stills:
        files = find_files(images, IMAGE_SUFFIXES)
        if files:
            return [(str(path.relative_to(images).with_suffix("")), path) for path in files]
    else:
        folders = list_folders(images)
        if folders:
            return [(name, images / name) for name in folders]
        if list_files(images, IMAGE_SUFFIXES):
            return [(images.resolve().name, images)]
    raise ValueError(f"{images}: the folder holds no .jpg or .png images")
