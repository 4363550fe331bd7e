"""A network that repeats what it was given, a module around it and videos to run it on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from vos_lightning.io.pretrained import read_pretrained
from vos_lightning.mask_ops import PaddingRule
from vos_lightning.modules.base import VOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.propagation.memory import Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import AnnotatedOnly, EveryKth
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import FrameInput, VideoSample, per_object


@dataclass(frozen=True)
class Remembered:
    masks: Tensor = per_object()  # noqa: RUF009


class DummyNetwork(VOSNetwork[FrameInput, Remembered, None]):
    """Predicts the masks of the previous frame."""

    stride = 8
    padding = PaddingRule()

    def __init__(self, weights: str | None = None, scale: float = 8.0) -> None:
        super().__init__()
        if weights is not None:
            read_pretrained(ResNet18_Weights[weights])
        self.scale = nn.Parameter(torch.tensor(scale))

    @classmethod
    def small(cls) -> DummyNetwork:
        return cls()

    def encode(self, frame: FrameInput) -> FrameInput:
        return frame

    def segment(self, features: FrameInput, memory: Memory[Remembered, None]) -> tuple[Tensor, dict[str, Tensor]]:
        assert memory.previous is not None
        return (memory.previous.latest.entry.masks - 0.5) * self.scale, {}

    def memorize(self, features: Any, masks: Tensor, memory: Any, introduced: Any, keep: bool) -> tuple[Remembered, None]:
        return Remembered(masks), None


OPTIMISATION = Optimisation(learning_rate=1e-3)
EVALUATION = Evaluation()


class DummyModule(VOSModule):
    def __init__(
        self,
        network: DummyNetwork | None = None,
        optimisation: Optimisation = OPTIMISATION,
        evaluation: Evaluation = EVALUATION,
    ) -> None:
        super().__init__(
            network or DummyNetwork(),
            train_propagation=Propagation(AnnotatedOnly(), "minimum"),
            eval_propagation=Propagation(EveryKth(5), "minimum"),
            optimisation=optimisation,
            evaluation=evaluation,
            late_objects=False,
            channels_last=False,
        )
        self.save_hyperparameters()


class Camera:
    """Stands in for OpenCV's capture: ten frames a second, and with the last frame the signal on which a command stops.

    Args:
        picture: index to picture, blue, green and red.
        length: number of the frame that comes with the signal.
    """

    def __init__(self, picture: Callable[[int], np.ndarray], length: int) -> None:
        self._picture, self._length, self._sent = picture, length, 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, key: int) -> float:
        return 10.0

    def read(self) -> tuple[bool, np.ndarray]:
        self._sent += 1
        if self._sent == self._length:
            os.kill(os.getpid(), signal.SIGTERM)
        return True, self._picture(self._sent - 1)

    def release(self) -> None:
        pass


class FailingFrames(Sequence[Tensor]):
    """Frames of which one cannot be read."""

    def __init__(self, frames: list[Tensor], fail_at: int | None) -> None:
        self.frames, self.fail_at = frames, fail_at
        self.armed = False  # type checkers look at any frame when a video is made

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if self.armed and index == self.fail_at:
            raise OSError(f"frame {index} cannot be read")
        return self.frames[index]


def make_frames(length: int, height: int = 30, width: int = 45) -> list[Tensor]:
    """Frames that differ from each other."""
    ramp = torch.arange(width, dtype=torch.uint8).expand(3, height, width)
    return [(ramp + 5 * index).contiguous() for index in range(length)]


def make_label_map(ids: tuple[int, int] = (1, 2), height: int = 30, width: int = 45) -> Tensor:
    """Two rectangles."""
    label_map = torch.zeros(height, width, dtype=torch.uint8)
    label_map[4:14, 5:20] = ids[0]
    label_map[12:28, 25:40] = ids[1]
    return label_map


def make_video(
    name: str, length: int = 4, ids: tuple[int, int] = (1, 2), required: tuple[int, ...] | None = None, fail_at: int | None = None
) -> VideoSample:
    """A video whose objects do not move."""
    frames = FailingFrames(make_frames(length), fail_at)
    label_map = make_label_map(ids)
    video = VideoSample(
        name=name,
        frames=frames,
        annotations={0: label_map},
        targets=dict.fromkeys(range(length), label_map),
        object_ids=ids,
        required_frames=required,
        original_size=(30, 45),
        frame_names=tuple(f"f{i:05d}" for i in range(length)),
    )
    frames.armed = True
    return video
