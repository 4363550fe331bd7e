"""The masks that a user draws for a video: all of them are read and checked before the first frame is segmented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from vos_lightning.io.files import list_files, regular_file
from vos_lightning.io.images import IMAGE_SUFFIXES
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.videos import FrameSource, count_frames
from vos_lightning.mask_ops import as_object_map, object_ids_in
from vos_lightning.structures import FrameProposals, VideoSample, frame_name

RIM_RULES = ((4.0, 0.25), (6.0, 0.5))
"""Pairs of a mean width in pixels, up to which an id counts as thin, and the share of an object's outline from which thin ids
along it mean that the mask was smoothed; see :func:`find_rims`."""
WARNED_SHARE = 0.1
"""Share of an object's outline; if thin ids cover more than this, the user is warned."""


@dataclass(frozen=True)
class Rims:
    """Thin ids that follow the outline of an object."""

    object_id: int
    ids: tuple[int, ...]
    share: float
    """Share of the object's outline that the thin ids cover."""
    smoothed: bool
    """Whether the share is larger than true objects reach."""


@dataclass(frozen=True)
class GivenMask:
    """A mask and the frame it belongs to."""

    path: Path
    frame: str
    """Name of the frame."""
    areas: Mapping[int, int]
    """Pixels of every object, by id."""
    rims: tuple[Rims, ...] = ()

    def __str__(self) -> str:
        objects = ", ".join(f"object {i}: {area} pixels" for i, area in self.areas.items())
        line = f"{self.path} (frame {self.frame}): {objects or 'no object'}"
        return line + "".join(
            f"; warning: {_listed(rim.ids, self.areas)} beside {rim.share:.0%} of the outline of id {rim.object_id}"
            for rim in self.rims
        )


class GivenMasks(Mapping[int, Tensor]):
    """The masks of a video by the index of their frame: one file for the first frame, or a folder of files.

    All are read and checked at the beginning, and read again when they are accessed.

    In a folder, a file belongs to the frame of the same name. A file whose name is a number belongs to the frame with that
    number: ``7.png`` belongs to ``00007.jpg`` or ``frame_7.png``. Where frames have no numbers, as in a video file, frames are
    counted from 0 or from 1:

    - from 0, as ``predict`` names what it writes, if there is a mask 0;
    - from 1, as FFmpeg names the frames that it extracts, if there is a mask with the number of the last frame counted from 1, or
      if 1 is the lowest number: the first mask is usually drawn on the first frame;
    - from 0 otherwise.

    Args:
        path: a PNG file or a folder of them.
        frames: the video.
        first_number: number of the first frame; None decides by the rules above.
        allow_rims: accept masks that look smoothed, see :func:`find_rims`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a mask is damaged, smoothed, of another size than the frames, or belongs to no frame; a link leads out of the
            folder; two masks belong to one frame; the first mask is empty, or there is no mask. The message names the file.
    """

    def __init__(self, path: Path, frames: FrameSource, first_number: int | None = None, allow_rims: bool = False) -> None:
        self.numbering: str | None = None
        """How numbers were assigned to frames, where there was a choice; for the user."""
        if path.is_dir():
            files = {stem: _must_be_png(file) for stem, file in list_files(path, IMAGE_SUFFIXES, (path,)).items()}
            if not files:
                raise ValueError(f"{path}: the folder holds no .png masks")
            placed = self._place(files, frames, first_number)
        elif path.exists():
            placed = {0: _must_be_png(regular_file(path))}
        else:
            raise FileNotFoundError(f"{path}: there is no such mask file or folder of masks")
        self.size = frames.size()
        """Height and width of the frames in pixels."""
        self.files: dict[int, GivenMask] = {}
        """The masks by the index of their frame."""
        for index, file in sorted(placed.items()):
            label_map = read_given(file, self.size, first=not self.files)
            mask = GivenMask(file, frame_name(frames.names, index), areas_of(label_map), find_rims(label_map))
            if not allow_rims:
                _refuse_rims(mask)
            self.files[index] = mask

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)

    def __getitem__(self, index: int) -> UInt8[Tensor, "H W"]:
        return read_given(self.files[index].path, self.size, first=index == next(iter(self)))

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects in any mask, ascending."""
        return tuple(sorted({i for mask in self.files.values() for i in mask.areas}))

    def report(self) -> list[str]:
        """Lines for the user: how frames are counted, and the objects of every mask with their areas."""
        return [*([self.numbering] if self.numbering else []), *map(str, self.files.values())]

    # Which frame ------------------------------------------------------------------------------------------------------

    def _place(self, files: Mapping[str, Path], frames: FrameSource, first_number: int | None) -> dict[int, Path]:
        names = frames.names
        by_name = {} if names is None else {name: index for index, name in enumerate(names)}
        placed: dict[int, Path] = {}
        numbered: dict[int, list[Path]] = {}
        strange: list[Path] = []
        for stem, file in files.items():
            if stem in by_name:
                self._put(placed, by_name[stem], file)
            elif _is_number(stem):
                numbered.setdefault(int(stem), []).append(file)
            else:
                strange.append(file)
        frame_of = None if names is None else _numbers_of(names)
        if numbered and frame_of is None:
            length = count_frames(frames.path) if names is None else len(names)
            first = self._first(sorted(numbered), length, first_number)
            frame_of = {first + index: index for index in range(length)}
        for number, same in numbered.items():
            for file in same:
                if frame_of is None or number not in frame_of:
                    strange.append(file)
                else:
                    self._put(placed, frame_of[number], file)
        if strange:
            more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
            how = f"; {self.numbering}" if self.numbering else ""
            raise ValueError(f"{strange[0]}{more}: no frame of the video has this name or number{how}; rename the mask")
        return placed

    @staticmethod
    def _put(placed: dict[int, Path], index: int, file: Path) -> None:
        if index in placed:
            raise ValueError(f"{file}: {placed[index].name} is a mask of the same frame; keep one of the two")
        placed[index] = file

    def _first(self, numbers: list[int], length: int, wanted: int | None) -> int:
        """Number of the first frame; ``numbers`` is sorted."""
        if wanted is not None:
            first, why = wanted, "--first-number says so"
        elif numbers[0] == 0:
            first, why = 0, "there is a mask 0"
        elif numbers[-1] == length:
            first, why = 1, f"there is a mask {length} and {length} frames"
        elif numbers[0] == 1:
            first, why = 1, "the first mask is 1"
        else:
            first, why = 0, "nothing speaks against it"
        other = "" if wanted is not None else f"; --first-number {1 - first} changes it"
        self.numbering = f"frames are counted from {first} ({why}{other})"
        return first


def _is_number(stem: str) -> bool:
    return stem.isascii() and stem.isdigit()


def _numbers_of(names: tuple[str, ...]) -> dict[int, int] | None:
    """Number at the end of a frame's name -> index; None if a name has no number, or two names have the same number."""
    numbers = []
    for name in names:
        digits = name[len(name.rstrip("0123456789")) :]
        if not digits:
            return None
        numbers.append(int(digits))
    return {number: index for index, number in enumerate(numbers)} if len(set(numbers)) == len(numbers) else None


