"""Checks of a split: of its videos or images, and of their number."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from data_modules.doctor.files import LEFT_BEHIND, Report, check_image, check_label, find_images
from data_modules.doctor.known import DAVIS_2016_VAL_FRAMES, Figures, release_of
from data_modules.doctor.layouts import Split
from vos_lightning.io.files import inside, list_everything
from vos_lightning.io.images import IMAGE_SUFFIXES
from vos_lightning.structures import IGNORE_LABEL

VOID = ("davis17", "vost")
"""Layouts in which 255 is void, as in their data modules."""
DENSE = ("davis16", "davis17", "vost", "videos", "mose")


@dataclass
class SplitReport:
    """A checked split and the figures of the release that matches it best."""

    split: Split
    videos: int
    total: Report
    known: Figures | None


def check_split(split: Split, workers: int = 1, deep: bool = False, progress: bool = False) -> SplitReport:
    """Check every video of a split.

    Args:
        split: the split, see :func:`data_modules.doctor.layouts.recognise`.
        workers: number of threads.
        deep: decode every frame instead of reading only its header and its end.
        progress: show a bar on stderr.
    """
    total = Report()
    for remark in split.remarks:
        total.add("remark", split.root, remark, "problem" if "missing" in remark else "note")
    if split.kind == "images":
        reports = [_check_still_images(split, deep)]
    else:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            checked = pool.map(lambda name: _check_video(split, name, deep), split.videos)
            console = Console(stderr=True)
            shown = track(checked, split.name, total=len(split.videos), console=console, transient=True, disable=not progress)
            reports = list(shown)
        _check_folders(split, total)
    for report in reports:
        total.frames += report.frames
        total.masks += report.masks
        total.objects += report.objects
        total.findings += report.findings
    orders = [f"{name}: {report.order}" for name, report in zip(split.videos, reports, strict=False) if report.order]
    if orders:
        more = f", and {len(orders) - 1} more videos" if len(orders) > 1 else ""
        total.add(
            "frame-order", split.images, f"names are no zero-padded numbers and are read in the order {orders[0]}{more}", "note"
        )
    if split.num_objects is not None:
        total.objects = split.num_objects
    present = len(split.videos) - sum(finding.kind == "missing-video" for finding in total.findings)
    known = release_of(split.kind, split.name, split.root.name, len(split.videos), total.frames, total.objects)
    _compare(split, total, known)
    return SplitReport(split, present, total, known)


def _compare(split: Split, total: Report, known: Figures | None) -> None:
    """Compare the figures of the release with what was found."""
    if known is None:
        if split.kind not in ("videos", "images"):
            total.add("own-selection", split.root, f"{split.name}: {len(split.videos)} videos are no published split", "note")
        return
    for name, found, published in (("frames", total.frames, known.frames), ("objects", total.objects, known.objects)):
        if published is not None and found != published:
            message = f"{known.release} {known.split} has {published} {name}, here are {found}: an incomplete or altered copy"
            total.add(f"{name[:-1]}-count", split.root, message)


def _check_folders(split: Split, report: Report) -> None:
    """Check what lies beside the video folders."""
    for folder in (split.images, split.labels):
        if not folder.is_dir():
            report.add("missing-folder", folder, "there is no such folder")
            continue
        for path in list_everything(folder):
            if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
                report.add("hidden-file", path, LEFT_BEHIND, fixable=True)


def _check_video(split: Split, name: str, deep: bool) -> Report:
    report = Report()
    places = (split.images, split.labels, split.data_set)
    try:
        folder, label_folder = (inside(place, name, links_into=places) for place in (split.images, split.labels))
    except ValueError as error:
        report.add("leads-outside", split.root, str(error))
        return report
    if not folder.is_dir():
        report.add("missing-video", folder, f"{split.name} names this video, but its frames are not there")
        return report
    frames = find_images(folder, report, places)
    report.frames = len(frames)
    suffixes = Counter(path.suffix.lower() for path in frames.values())
    if len(suffixes) > 1 or (split.kind not in ("videos", "images") and ".png" in suffixes):
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
        report.add("frame-format", folder, f"frames are {counts}; published copies hold .jpg only")
    _check_numbers(split, name, frames, report)
    report.order = _order_of(tuple(frames))
    headers = {stem: check_image(path, report, deep) for stem, path in frames.items()}
    sizes = {stem: header.size if header else None for stem, header in headers.items()}
    labels = _labels(label_folder, report, places)
    report.masks = len(labels)
    _check_labelled(split, name, frames, labels, report)
    ids = {}
    for stem, path in labels.items():
        found = check_label(path, split.kind == "davis16", report)
        if found is None:
            continue
        size, ids[stem] = found
        if sizes.get(stem) and sizes[stem] != size:
            width, height = sizes[stem] or (0, 0)
            report.add("size-mismatch", path, f"{size[0]} x {size[1]} pixels, its frame has {width} x {height}")
    different = Counter(size for size in sizes.values() if size)
    if len(different) > 1:
        usual = different.most_common(1)[0][0]
        stem = next(stem for stem, size in sizes.items() if size and size != usual)
        report.add(
            "size-mismatch", frames[stem], f"frames of this video have {len(different)} sizes, most {usual[0]} x {usual[1]}"
        )
    report.objects = _check_ids(split, labels, ids, report)
    return report


def _order_of(stems: Sequence[str]) -> str:
    """The first frames and the last one; empty if names differ only in their digits, because all programs sort these alike."""
    if len({re.sub(r"\d", "0", stem) for stem in stems}) <= 1:
        return ""
    return ", ".join(stems[:3]) + (f", ..., {stems[-1]}" if len(stems) > 3 else "")


def _labels(folder: Path, report: Report, links_into: Sequence[Path]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    labels = find_images(folder, report, links_into)
    for path in list(labels.values()):
        if path.suffix.lower() != ".png":
            report.add("mask-format", path, "a mask must be a PNG: JPEG changes its ids")
            del labels[path.stem]
    return labels


def _check_numbers(split: Split, name: str, frames: dict[str, Path], report: Report) -> None:
    """Report missing frames: those that a description names, holes in the numbers, and those at the end of a known video."""
    missing = [stem for stem in split.required.get(name, ()) if stem not in frames]
    numbers = sorted(int(stem) for stem in frames if stem.isdecimal())
    if split.kind in DENSE and not missing and len(numbers) > 1:
        steps = [after - before for before, after in itertools.pairwise(numbers)]
        digits = len(next(iter(frames)))
        holes = [n for n, step in zip(numbers, steps, strict=False) if step != min(steps)]
        missing = [f"{n + min(steps):0{digits}d}" for n in holes]
        if split.kind.startswith("davis") and numbers[0] != 0:
            missing.insert(0, "00000")
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        report.add("missing-frame", split.images / name / missing[0], f"this frame{more} of {name} is missing")
    known = DAVIS_2016_VAL_FRAMES.get(name) if split.kind.startswith("davis") else None
    if known is not None and not missing and len(frames) != known:
        report.add("missing-frame", split.images / name, f"{len(frames)} frames, the published video has {known}")


def _check_labelled(split: Split, name: str, frames: dict[str, Path], labels: dict[str, Path], report: Report) -> None:
    """Report frames without the mask that they should have, and masks without a frame."""
    folder = split.labels / name
    orphans = [stem for stem in labels if stem not in frames]
    if orphans and frames:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        report.add("missing-frame", split.images / name / orphans[0], f"the mask {labels[orphans[0]]} has no frame{more}")
    needed: Sequence[str] = ()
    if split.annotated == "all" or split.kind == "lvos":
        needed = tuple(frames)
    elif split.first_frames:
        needed = split.first_frames.get(name, ())
    elif split.annotated == "first":
        needed = tuple(frames)[:1]
    missing = [stem for stem in needed if stem not in labels]
    if split.kind == "youtube_vos" and split.name == "train":
        missing = [stem for stem in split.required.get(name, ()) if stem not in labels]
    if not labels and split.kind != "lvos":
        report.add("missing-mask", folder, f"{name} has no mask at all; the objects are given by at least one")
    elif missing and not (split.kind == "lvos" and split.name == "test" and set(needed[:1]) <= set(labels)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        report.add("missing-mask", folder / f"{missing[0]}.png", f"this mask{more} of {name} is missing")


def _check_ids(split: Split, labels: dict[str, Path], ids: dict[str, frozenset[int]], report: Report) -> int:
    """Number of objects; reports ids that leave gaps, appear late or are missing."""
    if not ids:
        return 0
    first = next(iter(labels))
    if split.kind not in (*VOID, "davis16"):
        ids = {stem: _as_objects(labels[stem], values, report) for stem, values in ids.items()}
    given = ids.get(first, frozenset()) - {0, IGNORE_LABEL}
    every = frozenset().union(*ids.values()) - {0, IGNORE_LABEL}
    if split.kind == "davis16":
        if first in ids and not ids[first] - {0}:
            report.add("empty-first-mask", labels[first], "no object in the first mask")
        return 1
    strict: Literal["problem", "note"] = "note" if split.kind in ("youtube_vos", "lvos", "mose", "vost") else "problem"
    if first in ids and not given:
        if IGNORE_LABEL in ids[first]:
            message = "0 and 255 where ids 1, 2, ... are expected: 255 is void here; masks of DAVIS 2016 belong to davis16"
            report.add("binary-mask", labels[first], message)
        else:
            report.add("empty-first-mask", labels[first], "no object in the first mask", strict)
    highest = max(given, default=0)
    gaps = sorted(set(range(1, highest)) - given)
    if gaps:
        message = f"ids {sorted(given)} leave out {gaps}: the DAVIS protocol scores every id up to the highest"
        report.add("id-gap", labels[first], message, strict)
    late = sorted(every - given)
    if late and given and split.kind == "davis17":
        stem = next(stem for stem, found in ids.items() if late[0] in found)
        message = f"id {late[0]} is not in the first mask: the DAVIS protocol does not score it"
        report.add("late-id", labels[stem], message, "note")
    return highest if split.kind == "davis17" else len(every)


def _as_objects(path: Path, values: frozenset[int], report: Report) -> frozenset[int]:
    """Ids of a label map without void: white alone is object 1, and white beside ids is reported."""
    if IGNORE_LABEL not in values:
        return values
    beside = values - {0, IGNORE_LABEL}
    if beside:
        report.add("white-beside-ids", path, "255 beside ids: this data set has no void, so the mask is refused; give it an id")
        return values
    return frozenset({0, 1})


def _check_still_images(split: Split, deep: bool) -> Report:
    """Check the pairs of images and masks."""
    report = Report()
    flat = split.images == split.labels and not split.endings[0]
    folders = dict.fromkeys((split.images / name).parent for name in split.videos)
    paths = [path for folder in folders if folder.is_dir() for path in list_everything(folder)]
    suffixes = IMAGE_SUFFIXES - {".png"} if flat else IMAGE_SUFFIXES
    images: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("."):
            report.add("hidden-file", path, LEFT_BEHIND, fixable=True)
        elif path.suffix.lower() in suffixes:
            images[path.relative_to(split.images).with_suffix("").as_posix()] = path
    for name in split.videos:
        mask = split.labels / f"{name}.png"
        found = check_label(mask, False, Report())  # grey levels are allowed: saliency
        if found is None:
            check_image(mask, report, deep=True)
        report.masks += 1
        image = images.pop(split.image_of(name), None)
        if image is None:
            report.add("missing-frame", split.images / split.image_of(name), f"the mask {mask} has no image")
            continue
        report.frames += 1
        header = check_image(image, report, deep)
        # Masks of published sets lie on the stored image, the user's own masks on the upright one.
        if found and header and found[0] not in (header.size, header.stored_size):
            width, height = header.size
            report.add("size-mismatch", mask, f"{found[0][0]} x {found[0][1]} pixels, its image has {width} x {height}")
    without = [name for name in images if name.endswith(split.endings[0])] if split.endings[0] else list(images)
    if without and split.name != "trainval":
        report.add("missing-mask", split.labels / f"{without[0]}.png", f"{len(without)} images have no mask", "note")
    return report
