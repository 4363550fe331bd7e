"""What was found forwards and backwards in time, seen as one: every object is taken from its nearest mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from vos_lightning.app.browser.marks import Marks
from vos_lightning.app.browser.results import Results
from vos_lightning.predictions.drift import SCENE_CUT, ObjectRow, is_flagged


class Findings:
    """Results of one video in one direction of time or in both.

    Backwards, a run begins with the last frame that has a mask, so that its frame ``i`` is frame ``last - i`` of the video.

    Args:
        folder: where the files are; those of the way back are in ``backward`` in it.
        size: height and width of the frames.
        network: see :class:`Results`.

    Attributes:
        forward: what was found forwards.
        backward: what was found backwards.
        last: the frame with which the way back has begun.
        both: whether objects are also followed backwards, up to the middle between two masks, and up to the first frame.
    """

    def __init__(self, folder: Path, size: tuple[int, int], network: str) -> None:
        self.forward = Results(folder, size, network)
        self.backward = Results(folder / "backward", size, network)
        self.last = -1
        self.both = False
        self._size = size
        self._uses: tuple[Marks, int, int, dict[int, Bool[np.ndarray, " T"]]] | None = None

    def mirrored(self, marks: Marks) -> tuple[int, Marks]:
        """The frame with which the way back begins, and what was said as seen from there."""
        last = marks.last_frame()
        if self.last > last and self.backward.rows:  # what was found stays where it is
            last = self.last
        return last, marks.mirrored(last)

    def uses(self, marks: Marks, length: int) -> dict[int, Bool[np.ndarray, " T"]]:
        """Object -> frames in which it is taken from the way back.

        These are the frames that are nearer to the next mask than to the one before, and those before the next mask in which
        nothing is known of it forwards.
        """
        if not self.both:
            return {}
        changes = self.forward.changes
        if self._uses is not None and self._uses[0] is marks and self._uses[1:3] == (length, changes):
            return self._uses[3]
        found = {}
        for object_id in marks.names:
            before_a_mask, nearer = marks.followed_backwards(object_id, length)
            for t in np.flatnonzero(before_a_mask & ~nearer).tolist():
                nearer[t] = not _knows(self.forward.rows.get(t, []), object_id)
            found[object_id] = nearer
        self._uses = (marks, length, changes, found)
        return found

    def fresh(self, marks: Marks, length: int) -> Bool[np.ndarray, " T"]:
        """Whether a run with these marks would leave a frame as it is, for every frame."""
        frames = np.arange(length)
        fresh: np.ndarray = frames < self.forward.valid(marks)
        uses = list(self.uses(marks, length).values())
        if uses:
            fresh &= (frames >= self._valid_from(marks, length)) | ~np.logical_or.reduce(uses)
        return fresh

    def waiting(self, marks: Marks, length: int) -> Bool[np.ndarray, " T"]:
        """For every frame, whether an object is to be taken from the way back, which has not been there yet."""
        uses = list(self.uses(marks, length).values())
        if not uses:
            return np.zeros(length, bool)
        reached = np.zeros(length, bool)
        reached[[self.last - t for t in self.backward.rows if 0 <= self.last - t < length]] = True
        waiting: np.ndarray = np.logical_or.reduce(uses) & ~reached
        return waiting

    def _valid_from(self, marks: Marks, length: int) -> int:
        """The frame from which on the way back is up to date."""
        last, seen = self.mirrored(marks)
        return last + 1 - self.backward.valid(seen) if last == self.last else length

    def label_map(self, index: int, marks: Marks, length: int) -> UInt8[Tensor, "H W"] | None:
        """The objects of a frame that are still there; None where there is no result.

        Pixels that an object from either direction claims go to the one that is followed forwards.

        Raises:
            OSError: a file cannot be read.
            ValueError: it is damaged.
        """
        found = self.forward.label_map(index, marks.names)
        theirs = self._taken_back(index, marks, length)
        if not theirs:
            return found
        backward = self.backward.label_map(self.last - index, marks.names)
        assert backward is not None
        if found is None:
            found = torch.zeros(self._size, dtype=torch.uint8)
        for object_id in theirs:
            found[found == object_id] = 0
        free = (found == 0) & torch.isin(backward, torch.tensor(theirs, dtype=torch.uint8))
        found[free] = backward[free]
        return found

    def rows(self, index: int, marks: Marks, length: int) -> list[ObjectRow]:
        """What is known of the objects in a frame that are still there."""
        rows = {row.object_id: row for row in self.forward.rows.get(index, []) if row.object_id in marks.names}
        if self.both and index <= self.last:
            theirs = self._taken_back(index, marks, length)
            for row in self.backward.rows.get(self.last - index, []):
                let_go_both_ways = row.is_let_go and row.object_id not in rows and row.object_id in marks.names
                if row.object_id in theirs or let_go_both_ways:
                    rows[row.object_id] = dataclasses.replace(row, frame=index)
        return [rows[object_id] for object_id in marks.names if object_id in rows]

    def _taken_back(self, index: int, marks: Marks, length: int) -> list[int]:
        """Objects that are taken from the way back in a frame: what it has lost is taken from the other one."""
        if not self.both or index >= length:
            return []
        known = self.backward.rows.get(self.last - index, [])
        return [i for i, used in self.uses(marks, length).items() if used[index] and _knows(known, i)]

    def frames(self) -> list[int]:
        """Frames that have a result, whether it is up to date or not."""
        found = set(self.forward.rows)
        if self.both:
            found |= {self.last - t for t in self.backward.rows}
        return sorted(found)

    def flagged(self, marks: Marks, length: int) -> list[int]:
        """Frames in which some object, of those that are still there, asks for a look."""
        return [t for t in self.frames() if is_flagged(self.rows(t, marks, length))]

    def cuts(self) -> list[int]:
        """Frames in which another scene begins, as far as an object was there to be followed."""
        found = {t for t, rows in self.forward.rows.items() if _has_cut(rows)}
        if self.both:
            found |= {self.last - t + 1 for t, rows in self.backward.rows.items() if _has_cut(rows)}
        return sorted(found)

    # A run ------------------------------------------------------------------------------------------------------------

    def last_needed(self, marks: Marks, length: int) -> int | None:
        """The frame at which the way back ends; None where it is not needed, or up to date."""
        needed = [int(t) for used in self.uses(marks, length).values() for t in np.flatnonzero(used)[:1]]
        return min(needed) if needed and self._valid_from(marks, length) > min(needed) else None

    def begin_backwards(self, marks: Marks) -> tuple[int, Marks]:
        """Begin a way back; see :meth:`mirrored`. What was found from another frame on is forgotten."""
        last, seen = self.mirrored(marks)
        if last != self.last:
            self.backward.forget()
            self.last = last
        return last, seen

    # On disk ----------------------------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """Everything that is not in files of its own, as plain values."""
        return {**self.forward.plain(), "backward": self.backward.plain(), "last": self.last, "both": self.both}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take over what :meth:`plain` has returned.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        self.forward.restore(plain)
        if "backward" in plain:
            self.backward.restore(plain["backward"])
            self.last, self.both = int(plain["last"]), bool(plain["both"])


def _knows(rows: list[ObjectRow], object_id: int) -> bool:
    return any(row.object_id == object_id and not row.is_let_go for row in rows)


def _has_cut(rows: list[ObjectRow]) -> bool:
    return any(SCENE_CUT in row.flags.split() for row in rows)
