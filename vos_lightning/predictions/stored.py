"""Predictions that were written before, for all that follows on a prediction: the writer, the index, a run that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import UInt8

from vos_lightning.arrays import Tensor, to_tensor
from vos_lightning.predictions.drift import ObjectRow
from vos_lightning.structures import FramePrediction


class StoredPredictions:
    """Predictions from label maps and lines of the index.

    Args:
        label_map: reads the label map of a frame, by its index.
        rows: the lines of the index of all these frames.
    """

    def __init__(self, label_map: Callable[[int], UInt8[Tensor, "H W"]], rows: Iterable[ObjectRow]) -> None:
        self._label_map = label_map
        self._rows: dict[int, list[ObjectRow]] = {}
        for row in rows:
            self._rows.setdefault(row.frame, []).append(row)

    def __call__(self, index: int, frame: Tensor) -> FramePrediction:
        """The prediction of a frame.

        Probabilities are the confidence of their object everywhere: only the mean over an object's pixels is used again.

        Args:
            index: index of the frame.
            frame: its picture.
        """
        rows = self._rows.get(index, [])
        known = [row for row in rows if not row.is_let_go]
        label_map = self._label_map(index)
        planes = np.full((len(known), *label_map.shape), np.array([row.confidence for row in known])[:, None, None], np.float32)
        given = tuple(row.object_id for row in known if "given" in row.flags.split())
        ids = tuple(row.object_id for row in known)
        let_go = tuple(row.object_id for row in rows if row.is_let_go)
        return FramePrediction(index, frame, label_map, to_tensor(planes), ids, given, scene_cut=bool(let_go), let_go=let_go)