def _must_be_png(file: Path) -> Path:
    if file.suffix.lower() != ".png":
        raise ValueError(f"{file}: masks must be PNG files, as JPEG changes the ids; save it as an indexed PNG")
    return file


# What is in a mask ----------------------------------------------------------------------------------------------------


def read_given(path: Path, size: tuple[int, int], first: bool) -> UInt8[Tensor, "H W"]:
    """Read a mask that a user has drawn. A black and white mask is object 1.

    Args:
        path: a PNG file, see :func:`vos_lightning.io.label_maps.read_label_map`.
        size: height and width of the frames.
        first: whether this is the first mask, which must not be empty.

    Raises:
        ValueError: the mask is damaged, coloured, empty or of another size, or has id 255 beside others.
    """
    label_map = read_label_map(path)
    if tuple(label_map.shape) != size:
        height, width = label_map.shape
        raise ValueError(f"{path}: the mask is {width}x{height}, the frames are {size[1]}x{size[0]}; draw it on a frame")
    label_map = as_object_map(label_map, name=path)
    if first and not object_ids_in(label_map):
        raise ValueError(f"{path}: the first mask is empty; number the pixels of the objects 1, 2, ...")
    return label_map


def areas_of(label_map: UInt8[Tensor, "H W"]) -> dict[int, int]:
    """Object id -> pixels, ascending, without background."""
    counts = torch.bincount(label_map.flatten().long(), minlength=256).tolist()
    return {i: counts[i] for i in range(1, 255) if counts[i]}


