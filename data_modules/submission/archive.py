"""Predictions as a zip file for an evaluation server, checked before it is written.

Masks are indexed PNGs in the ids of the given masks, at the size of the video. Predictions that are grey, black and white (object
1) or coloured by the palette are converted to indices. Frames that the server does not need are left out. Anything else that does
not fit is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_modules.doctor.checks import VOID
from data_modules.doctor.layouts import Split, recognise, subfolders
from data_modules.submission.servers import SERVERS, Rules, Server
from vos_lightning.io.files import Replacement, inside, list_everything, list_files
from vos_lightning.io.images import IMAGE_SUFFIXES, read_header
from vos_lightning.io.label_maps import encode_label_map, read_label_map
from vos_lightning.io.outputs import mask_folder
from vos_lightning.mask_ops import as_object_map, object_ids_in

FIXED_DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every entry, so that equal predictions give equal files."""


class SubmissionError(ValueError):
    """Predictions that a server would reject or score wrongly; the message names the file and what to do about it."""


@dataclass(frozen=True)
class Expected:
    """Frames, size and ids that a video needs."""

    frames: tuple[str, ...]
    size: tuple[int, int]
    """Width and height of the video."""
    ids: frozenset[int]


def write_submission(server: Server, predictions: Path, output: Path, data: Path | None = None) -> list[str]:
    """Check a folder of predictions and zip it.

    Args:
        server: name of the server, see :data:`data_modules.submission.servers.SERVERS`.
        predictions: folder of video folders of PNGs, or what `test` or `predict` has written.
        output: the zip file, which is written atomically.
        data: root of the data set, with which frames, sizes and ids are compared; None checks the predictions alone.

    Returns:
        Names of the files in the zip file.

    Raises:
        FileNotFoundError: a folder does not exist.
        SubmissionError: the predictions do not fit; nothing is written.
    """
    rules = SERVERS[server]
    if not predictions.is_dir():
        raise FileNotFoundError(f"{predictions}: the folder of predictions does not exist")
    predictions = mask_folder(predictions)
    if output.suffix != ".zip":
        raise SubmissionError(f"{output}: servers take zip files; name it {output.with_suffix('.zip').name}")
    videos = _video_folders(predictions, rules)
    expected = _expected(data, rules, server) if data else {}
    if expected:
        _same_videos(predictions, videos, tuple(expected))
    elif rules.num_videos is not None and len(videos) != rules.num_videos:
        raise SubmissionError(f"{predictions}: {len(videos)} videos, the server scores {rules.num_videos}; predict all of them")
    names = []
    with Replacement(output) as new:
        with zipfile.ZipFile(new.temporary, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
            for video in videos:
                for stem, content in _checked(predictions / video, expected.get(video), rules):
                    names.append(f"{rules.top}{video}/{stem}.png")
                    entry = zipfile.ZipInfo(names[-1], FIXED_DATE)
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, content)
        check_archive(new.temporary, server)
    return names


def check_archive(path: Path, server: Server) -> None:
    """Check the structure of a zip file, whoever wrote it.

    Raises:
        SubmissionError: an entry is damaged or in the wrong place.
    """
    rules = SERVERS[server]
    pattern = re.compile(rf"{rules.top}[^/.][^/]*/{rules.stem}\.png")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        damaged = archive.testzip()
    if damaged:
        raise SubmissionError(f"{path}: {damaged} is damaged")
    wrong = [name for name in names if not pattern.fullmatch(name)]
    if wrong or not names:
        expected = f"{rules.top}<video>/<frame>.png"
        raise SubmissionError(
            f"{path}: {wrong[0] if wrong else 'nothing'} where {server} wants {expected}; zip without other files"
        )
    videos = {name.removeprefix(rules.top).partition("/")[0] for name in names}
    if not rules.top and len(videos) == 1:
        raise SubmissionError(f"{path}: a single folder at the top, {videos.pop()}: the server takes it for a wrapping folder")


def _video_folders(predictions: Path, rules: Rules) -> list[str]:
    videos = subfolders(predictions)
    if not videos:
        inside = "PNG files" if list_files(predictions, (".png",)) else "no video folders"
        raise SubmissionError(f"{predictions}: holds {inside}; give the folder of video folders")
    for video in videos:
        deeper = subfolders(predictions / video)
        if deeper:
            raise SubmissionError(
                f"{predictions / video}: holds the folder {deeper[0]} where frames are expected; give {predictions / video}"
            )
        wrong = [path for path in list_everything(predictions / video) if not path.name.startswith(".")]
        wrong = [path for path in wrong if path.suffix != ".png" or not re.fullmatch(rules.stem, path.stem)]
        if wrong:
            digits = 8 if "8" in rules.stem else 5
            raise SubmissionError(
                f"{wrong[0]}: is not named like a frame, {digits} digits and .png; use the names of the data set"
            )
    return videos


