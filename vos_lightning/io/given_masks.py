"""The masks that a user draws for a video: all of them are read and checked before the first frame is segmented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vos_lightning.arrays import Tensor, to_array
from vos_lightning.io.annotation_files import ANNOTATION_SUFFIXES, read_annotations
from vos_lightning.io.drawings import Drawing, Key, assign_ids, draw
from vos_lightning.io.files import list_files, regular_file
from vos_lightning.io.images import IMAGE_SUFFIXES
from vos_lightning.io.label_maps import NO_COLOURS, colours_in, read_label_map
from vos_lightning.io.rims import Rims, find_rims
from vos_lightning.io.videos import FrameSource, count_frames
from vos_lightning.labels import as_object_map, object_ids_in
from vos_lightning.structures import FrameProposals, VideoSample, frame_name

MAX_COLOURS = 32
"""Most colours outside of the palette in a coloured mask; more are taken for smoothing."""


@dataclass(frozen=True)
class GivenMask:
    """A mask and the frame it belongs to."""

    path: Path
    frame: str
    """Name of the frame."""
    areas: Mapping[int, int]
    """Pixels of every object, by id."""
    rims: tuple[Rims, ...] = ()
    drawing: Drawing | None = None
    """The shapes, where the file holds shapes."""
    gone: tuple[int, ...] = ()
    """Objects that are not visible any more from this frame on."""

    def __str__(self) -> str:
        objects = ", ".join(f"object {i}: {area} pixels" for i, area in self.areas.items())
        gone = f"{_plural(self.gone)} gone from here on" if self.gone else ""
        line = f"{self.path} (frame {self.frame}): {', '.join(filter(None, (objects, gone))) or 'no object'}"
        return line + "".join(
            f"; warning: {_listed(rim.ids, self.areas)} beside {rim.share:.0%} of the outline of id {rim.object_id}"
            for rim in self.rims
        )


@dataclass(frozen=True)
class _Entry:
    """A mask before its frame is known."""

    path: Path
    stem: str
    drawing: Drawing | None = None


class GivenMasks(Mapping[int, Tensor]):
    """The masks of a video by the index of their frame: one file, or a folder of files.

    All are read and checked at the beginning, and read again when they are accessed. A file is a PNG, see
    :func:`vos_lightning.io.label_maps.read_label_map`, or annotations of COCO, labelme or CVAT, see
    :mod:`vos_lightning.io.annotation_files`. A PNG may also have up to :data:`MAX_COLOURS` colours of its own on black: each
    colour is an object, the same one in all masks.

    A single PNG belongs to the first frame. So does the only drawing of a file, if its name is that of no frame. In a folder, a
    file belongs to the frame of the same name. A file whose name is a number, or ends in one, belongs to the frame with that
    number: ``7.png`` and ``mask_7.json`` belong to ``00007.jpg`` or ``frame_7.png``. Where frames have no numbers, as in a video
    file, frames are counted from 0 or from 1:

    - from 0, as ``segment`` names what it writes, if there is a mask 0;
    - from 1, as FFmpeg names the frames that it extracts, if there is a mask with the number of the last frame counted from 1, or
      if 1 is the lowest number: the first mask is usually drawn on the first frame;
    - from 0 otherwise.

    A later mask corrects or adds the objects that it shows; objects that it does not show go on. A later mask without any object
    (an all-black PNG) says that all objects are gone from that frame on; a later mask brings them back.

    Args:
        path: a file or a folder of files.
        frames: the video.
        first_number: number of the first frame; None decides by the rules above.
        allow_rims: accept masks that look smoothed, see :func:`vos_lightning.io.rims.find_rims`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a mask is damaged, smoothed, of another size than the frames, or belongs to no frame; a link leads out of the
            folder; two masks belong to one frame; the first mask is empty, or there is no mask. The message names the file.
    """

    def __init__(self, path: Path, frames: FrameSource, first_number: int | None = None, allow_rims: bool = False) -> None:
        self.path = path
        """The file or folder."""
        self.numbering: str | None = None
        """How numbers were assigned to frames, where there was a choice; for the user."""
        self.first_number = 0
        """Number of the first frame of the whole video in the names of masks, where frames have no names."""
        self.left_out: list[str] = []
        """Masks of frames that are not chosen, for the user."""
        entries = _entries(path)
        placed = (
            {0: entries[0]} if not path.is_dir() and entries[0].drawing is None else self._place(entries, frames, first_number)
        )
        if not placed:
            raise ValueError(f"{path}: no mask belongs to a frame that --start, --end and --stride have chosen")
        self.size = frames.size()
        """Height and width of the frames in pixels."""
        self.colours = _own_colours([entry.path for _, entry in sorted(placed.items()) if entry.drawing is None])
        """Ids of colours that are not in the palette."""
        self.ids = self._ids_of([entry for _, entry in sorted(placed.items()) if entry.drawing is not None])
        """Ids of the objects of shapes."""
        self.files: dict[int, GivenMask] = {}
        """The masks by the index of their frame."""
        alive: set[int] = set()
        for index, entry in sorted(placed.items()):
            name = frame_name(frames.names, index, frames.first, frames.stride)
            label_map = self._read(entry.path, entry.drawing, first=not self.files)
            areas = areas_of(label_map)
            lost = alive if not areas and not (entry.drawing and entry.drawing.gone) else {*()}
            if entry.drawing is not None:
                lost = lost | {self.ids[key] for key in entry.drawing.gone if self.ids.get(key) in alive}
            gone = tuple(sorted(lost - set(areas)))
            alive = (alive - lost) | set(areas)
            mask = GivenMask(entry.path, name, areas, find_rims(label_map), entry.drawing, gone)
            if not allow_rims:
                _refuse_rims(mask)
            self.files[index] = mask

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)

    def __getitem__(self, index: int) -> UInt8[Tensor, "H W"]:
        mask = self.files[index]
        return self._read(mask.path, mask.drawing, first=index == next(iter(self)))

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects in any mask, ascending."""
        return tuple(sorted({i for mask in self.files.values() for i in mask.areas}))

    @property
    def gone(self) -> dict[int, tuple[int, ...]]:
        """Objects that are gone from a frame on, by the index of that frame."""
        return {index: mask.gone for index, mask in self.files.items() if mask.gone}

    def report(self) -> list[str]:
        """Lines for the user: how frames are counted, what objects are called, and the objects of every mask with their areas."""
        called = [f"object {i}: colour #{code:06x}" for code, i in self.colours.items()]
        called += [f"object {i}: {', '.join(key)}" for key, i in self.ids.items() if not isinstance(key, int)]
        return [*([self.numbering] if self.numbering else []), *self.left_out, *called, *map(str, self.files.values())]

    def _read(self, path: Path, drawing: Drawing | None, first: bool) -> UInt8[Tensor, "H W"]:
        if drawing is None:
            return read_given(path, self.size, first, self.colours)
        if drawing.size not in (None, self.size):
            assert drawing.size is not None
            raise _other_size(path, drawing.size, self.size)
        try:
            label_map = draw(drawing.shapes, self.ids, self.size)
        except ValueError as error:
            raise ValueError(f"{path}: frame {drawing.frame}: {error}; the frames are {self.size[1]}x{self.size[0]}") from error
        if first and not object_ids_in(label_map):
            raise ValueError(f"{path}: the first mask is empty; draw the objects in the frame where they first appear")
        return label_map

    @staticmethod
    def _ids_of(entries: Sequence[_Entry]) -> dict[Key, int]:
        drawings = [entry.drawing for entry in entries if entry.drawing is not None]
        try:
            return assign_ids(shape.key for drawing in drawings for shape in drawing.shapes)
        except ValueError as error:
            raise ValueError(f"{entries[0].path}: {error}") from error

    # Which frame ------------------------------------------------------------------------------------------------------

    def _place(self, entries: Sequence[_Entry], frames: FrameSource, first_number: int | None) -> dict[int, _Entry]:
        names = frames.whole_names
        by_name = {} if names is None else {name: number for number, name in enumerate(names)}
        frame_of = None if names is None else _numbers_of(names)
        numbers: dict[str, int] = {entry.stem: _number_in(entry.stem) for entry in entries if entry.stem not in by_name}
        counted = {entry.stem for entry in entries if entry.drawing is not None and entry.drawing.counted}
        open_numbers = sorted(number for stem, number in numbers.items() if stem not in counted and number >= 0)
        length = len(names) if names is not None else None if frames.live else count_frames(frames.path)
        first = 0
        if open_numbers and frame_of is None:
            first = self.first_number = self._first(open_numbers, length, first_number)
        placed: dict[int, _Entry] = {}
        strange: list[_Entry] = []
        for entry in entries:
            number: int | None = by_name.get(entry.stem)
            if number is None and numbers[entry.stem] >= 0:
                number = numbers[entry.stem]
                if entry.stem not in counted:
                    number = number - first if frame_of is None else frame_of.get(number, -1)
            if number is None or number < 0 or (length is not None and number >= length):
                strange.append(entry)
                continue
            index = frames.index_of(number)
            if index is None:
                self.left_out.append(f"{entry.path} (frame {entry.stem}): left out, as its frame is not chosen")
            elif index in placed:
                raise ValueError(f"{entry.path}: {placed[index].path.name} is a mask of the same frame; keep one of the two")
            else:
                placed[index] = entry
        if strange and len(entries) == 1 and entries[0].drawing is not None and not counted and not entries[0].path.is_dir():
            return {0: entries[0]}
        if strange:
            more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
            how = f"; {self.numbering}" if self.numbering else ""
            what = f"{strange[0].path}" + (f" (frame {strange[0].stem})" if strange[0].drawing is not None else "")
            raise ValueError(f"{what}{more}: no frame of the video has this name or number{how}; rename the mask")
        return placed

    def _first(self, numbers: list[int], length: int | None, wanted: int | None) -> int:
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


