"""What was found so far: a label map of every frame on disk, with what it was made from, and states to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.app.browser.marks import GONE, Digests, Marks
from vos_lightning.io.label_maps import read_label_map, write_label_map
from vos_lightning.predictions.drift import ObjectRow
from vos_lightning.propagation.snapshots import Snapshot, read_snapshot, write_snapshot
from vos_lightning.structures import FramePrediction

MOST_STATES = 8
"""Number of states of the network that are kept; a run goes on from the last one before a correction."""
FIRST_INTERVAL = 16
"""Frames between two states; it is doubled whenever there are more than :data:`MOST_STATES`."""


class Results:
    """Results of one video; a run replaces those from its first frame on, one after the other.

    ::

        <folder>/masks/<index>.png    label maps, with objects that were removed since
        <folder>/states/<index>.pt    what the network knew after a frame

    Args:
        folder: where the files are; it is created with the first one.
        size: height and width of the frames.
        network: what says which network runs, and how; results of another one are not up to date.

    Attributes:
        computed: number of frames, from the first one on, of the latest run and those that it went on from.
        rows: frame -> lines of the index; the frames from ``computed`` on are of an earlier run.
        made_from: frame -> object -> digest of what was said when its frame was computed, for the frames before ``computed``.
        states: frames after which a state was kept, ascending.
        changes: a number that grows with every frame that is kept or forgotten.
    """

    def __init__(self, folder: Path, size: tuple[int, int], network: str) -> None:
        self.folder, self.size, self._network = folder, size, network
        self.computed = 0
        self.rows: dict[int, list[ObjectRow]] = {}
        self.made_from: dict[int, dict[int, str]] = {}
        self.states: list[int] = []
        self.changes = 0
        self._interval = FIRST_INTERVAL

    def valid(self, marks: Marks) -> int:
        """Number of frames, from the first one on, that a run with these marks would not change.

        Objects that were removed since do not count: they are left out when results are shown, and the others stay as they are.
        """
        said = marks.digests()
        for t in sorted(said.keys() | self.made_from.keys()):
            if t >= self.computed:
                break
            before = {i: digest for i, digest in self.made_from.get(t, {}).items() if i in marks.names}
            if before != said.get(t, {}):
                return t
        return self.computed

    def label_map(self, index: int, names: Mapping[int, str]) -> UInt8[Tensor, "H W"] | None:
        """The objects of a frame that are still there; None where there is no result.

        Args:
            index: index of the frame.
            names: objects that are still there.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.
        """
        if index not in self.rows:
            return None
        label_map = read_label_map(self._mask(index))
        kept = torch.zeros(256, dtype=torch.uint8)
        kept[list(names)] = torch.tensor(list(names), dtype=torch.uint8)
        return kept[label_map.long()]

    # A run ------------------------------------------------------------------------------------------------------------

    def begin(self, marks: Marks) -> int:
        """Begin a run with these marks.

        Returns:
            The first frame that the run will change.
        """
        start = self.valid(marks)
        self.made_from = {t: said for t, said in self.made_from.items() if t < start}
        followed = {i for said in self.made_from.values() for i in said}
        removed = followed - marks.names.keys()
        if removed:  # so that these frames are computed again if the removal is taken back
            self.made_from[start] = dict.fromkeys(removed, GONE)
        for index in [index for index in self.states if index >= start]:
            self._drop_state(index)
        self.computed = start
        return start

    def forget(self) -> None:
        """Forget everything."""
        for index in list(self.states):
            self._drop_state(index)
        for index in self.rows:
            self._mask(index).unlink(missing_ok=True)
        self.computed, self.rows, self.made_from = 0, {}, {}
        self.changes += 1
        self._interval = FIRST_INTERVAL

    def put(self, prediction: FramePrediction, rows: list[ObjectRow], said: Digests) -> None:
        """Keep the next frame of a run.

        Raises:
            OSError: it cannot be written.
        """
        index = prediction.frame_index
        write_label_map(self._mask(index), prediction.label_map)
        self.rows[index] = rows
        self.changes += 1
        if index in said:
            self.made_from[index] = {**self.made_from.get(index, {}), **said[index]}
        self.computed = index + 1

    def is_due(self) -> bool:
        """Whether it is time to keep a state."""
        return self.computed - (self.states[-1] + 1 if self.states else 0) >= self._interval

    def keep_state(self, snapshot: Snapshot) -> None:
        """Keep what the network knows after the latest frame.

        Raises:
            OSError: it cannot be written.
        """
        if snapshot.frame_index in self.states or snapshot.frame_index != self.computed - 1:
            return
        write_snapshot(self._state(snapshot.frame_index), snapshot, {})
        self.states.append(snapshot.frame_index)
        while len(self.states) > MOST_STATES:
            self._interval *= 2
            for index in self.states[-2::-2]:
                self._drop_state(index)

    def latest_state(self) -> Snapshot | None:
        """The latest state that was kept; None where there is none.

        Raises:
            ValueError: the file is damaged, or of another network.
        """
        return read_snapshot(self._state(self.states[-1]))[0] if self.states else None

    def _drop_state(self, index: int) -> None:
        self._state(index).unlink(missing_ok=True)
        self.states.remove(index)

    def _mask(self, index: int) -> Path:
        return self.folder / "masks" / f"{index:06d}.png"

    def _state(self, index: int) -> Path:
        return self.folder / "states" / f"{index:06d}.pt"

    # On disk ----------------------------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """Everything that is not in files of its own, as plain values."""
        return {
            "network": self._network,
            "computed": self.computed,
            "rows": [[t, [list(vars(row).values()) for row in rows]] for t, rows in sorted(self.rows.items())],
            "made_from": [[t, i, digest] for t, said in sorted(self.made_from.items()) for i, digest in said.items()],
            "states": self.states,
            "interval": self._interval,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take over what :meth:`plain` has returned; frames whose file is missing have to be computed again.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        self.rows = {int(t): [ObjectRow(*row) for row in rows] for t, rows in plain["rows"] if self._mask(int(t)).is_file()}
        computed = int(plain["computed"]) if plain["network"] == self._network else 0
        self.computed = next((t for t in range(computed) if t not in self.rows), computed)
        self.made_from = {}
        for t, i, digest in plain["made_from"]:
            self.made_from.setdefault(int(t), {})[int(i)] = str(digest)
        self.states = [int(t) for t in plain["states"] if int(t) < self.computed and self._state(int(t)).is_file()]
        self._interval = max(1, int(plain["interval"]))