def find_rims(label_map: UInt8[Tensor, "H W"]) -> tuple[Rims, ...]:
    """Ids that look like the rims that smoothing leaves around an object when its grey values become ids.

    A rim is thin, lies between an object and something else, and follows the object's outline. Among the ids with a small mean
    width (:data:`RIM_RULES`), those connected pieces count that touch an object (any wider id) and also another object or the
    background. The share of the object's outline that these pieces cover decides. A small true object (a ball, a leash) lies
    along a small part of the outline only, or is surrounded by a single object.

    The rules were chosen by measurement. True masks: every tenth one of ten videos of DAVIS 2016, 497 maps of up to 5 regions
    from BSDS500, 120 maps of 3 videos with several objects. Ids up to 4 pixels wide cover nothing of an outline in any of them;
    ids up to 6 pixels wide cover 0.36 in one, 0.008 in two and nothing in 673; ids up to 8 pixels wide cover up to 0.63. So no
    true mask is refused. Smoothed masks: 16 objects of the same sources, blurred by a Gaussian of 0.7 to 3 pixels, enlarged 2 to
    8 times bilinearly, or anti-aliased, and quantised to 3 to 8 levels, by equal steps or to a palette of the image: 15 or 16 of
    16 are refused in every case. Masks that are blurred by 5 pixels and more have levels as wide as true objects unless there are
    many, and are accepted.

    Args:
        label_map: ids, 0 background.

    Returns:
        Objects with rims beside at least :data:`WARNED_SHARE` of their outline.
    """
    array = label_map.numpy()
    widths = {int(i): _mean_width(array == i) for i in np.unique(array)}
    found: dict[int, Rims] = {}
    for width, refused in RIM_RULES:
        thin_ids = [i for i in widths if i and widths[i] <= width]
        for i, ids, share in _covered_outlines(array, thin_ids, [i for i in widths if i not in thin_ids]):
            smoothed = share >= refused or (i in found and found[i].smoothed)
            if share >= WARNED_SHARE or smoothed:
                found[i] = Rims(i, ids, share, smoothed)
    return tuple(found.values())


def _covered_outlines(
    array: UInt8[np.ndarray, "H W"], thin_ids: list[int], wide_ids: list[int]
) -> Iterator[tuple[int, tuple[int, ...], float]]:
    """Each object, the thin ids between it and something else, and the share of its outline that they cover."""
    if not thin_ids:
        return
    thin = np.isin(array, thin_ids)
    # Every wide object is grown by a pixel, so that it overlaps the thin pieces that it touches.
    contacts = {i: _grow(array == i) & thin for i in wide_ids}
    count, pieces = cv2.connectedComponents(thin.astype(np.uint8), connectivity=8)
    touched = np.zeros((count, 256), dtype=bool)
    for i, contact in contacts.items():
        touched[np.unique(pieces[contact]), i] = True
    between = touched.sum(axis=1) > 1
    for i in filter(None, wide_ids):
        covered = contacts[i] & between[pieces]
        inside = array == i
        outline = np.count_nonzero(_grow(inside) & ~inside)
        if covered.any():
            ids = np.unique(array[thin & np.isin(pieces, np.unique(pieces[covered]))])
            yield i, tuple(map(int, ids)), float(np.count_nonzero(covered) / outline)


def _grow(region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    return cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _mean_width(region: Bool[np.ndarray, "H W"]) -> float:
    """Twice the area divided by the length of the border: about the width of a line, or the radius of a disc."""
    plane = region.astype(np.uint8)
    # The border of the image is no edge: an object that it cuts off is assumed to continue outside.
    inner = cv2.erode(plane, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), borderType=cv2.BORDER_REPLICATE)
    area = int(plane.sum())
    return 2 * area / max(area - int(inner.sum()), 1)


def _refuse_rims(mask: GivenMask) -> None:
    for rim in mask.rims:
        if rim.smoothed:
            raise ValueError(
                f"{mask.path}: {_listed(rim.ids, mask.areas)} like a rim around id {rim.object_id} "
                f"({mask.areas.get(rim.object_id, 0)} pixels), as when a smoothed mask is converted to a palette; draw without "
                "anti-aliasing, soft brush or interpolation when resizing, or pass --allow-rims if these are objects"
            )


def _listed(ids: tuple[int, ...], areas: Mapping[int, int]) -> str:
    shown = ", ".join(f"{i} ({areas.get(i, 0)} pixels)" for i in ids[:4]) + (", ..." if len(ids) > 4 else "")
    return f"ids {shown} lie" if len(ids) > 1 else f"id {shown} lies"


# A video with its masks -----------------------------------------------------------------------------------------------


def own_video(frames: FrameSource, masks: GivenMasks, proposals: FrameProposals | None = None) -> VideoSample:
    """A user's video in the form in which data sets give theirs.

    Args:
        frames: the video.
        masks: masks of its objects.
        proposals: proposals of its frames, for networks that match them.
    """
    return VideoSample(
        name=frames.path.resolve().stem if frames.names is None else frames.path.resolve().name,
        frames=frames,
        annotations=masks,
        targets={},
        object_ids=masks.object_ids,
        original_size=masks.size,
        frame_names=frames.names,
        proposals=proposals,
        fps=frames.fps,
    )
