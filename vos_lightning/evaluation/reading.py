"""Truth and predictions of a video, read frame by frame in the form that the protocol needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vos_lightning.evaluation.tasks import Task
from vos_lightning.io.plain_png import read_plain_png
from vos_lightning.labels import IGNORE_LABEL
from vos_lightning.metrics import davis
from vos_lightning.metrics.functional import ids_in
from vos_lightning.metrics.protocols import GROUPED
from vos_lightning.metrics.scores import NothingToScoreError


@dataclass(frozen=True)
class _Frames:
    """Label maps that are read one by one when they are accessed."""

    paths: Sequence[Path | None]
    read: Callable[[Path | None], UInt8[np.ndarray, "H W"]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W"]:
        return self.read(self.paths[index])

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W"]]:
        return map(self.read, self.paths)


class VideoReader:
    """Reads truth and predictions of a video, frame by frame, in the form that the protocol needs."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.target, self.preds = _Frames(task.truth, self._true), _Frames(task.predictions, self._predicted)
        self.size: tuple[int, ...] | None = None
        self.highest_id: int | None = None
        """Highest id of the truth, if the protocol forbids higher ones."""
        self.true_ids: set[int] = set()
        self.predicted_ids: set[int] = set()

    def find_highest_id(self) -> None:
        """Look at the first true frame, if the protocol takes the objects from it.

        Raises:
            NothingToScoreError: it shows no object.
        """
        if self.task.protocol == "davis17":
            self.highest_id = len(davis.scored_ids(self.target, "davis17"))
            if not self.highest_id:
                raise NothingToScoreError(
                    f"{self.task.truth[0]}: holds no object id; davis17 scores the objects of the first true frame"
                )

    @cached_property
    def _has_void(self) -> bool:
        """Whether 255 means void in the truth: it does if ids occur too. All frames decide, as one may show void only."""
        return any(set(ids_in(_read(path))) - {IGNORE_LABEL} for path in self.task.truth)

    def _true(self, path: Path | None) -> UInt8[np.ndarray, "H W"]:
        assert path is not None
        label_map = self._of_size(path, _read(path))
        if self.task.protocol == "davis16":
            return label_map
        if label_map.max() == IGNORE_LABEL and not self._has_void:
            label_map = _white_is_one(path, label_map)
        if self.task.protocol in GROUPED:
            self.true_ids.update(ids_in(label_map))
        return label_map

    def _predicted(self, path: Path | None) -> UInt8[np.ndarray, "H W"]:
        if path is None:
            assert self.size is not None
            return np.zeros(self.size, dtype=np.uint8)
        label_map = self._of_size(path, _read(path))
        if self.task.protocol == "davis16":
            return label_map
        highest = int(label_map.max())
        if highest == IGNORE_LABEL:
            label_map = _white_is_one(path, label_map)
            highest = 1
        if self.highest_id is not None and highest > self.highest_id:
            raise ValueError(
                f"{path}: holds id {highest}, but the first true frame has ids up to {self.highest_id}; write the ids of the "
                "truth, not other values or colours, and check the folders are not swapped"
            )
        if self.task.protocol in GROUPED:
            self.predicted_ids.update(ids_in(label_map))
        return label_map

    def _of_size(self, path: Path, label_map: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        self.size = label_map.shape if self.size is None else self.size
        if label_map.shape != self.size:
            wrong, right = (f"{shape[1]} x {shape[0]}" for shape in (label_map.shape, self.size))
            raise ValueError(f"{path}: {wrong} pixels where the truth has {right}; write predictions at the size of the truth")
        return label_map

    def problems(self) -> list[str]:
        """Problems of the files: for truth and predictions each, the first bad file and the number of further ones."""
        found = []
        for frames, indices in ((self.target, range(len(self.target))), (self.preds, self.task.scored)):
            bad = []
            for index in indices:
                try:
                    frames[index]
                except (ValueError, FileNotFoundError) as error:
                    bad.append(str(error))
            if bad:
                found.append(bad[0] + (f" (and {len(bad) - 1} more files of this video)" if len(bad) > 1 else ""))
        return found


def _read(path: Path) -> UInt8[np.ndarray, "H W"]:
    label_map = read_plain_png(path)
    if label_map is None:
        # Imported for unusual files only: PyTorch takes longer to import than a small data set takes to score.
        from vos_lightning.io.label_maps import read_label_map

        label_map = read_label_map(path).numpy()
    return label_map


def _white_is_one(path: Path, label_map: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    import torch

    from vos_lightning.mask_ops import as_object_map

    try:
        return as_object_map(torch.from_numpy(label_map)).numpy()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
