"""A small PMNet, and clips through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.clips import given_at, random_clip
from vos_lightning.decoders.point_refinement import PointRefinement
from vos_lightning.networks.pmnet import PMNet
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation, StepOutput, unroll
from vos_lightning.structures import Given

SIZE = (64, 80)
"""Of frames: 4 x 5 cells at stride 16, and 16 x 20 at stride 4."""
SMALL: dict[str, Any] = {
    "norm": "instance", "key_channels": 8, "value_channels": 8, "decoder_channels": (8, 8, 8),
    "blocks": (1, 1, 1), "value_blocks": (1, 1, 1), "width": 8, "reduction": 2,
}  # fmt: skip
POINTS: dict[str, Any] = {"window": 5, "aggregation": (16, 8), "prediction": (8,)}
MEMORY = Propagation(EveryKth(2), "product")


def small(**arguments: Any) -> PMNet:
    """A random network in evaluation mode; options of the refinement are arguments like the others."""
    torch.manual_seed(0)
    points = {name: arguments.pop(name) for name in list(arguments) if name in PointRefinement.__dataclass_fields__}
    return PMNet.published(None, refinement=PointRefinement(**{**POINTS, **points}), **{**SMALL, **arguments}).eval()


def run(
    network: VOSNetwork[Any, Any, Any], length: int = 5, num_objects: int = 2, propagation: Propagation = MEMORY
) -> tuple[Tensor, Tensor, list[StepOutput]]:
    """Frames, label maps and outputs of a clip whose first frame is given."""
    frames, labels = random_clip(1, length, num_objects, SIZE)
    given: dict[int, Given] = {0: given_at(labels, 0, list(range(1, num_objects + 1)), num_objects)}
    with torch.no_grad():
        return frames, labels, unroll(network, propagation, frames, given)