def _number_in(stem: str) -> int:
    """Number at the end of a name; -1 if there is none."""
    digits = stem[len(stem.rstrip("0123456789")) :]
    return int(digits) if digits else -1


def _numbers_of(names: tuple[str, ...]) -> dict[int, int] | None:
    """Number at the end of a frame's name -> index; None if a name has no number, or two names have the same number."""
    numbers = [_number_in(name) for name in names]
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        return None
    return {number: index for index, number in enumerate(numbers)}


def _entries(path: Path) -> list[_Entry]:
    """The masks of a file or folder."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such mask file or folder of masks")
        return _entries_of(regular_file(path))
    files = list_files(path, IMAGE_SUFFIXES | ANNOTATION_SUFFIXES, (path,))
    if not files:
        raise ValueError(f"{path}: the folder holds no masks (.png, .json or .xml)")
    return [entry for file in files.values() for entry in _entries_of(file)]


def _entries_of(file: Path) -> list[_Entry]:
    if file.suffix.lower() in ANNOTATION_SUFFIXES:
        drawings = read_annotations(file)
        if not drawings:
            raise ValueError(f"{file}: no object is drawn in this file")
        return [_Entry(file, drawing.frame, drawing) for drawing in drawings]
    if file.suffix.lower() != ".png":
        raise ValueError(f"{file}: masks must be PNG files, as JPEG changes the ids; save it as an indexed PNG")
    return [_Entry(file, file.stem)]


def _own_colours(files: Sequence[Path]) -> dict[int, int]:
    """Ids of the colours that masks use beside the palette, in the order in which they come."""
    used: set[int] = set()
    order: dict[int, None] = {}
    for file in files:
        found = colours_in(file)
        if len(found) > MAX_COLOURS:
            return {}  # smoothing; reading the file says so
        order.update(dict.fromkeys(found))
        if found:
            used |= set(areas_of(read_label_map(file, dict.fromkeys(found, 0))))
    free = (i for i in range(1, 255) if i not in used)
    return dict(zip(order, free, strict=False))


def _other_size(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> ValueError:
    return ValueError(f"{path}: the mask is {size[1]}x{size[0]}, the frames are {wanted[1]}x{wanted[0]}; draw it on a frame")


def _plural(ids: Sequence[int]) -> str:
    return f"object{'s' * (len(ids) > 1)} {', '.join(map(str, ids))} {'are' if len(ids) > 1 else 'is'}"


# What is in a mask ----------------------------------------------------------------------------------------------------


def read_given(path: Path, size: tuple[int, int], first: bool, colours: Mapping[int, int] = NO_COLOURS) -> UInt8[Tensor, "H W"]:
    """Read a mask that a user has drawn. A black and white mask is object 1.

    Args:
        path: a PNG file, see :func:`vos_lightning.io.label_maps.read_label_map`.
        size: height and width of the frames.
        first: whether this is the first mask, which must not be empty.
        colours: ids of colours that are not in the palette.

    Raises:
        ValueError: the mask is damaged, coloured, empty or of another size, or has id 255 beside others.
    """
    label_map = read_label_map(path, colours)
    if tuple(label_map.shape) != size:
        raise _other_size(path, (int(label_map.shape[0]), int(label_map.shape[1])), size)
    label_map = as_object_map(label_map, name=path)
    if first and not object_ids_in(label_map):
        raise ValueError(f"{path}: the first mask is empty; number the pixels of the objects 1, 2, ...")
    return label_map


def areas_of(label_map: UInt8[Tensor, "H W"]) -> dict[int, int]:
    """Object id -> pixels, ascending, without background."""
    counts = np.bincount(to_array(label_map).ravel(), minlength=256).tolist()
    return {i: counts[i] for i in range(1, 255) if counts[i]}


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


def own_video(
    frames: FrameSource, masks: GivenMasks, proposals: FrameProposals | None = None, name: str | None = None
) -> VideoSample:
    """A user's video in the form in which data sets give theirs.

    Args:
        frames: the video.
        masks: masks of its objects.
        proposals: proposals of its frames, for networks that match them.
        name: name of the video in outputs; None takes that of the file or folder.
    """
    return VideoSample(
        name=frames.name if name is None else name,
        frames=frames,
        annotations=masks,
        targets={},
        object_ids=masks.object_ids,
        original_size=masks.size,
        frame_names=frames.names,
        proposals=proposals,
        fps=frames.fps,
        numbering=(frames.first, frames.stride),
        gone=masks.gone,
    )