def _same_videos(predictions: Path, videos: Sequence[str], expected: Sequence[str]) -> None:
    missing = [video for video in expected if video not in videos]
    unknown = [video for video in videos if video not in expected]
    if unknown:
        raise SubmissionError(
            f"{predictions / unknown[0]}: the data set has no such video ({len(unknown)} unknown); wrong server?"
        )
    if missing:
        raise SubmissionError(f"{predictions / missing[0]}: is missing ({len(missing)} videos are); predict every video")


def _expected(data: Path, rules: Rules, server: Server) -> dict[str, Expected]:
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: the folder of the data set does not exist")
    found = [split for split in recognise(data) if split.name in rules.splits and split.kind in (rules.kind, "videos")]
    if not found:
        raise SubmissionError(f"{data}: has no split {' or '.join(rules.splits)} in the layout of {server}; run doctor on it")
    split = min(found, key=lambda one: rules.splits.index(one.name))
    if rules.num_videos not in (None, len(split.videos)):
        raise SubmissionError(f"{data}: {split.name} has {len(split.videos)} videos, {server} scores {rules.num_videos}")
    return {video: _expected_of(split, video) for video in split.videos}


def _expected_of(split: Split, video: str) -> Expected:
    places = (split.images, split.labels, split.data_set)
    images, labels = (inside(place, video, links_into=places) for place in (split.images, split.labels))
    given = list_files(labels, (".png",), places)
    if not given:
        raise SubmissionError(f"{labels}: holds no mask; the objects of the video are not known")
    ids: set[int] = set()
    for path in given.values():
        ids |= set(object_ids_in(as_object_map(read_label_map(path), split.kind in VOID, path)))
    frames = split.required.get(video) if split.kind == "youtube_vos" else None
    if frames is None:
        frames = tuple(list_files(images, IMAGE_SUFFIXES, places))
    return Expected(tuple(frames), read_header(next(iter(given.values()))).size, frozenset(ids))


def _checked(folder: Path, expected: Expected | None, rules: Rules) -> Iterator[tuple[str, bytes]]:
    """Frame and content of every PNG that the server needs."""
    files = list_files(folder, (".png",))
    if not files:
        raise SubmissionError(f"{folder}: holds no PNG; predict this video")
    wanted = expected.frames if expected else _consecutive(folder, tuple(files), rules)
    missing = [stem for stem in wanted if stem not in files]
    if missing:
        raise SubmissionError(f"{folder / missing[0]}.png: is missing ({len(missing)} of {len(wanted)} frames are); predict them")
    size = expected.size if expected else None
    for stem in wanted:
        path = files[stem]
        content, found, ids = _indexed(path)
        size = size or found
        if found != size:
            raise SubmissionError(
                f"{path}: {found[0]} x {found[1]} pixels where the video has {size[0]} x {size[1]}; write the size of the video"
            )
        strange = sorted(ids - expected.ids) if expected else []
        if expected and strange:
            known = sorted(expected.ids)
            raise SubmissionError(f"{path}: holds id {strange[0]}, the objects of this video are {known}; write the given ids")
        yield stem, content


def _consecutive(folder: Path, stems: tuple[str, ...], rules: Rules) -> tuple[str, ...]:
    """Frames without a hole, if the data set numbers them consecutively; otherwise only the data set could show holes."""
    numbers = [int(stem) for stem in stems]
    if rules.kind in ("davis17", "mose"):
        first = 0 if 0 in numbers else 1
        holes = sorted(set(range(first, max(numbers))) - set(numbers))
        if holes:
            raise SubmissionError(f"{folder / f'{holes[0]:05d}'}.png: is missing ({len(holes)} frames are); predict every frame")
    return stems


def _indexed(path: Path) -> tuple[bytes, tuple[int, int], frozenset[int]]:
    """An indexed PNG, its width and height, and its ids."""
    stored = read_label_map(path)
    label_map = as_object_map(stored, name=path)
    header = read_header(path)
    indexed = header.format == "PNG" and header.mode == "P" and label_map is stored
    content = path.read_bytes() if indexed else encode_label_map(label_map)
    return content, header.size, frozenset(object_ids_in(label_map))
