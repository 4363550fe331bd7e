"""What a person has said about the objects of a video: a value, so that it can be undone and compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool

from vos_lightning.propagation.inputs import MAX_OBJECTS

GONE = "gone"
"""The digest of an object that is gone."""
LONGEST_OBJECT_NAME = 40
"""Most characters of the name of an object."""
Digests: TypeAlias = Mapping[int, Mapping[int, str]]
"""Frame -> object -> what is said of it there, see :meth:`Marks.digests`."""


@dataclass(frozen=True)
class Mask:
    """A mask in little memory; equal pixels make equal values."""

    content: bytes
    size: tuple[int, int]

    @classmethod
    def of(cls, pixels: Bool[np.ndarray, "H W"]) -> Mask:
        """Pack the pixels."""
        return cls(zlib.compress(np.packbits(pixels).tobytes(), 1), (pixels.shape[0], pixels.shape[1]))

    def pixels(self) -> Bool[np.ndarray, "H W"]:
        """Unpack the pixels."""
        height, width = self.size
        bits = np.frombuffer(zlib.decompress(self.content), np.uint8)
        return np.unpackbits(bits, count=height * width).reshape(self.size).astype(bool)

    @functools.cached_property
    def digest(self) -> str:
        """Differs where pixels differ."""
        return hashlib.blake2b(zlib.decompress(self.content), digest_size=12).hexdigest()


Said: TypeAlias = Mapping[int, Mask | None]
"""Object -> its mask in a frame; None where it is gone from that frame on."""


@dataclass(frozen=True)
class Marks:
    """Objects, and what is given of them in which frame. Every method returns a changed copy.

    Attributes:
        names: object id -> name, in the order in which they were added.
        given: frame index -> what is said there. The masks of a frame do not overlap, no mask is empty, and the first thing that
            is said of an object is a mask.
        last_id: the highest id that was ever given; ids are not used again, as results of removed objects may still be there.
    """

    names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    given: Mapping[int, Said] = field(default_factory=lambda: MappingProxyType({}))
    last_id: int = 0

    def added(self) -> Marks:
        """With a new object, whose id is :attr:`last_id`.

        Raises:
            ValueError: there were too many objects.
        """
        if self.last_id == MAX_OBJECTS:
            raise ValueError(f"a video can have {MAX_OBJECTS} objects, removed ones included; export what there is")
        new = self.last_id + 1
        return dataclasses.replace(self, names={**self.names, new: f"Object {new}"}, last_id=new)

    def renamed(self, object_id: int, name: str) -> Marks:
        """With another name of an object; an empty one gives it its first name again."""
        self._check(object_id)
        name = " ".join(name.split())[:LONGEST_OBJECT_NAME] or f"Object {object_id}"
        return dataclasses.replace(self, names={**self.names, object_id: name})

    def removed(self, object_id: int) -> Marks:
        """Without an object and all that is said of it."""
        self._check(object_id)
        names = {i: name for i, name in self.names.items() if i != object_id}
        return dataclasses.replace(self, names=names).saying({t: _without(said, object_id) for t, said in self.given.items()})

    def marked(self, index: int, object_id: int, pixels: Bool[np.ndarray, "H W"]) -> Marks:
        """With a mask of an object in a frame, which covers those that are given there; an empty one is taken back."""
        self._check(object_id)
        said: dict[int, Mask | None] = {}
        for i, mask in self.given.get(index, {}).items():
            if i != object_id:
                said[i] = mask if mask is None else Mask.of(mask.pixels() & ~pixels)
        said[object_id] = Mask.of(pixels)
        return self.saying({**self.given, index: said})

    def gone(self, index: int, object_id: int) -> Marks:
        """Without an object from a frame on, until a later mask of it.

        Raises:
            ValueError: it has no mask before.
        """
        self._check(object_id)
        if not any(t < index and said.get(object_id) is not None for t, said in self.given.items()):
            raise ValueError(f"{self.names[object_id]} has no mask before this frame; mark it where it can be seen")
        return self.saying({**self.given, index: {**self.given.get(index, {}), object_id: None}})

    def cleared(self, index: int, object_id: int) -> Marks:
        """Without what is said of an object in a frame."""
        self._check(object_id)
        return self.saying({**self.given, index: _without(self.given.get(index, {}), object_id)})

    def digests(self) -> Digests:
        """What is said, in a form that is compared with what results were made from."""
        return {t: {i: GONE if mask is None else mask.digest for i, mask in said.items()} for t, said in self.given.items()}

    def first_frames(self) -> dict[int, int]:
        """Object id -> the frame of its first mask."""
        first: dict[int, int] = {}
        for t, said in sorted(self.given.items()):
            for i in said:
                first.setdefault(i, t)
        return first

    def last_frame(self) -> int:
        """The last frame that has a mask; -1 if there is none."""
        return max((t for t, said in self.given.items() if any(said.values())), default=-1)

    def mirrored(self, last: int) -> Marks:
        """What was said, for a video that begins with frame ``last`` and goes back in time: its frame ``i`` is ``last - i``.

        An object that is gone from a frame on is not in that frame either where time runs backwards. So it is gone there as soon
        as the frame is left whose mask comes next in time, see
        :func:`vos_lightning.propagation.directions.reversed_video`.
        """
        given: dict[int, dict[int, Mask | None]] = {}
        for t, said in self.given.items():
            for i, mask in said.items():
                if mask is not None and t <= last:
                    given.setdefault(last - t, {})[i] = mask
                later = [end for end, others in self.given.items() if t < end <= last and others.get(i) is not None]
                if mask is None and later:
                    given.setdefault(last - min(later) + 1, {}).setdefault(i, None)
        return dataclasses.replace(self, given=dict(sorted(given.items())))

    def followed_backwards(self, object_id: int, length: int) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
        """Where an object may be followed backwards, from the next mask to the thing that was said before.

        Args:
            object_id: the object.
            length: number of frames.

        Returns:
            For every frame: whether the next thing that is said of the object is a mask, and whether that is also nearer than
            the mask before. Frames in which something is said of it are neither, nor are those in which it is gone.
        """
        before_a_mask, nearer = np.zeros(length, bool), np.zeros(length, bool)
        start, middle, is_gone = 0, 0, False
        for t, said in sorted(self.given.items()):
            if object_id not in said:
                continue
            if said[object_id] is not None and not is_gone:
                before_a_mask[start:t] = True
                nearer[middle + (t - middle) // 2 + 1 if start else 0 : t] = True
            start, middle, is_gone = t + 1, t, said[object_id] is None
        return before_a_mask, nearer

    def _check(self, object_id: int) -> None:
        if object_id not in self.names:
            raise ValueError("this object is not there any more; choose another one")

    def saying(self, given: Mapping[int, Said]) -> Marks:
        """With other masks and ends; what is empty or says nothing is left out."""
        kept: dict[int, Said] = {}
        known: set[int] = set()
        for t, said in sorted(given.items()):
            masks = {i: mask for i, mask in said.items() if mask is not None and mask.pixels().any()}
            ends = {i: None for i, mask in said.items() if mask is None and i in known}
            known = (known | masks.keys()) - ends.keys()
            if masks or ends:
                kept[t] = {**masks, **ends}
        return dataclasses.replace(self, given=kept)


def _without(said: Said, object_id: int) -> Said:
    return {i: mask for i, mask in said.items() if i != object_id}
