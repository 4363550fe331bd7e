"""What :meth:`StreamingEngine.run` hands to the network, and what it makes of the network's masks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.dummies import DummyNetwork, make_video
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.frame_step import resize_masks
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import FrameInput, Proposals

REPEATING = Propagation(AnnotatedOnly(), "minimum")


class Reader(DummyNetwork):
    """Needs proposals, and remembers those of every frame."""

    needs_proposals = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Proposals | None] = []

    def encode(self, frame: FrameInput) -> FrameInput:
        self.seen.append(frame.proposals)
        return frame


class OneBox:
    """A proposal a frame, whose score tells the frame."""

    def of_frame(self, index: int, frame: Tensor) -> Proposals:
        box = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
        return Proposals(box, torch.ones(1, 1, 28, 28), torch.tensor([[0.1 * (index + 1)]]))


def test_a_video_without_proposals_is_refused_before_its_first_frame() -> None:
    network = Reader()
    with pytest.raises(ValueError, match="video 'v' has no proposals, and Reader needs the proposals of every frame"):
        next(InferenceEngine(network, REPEATING).run(make_video("v", length=3)))
    assert not network.seen


def test_every_frame_comes_with_its_proposals() -> None:
    network = Reader()
    video = dataclasses.replace(make_video("v", length=3), proposals=OneBox())
    assert len(list(InferenceEngine(network, REPEATING).run(video))) == 3
    scores = [round(float(found.scores.max()), 3) for found in network.seen if found is not None]
    assert scores == [0.1, 0.2, 0.3]


def test_masks_are_enlarged_as_their_logits_would_be() -> None:
    """Bilinearly from the size inside the network, where a pixel is an area."""
    frames = torch.randint(0, 255, (2, 3, 40, 60), dtype=torch.uint8)
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[7:22, 11:38] = 1
    small = InferenceEngine(DummyNetwork(), REPEATING)
    inside = resize_masks((mask == 1).float()[None, None], (20, 30))[0, 0]
    small.step(frames[0, :, ::2, ::2].contiguous(), inside.to(torch.uint8))
    expected = small.step(frames[1, :, ::2, ::2].contiguous()).probabilities
    engine = InferenceEngine(DummyNetwork(), REPEATING, short_side=20)
    engine.step(frames[0], mask)
    found = engine.step(frames[1]).probabilities
    enlarged = F.interpolate(expected[None], size=(40, 60), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(found, enlarged, atol=1e-6)


def test_small_objects_are_counted_at_the_size_inside_the_network() -> None:
    mask = torch.zeros(30, 45, dtype=torch.uint8)
    mask[:9] = 1  # 6 of 20 rows of 30 pixels
    video = dataclasses.replace(
        make_video("v"), annotations={0: mask}, targets={}, object_ids=(1,), original_size=(30, 45), frame_names=None
    )
    for pixels, keeps in ((180, False), (181, True)):
        engine = InferenceEngine(DummyNetwork(), REPEATING, short_side=20, min_object_pixels=pixels)
        assert engine.keeps_size(video) is keeps
