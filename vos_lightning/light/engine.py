"""Streaming inference with ONNX Runtime: the steps of the engine of PyTorch, for the graphs of ``vos export --format onnx``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from jaxtyping import Bool, Float32, UInt8

from vos_lightning.arrays import to_array, to_tensor
from vos_lightning.labels import object_ids_in
from vos_lightning.light.parts import PARTS, read_rules
from vos_lightning.light.resizing import pad_sides, resize_masks, resize_picture, resize_probabilities
from vos_lightning.propagation.memory import Bank, MemoryFrame
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.streaming import OUT_OF_MEMORY, StreamingEngine
from vos_lightning.structures import FramePrediction

MAX_AFFINITIES = 2**24
"""Most affinities at a time (64 MiB); larger readouts are split over the cells of the frame."""


@dataclass(frozen=True)
class Remembered:
    """A remembered frame."""

    key: Float32[np.ndarray, "CK cells"]
    values: Mapping[int, Float32[np.ndarray, "CV cells"]]
    """Values of the objects that may read the frame, by id: those that were known in it and have not been removed."""


Known = Bank[Remembered]


class LightEngine(StreamingEngine):
    """Segments a video frame by frame as :class:`vos_lightning.propagation.engine.InferenceEngine` does, without PyTorch.

    It computes what that engine computes with STCN, on the CPU. Frames are arrays, or tensors where PyTorch is installed.
    Masks cannot be added or corrected in a frame that has been processed.

    Args:
        folder: what ``vos export --format onnx`` has written.
        short_side: short side in pixels at which frames are processed; None for that of the video, ``export`` for that of the
            network.
        max_memory_frames: most remembered frames without annotation, where the network's memory would otherwise grow with every
            video; None keeps as many as the network does.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is missing or damaged; the message names it.
    """

    def __init__(
        self, folder: Path, *, short_side: int | Literal["export"] | None = "export", max_memory_frames: int | None = None
    ) -> None:
        self.rules = rules = read_rules(folder)
        side = rules["short_side"] if short_side == "export" else short_side
        super().__init__(side, rules["enlarge"], rules["min_object_pixels"])
        policy = EveryKth(**rules["memory"])
        self.policy = policy if max_memory_frames is None else policy.bounded(max_memory_frames)
        self._graphs = {name: _load(folder / f"{name}.onnx") for name in PARTS}

    def reset(self) -> None:
        """Forget everything; the next frame starts a new video."""
        super().reset()
        self._bank: Known = Bank(())
        self._t = -1

    def step(self, frame: Any, masks: Any = None, *, proposals: Any = None) -> FramePrediction:
        """Process the next frame. If this raises, the engine is unchanged, and another frame may follow.

        Args:
            frame: RGB ``(3, H, W)``, uint8, an array or a tensor.
            masks: label map ``(H, W)`` in original ids 1..254 of what is annotated in this frame, where 0 is not annotated. New
                ids start to be tracked; known ones are corrected.
            proposals: None; the network reads none.

        Returns:
            Label map and probabilities at the size of the frame; see the engine of PyTorch.

        Raises:
            ValueError: a frame has another size than the ones before; there are too many objects; proposals are given; or a
                frame does not fit into memory.
        """
        if proposals is not None:
            raise ValueError(f"{self.rules['system']} reads no proposals")
        size, index = self._check_size(frame), self._frame_index + 1
        annotation = None if masks is None else to_array(masks)
        if annotation is not None and not annotation.any():
            annotation = None
        ids = self._ids if annotation is None else self._with_new(self._ids, annotation)
        if ids:
            try:
                found, bank, processed = self._segment(to_array(frame), annotation, ids)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
                    raise
                raise ValueError(self._too_large(index, size, len(ids))) from error
            self._bank, self._t = bank, self._t + 1
        else:
            found, processed = np.ones((1, *size), dtype=np.float32), size
        self._ids, self._size, self._frame_index = ids, size, index
        label_map = np.array((0, *ids), dtype=np.uint8)[found.argmax(axis=0)]
        given = () if annotation is None else object_ids_in(annotation)
        return FramePrediction(
            index, to_tensor(to_array(frame)), to_tensor(label_map), to_tensor(found[1:]), ids, given, processed
        )

    def remove_object(self, object_id: int) -> None:
        """Stop tracking an object, and forget everything that was remembered of it; its id may be used again.

        Raises:
            ValueError: no object with this id is tracked.
        """
        self._check_tracked(object_id)
        self._ids = tuple(i for i in self._ids if i != object_id)
        frames = []
        for kept in self._bank.frames:
            values = {i: value for i, value in kept.entry.values.items() if i != object_id}
            if values:
                frames.append(replace(kept, entry=Remembered(kept.entry.key, values)))
        self._bank, self._t = Bank(tuple(frames)), self._t if self._ids else -1

    # Details ----------------------------------------------------------------------------------------------------------

    def _segment(
        self, frame: UInt8[np.ndarray, "3 H W"], annotation: UInt8[np.ndarray, "H W"] | None, ids: tuple[int, ...]
    ) -> tuple[Float32[np.ndarray, "N1 H W"], Known, tuple[int, int]]:
        """Probabilities with the background in front, the memory after the frame, and the size inside the network."""
        size = (int(frame.shape[1]), int(frame.shape[2]))
        inner = self.inner_size(size)
        rows, columns = sides = pad_sides(*inner, self.rules["stride"])
        image = self._picture(frame, inner, sides)
        s4, s8, s16, key, query_value = self._run("encoder", image=image)
        logits = np.zeros((1, len(ids), *image.shape[2:]), dtype=np.float32)
        if self._ids:  # they come first in ids
            readout = self._read(key).reshape(1, len(self._ids), -1, *key.shape[2:])
            (predicted,) = self._run("decoder", s4=s4, s8=s8, readout=readout, query_value=query_value)
            logits[:, : len(self._ids)] = predicted
        introduced = np.array([[i in self._ids for i in ids]])
        given = which = None
        if annotation is None:
            (merged,) = self._run("aggregation", logits=logits, introduced=introduced)
        else:
            given = np.stack([annotation == i for i in ids])
            which = np.array([[bool(mask.any()) for mask in given]])
            shown = given if inner == size else resize_masks(given, inner)
            masks = np.pad(shown, ((0, 0), rows, columns)).astype(np.float32)[None]
            (merged,) = self._run("introduction", logits=logits, introduced=introduced, masks=masks, which=which)
        bank, t = self._bank, self._t + 1
        if annotation is not None or self.policy.wants(bank, t):
            (value,) = self._run("mask_encoder", image=image, masks=merged[:, 1:], s16=s16)
            values = dict(zip(ids, value[0].reshape(len(ids), value.shape[2], -1), strict=True))
            entry = Remembered(key[0].reshape(key.shape[1], -1), values)
            new = MemoryFrame(entry, t, readable=to_tensor(introduced | True), permanent=False)
            bank = self.policy.update(bank, new, None if which is None else to_tensor(which))
        found = merged[..., rows[0] : rows[0] + inner[0], columns[0] : columns[0] + inner[1]]
        if which is not None:
            found = self._show(found, shown, which)
        if inner != size:
            found = resize_probabilities(found[0], size)[None]
            if which is not None:
                found = self._show(found, given, which)
        return np.ascontiguousarray(found[0]), bank, inner

    def _picture(
        self, frame: UInt8[np.ndarray, "3 H W"], inner: tuple[int, int], sides: tuple[tuple[int, int], tuple[int, int]]
    ) -> Float32[np.ndarray, "1 3 h w"]:
        """The frame in [0, 1] at the inner size, padded with the mean colour."""
        picture = frame.astype(np.float32) / 255
        if inner != picture.shape[1:]:
            picture = resize_picture(picture, inner)
        colour = np.array(self.rules["colour"], dtype=np.float32)[:, None, None]
        return (np.pad(picture - colour, ((0, 0), *sides)) + colour)[None] if np.any(sides) else picture[None]

    def _read(self, key: Float32[np.ndarray, "1 CK h w"]) -> Float32[np.ndarray, "1 N CV cells"]:
        """What the tracked objects read from the memory; those that read the same frames share their affinities."""
        query = key.reshape(1, key.shape[1], -1)
        readers: dict[tuple[int, ...], list[int]] = {}
        for object_id in self._ids:
            frames = tuple(n for n, kept in enumerate(self._bank.frames) if object_id in kept.entry.values)
            readers.setdefault(frames, []).append(object_id)
        found: dict[int, np.ndarray] = {}
        for frames, ids in readers.items():
            entries = [self._bank.frames[n].entry for n in frames]
            keys = np.concatenate([entry.key for entry in entries], axis=1)[None]
            values = np.concatenate([np.stack([entry.values[i] for i in ids]) for entry in entries], axis=2)[None]
            at_once = max(1, MAX_AFFINITIES // keys.shape[2])
            parts = [
                self._run("memory_read", query_key=query[..., q : q + at_once], memory_key=keys, memory_value=values)[0]
                for q in range(0, query.shape[2], at_once)
            ]
            found |= dict(zip(ids, np.concatenate(parts, axis=3)[0], strict=True))
        return np.stack([found[i] for i in self._ids])[None]

    def _show(
        self, probabilities: Float32[np.ndarray, "1 N1 H W"], masks: Bool[np.ndarray, "N H W"] | None, which: np.ndarray
    ) -> Float32[np.ndarray, "1 N1 H W"]:
        assert masks is not None
        return self._run("annotation", probabilities=probabilities, masks=masks[None].astype(np.float32), which=which)[0]

    def _run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = self._graphs[name].run(None, {key: np.ascontiguousarray(x) for key, x in inputs.items()})
        return found


def _load(path: Path) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a kind of its own for every fault of a file
        raise ValueError(
            f"{path}: ONNX Runtime cannot read this graph or its weights ({' '.join(str(error).split())[:200]}); make the folder "
            "again with: vos export CHECKPOINT --format onnx --output DIR"
        ) from error
