"""The user's own videos, opened with their masks and proposals for a network."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vos_lightning.app.backends import weights_of
from vos_lightning.io.files import list_everything, sha256_of
from vos_lightning.io.given_masks import GivenMasks
from vos_lightning.io.sources import Source
from vos_lightning.io.videos import FrameSource
from vos_lightning.propagation.cuts import AtCut
from vos_lightning.structures import frame_name

OF_THE_NETWORK = ("precision", "short_side", "max_size", "memory_frames", "detector")
"""Options on which the network's masks of given frames depend, beside its weights and stored proposals."""
_DECISIVE = (
    *OF_THE_NETWORK, "backend", "start", "end", "stride", "direction", "at_cut", "first_number", "allow_rims", "formats", "dim",
    "labels",
)  # fmt: skip
"""Options on which the output depends; a run is resumed with the same ones."""


@dataclass(frozen=True)
class Job:
    """A video that can be segmented: its frames are opened and its masks are checked."""

    source: Source
    name: str
    frames: FrameSource
    masks: GivenMasks
    made_from: str | None
    """Digest of video and masks; None for frames that come only once."""
    at_cut: AtCut
    """What happens at a scene cut."""

    def mask_name(self, index: int) -> str:
        """Name that a further mask has to have to belong to a frame, without its suffix."""
        frames = self.frames
        first = frames.first + self.masks.first_number
        return frame_name(frames.names, index, first, frames.stride)


def local_inputs(arguments: argparse.Namespace, sources: Sequence[Source]) -> list[Path | None]:
    """Files and folders that are read, which no output may touch."""
    given = [source.path for source in sources]
    return [*given, arguments.mask, arguments.checkpoint, arguments.proposals]


def settings_of(arguments: argparse.Namespace, names: Sequence[str] = _DECISIVE) -> str:
    """Digest of the options and weights on which the output depends.

    Args:
        arguments: those of ``vos segment``, or of another command that has the options of ``names``.
        names: options on which the output of that command depends.
    """
    weights = weights_of(arguments)
    chosen = {name: str(getattr(arguments, name)) for name in names}
    for name, file in (("checkpoint", weights), ("proposals", arguments.proposals)):
        chosen[name] = sha256_of(file) if file is not None and file.is_file() else str(file)
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def open_job(arguments: argparse.Namespace, source: Source, several: bool) -> Job:
    """Open a video, read and check all of its masks, and print what is in them.

    Args:
        arguments: those of ``vos segment``.
        source: the video.
        several: whether it is one of several.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the video or a mask cannot be used.
    """
    frames = source.open()
    if frames.live and arguments.direction != "forward":
        raise ValueError(f"{source.text}: a stream can be followed forwards only; leave --direction out")
    frames.choose(arguments.start, arguments.end, arguments.stride)
    path = find_mask(source, arguments.mask, several)
    if arguments.mask is None or several:
        sys.stdout.write(f"{source.text}: masks from {path}\n")
    masks = read_masks(path, frames, arguments)
    made_from = None if frames.live else _digest_of(source, path)
    # A stream comes only once, so that nobody can be asked.
    at_cut: AtCut = arguments.at_cut or ("follow" if frames.live else "ask")
    return Job(source, source.name, frames, masks, made_from, at_cut)


def read_masks(path: Path, frames: FrameSource, arguments: argparse.Namespace) -> GivenMasks:
    """Read and check the masks of a video, and print what there is to know of both.

    Args:
        path: the masks, a file or folder.
        frames: the video.
        arguments: those of :func:`vos_lightning.app.options.add_mask_options`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a mask cannot be used, see :class:`GivenMasks`.
    """
    masks = GivenMasks(path, frames, arguments.first_number, arguments.allow_rims)
    sys.stdout.write("".join(f"{line}\n" for line in (*frames.notes(), *masks.report())))
    return masks


def find_mask(source: Source, given: Path | None, several: bool) -> Path:
    """The masks of a video: those that are named, or those that have its name.

    Args:
        source: the video.
        given: ``--mask``; with several videos, a folder that holds the masks of each.
        several: whether there are several videos.

    Raises:
        ValueError: there are none, or several.
    """
    if given is not None and not several:
        return given
    # What has no name of its own, as ".", has its masks beside the folder that it stands for.
    path = source.path if source.path is None or source.path.name not in ("", "..") else source.path.absolute()
    place = given if given is not None else None if path is None else path.parent
    names = [f"{source.name}{suffix}" for suffix in (".png", ".json", ".xml")]
    names.append(source.name if given is not None else f"{source.name}_masks")
    found = [] if place is None else [place / name for name in names if (place / name).exists()]
    found = [path for path in found if source.path is None or path.resolve() != source.path.resolve()]
    if len(found) > 1:
        raise ValueError(f"{source.text}: {found[0]} and {found[1].name} are both its masks; keep one, or name it with --mask")
    if not found:
        where = f"in {place}" if given is not None else "beside it"
        tried = f" (there is no {', '.join(names[:-1])} or {names[-1]}/ {where})" if place is not None else ""
        raise ValueError(
            f"{source.text}: no mask says what to cut out{tried}; draw one on a frame and pass it with --mask, or draw it in the "
            "browser with vos app"
        )
    return found[0]


def _digest_of(source: Source, masks: Path) -> str:
    """Digest of a video, by sizes and times of change, and of its masks, by their content."""
    of_masks = list_everything(masks) if masks.is_dir() else [masks]
    digests = [(path.name, sha256_of(path)) for path in of_masks if path.is_file()]
    return hashlib.sha256(json.dumps([facts_of_video(source), digests]).encode()).hexdigest()


def facts_of_video(source: Source) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the file of a video, or of those in its folder, by which a changed video is noticed."""
    assert source.path is not None
    files = list_everything(source.path) if source.path.is_dir() else [source.path]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
