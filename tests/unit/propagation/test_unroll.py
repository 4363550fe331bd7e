"""Clips of a training: as frame after frame, and what comes with their frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.clips import given_at, random_clip
from tests.tolerances import assert_close
from tests.unit.dummies import DummyNetwork
from vos_lightning import mask_ops
from vos_lightning.mask_ops import PaddingRule, pad, padding_for
from vos_lightning.networks.munet import MUNet
from vos_lightning.propagation import step
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation, advance, encode, unroll
from vos_lightning.structures import FrameInput, Given, Proposals


def proposals_of(rows: int) -> Proposals:
    return Proposals(torch.rand(rows, 3, 4) * 10, torch.rand(rows, 3, 28, 28), torch.rand(rows, 3))


@pytest.mark.parametrize("length", [1, 2])
def test_a_short_clip_is_frame_after_frame(length: int) -> None:
    """Also of a network whose frames do not depend on each other: there is no rest to compute at once in a clip of one frame."""
    network, propagation = MUNet.small().eval(), Propagation(AnnotatedOnly(), "minimum")
    frames, labels = random_clip(2, length, 2, (32, 48))
    given = {0: given_at(labels, 0, [1, 2], 2)}
    with torch.no_grad():
        found, state = unroll(network, propagation, frames, given), None
    assert len(found) == length
    for t, output in enumerate(found):
        with torch.no_grad():
            alone, state = advance(network, propagation, state, FrameInput(frames[:, t]), given.get(t))
        assert_close(output.probabilities, alone.probabilities)


class Proposing(DummyNetwork):
    """A network that keeps the proposals it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.needs_proposals = True
        self.seen: list[Proposals] = []

    def encode(self, frame: FrameInput) -> FrameInput:
        assert frame.proposals is not None
        self.seen.append(frame.proposals)
        return frame


def test_the_proposals_of_a_clip_reach_the_network() -> None:
    network, proposals = Proposing(), proposals_of(4)
    frames, labels = random_clip(2, 2, 1, (16, 24))
    given = {0: given_at(labels, 0, [1], 1)}
    assert len(unroll(network, Propagation(AnnotatedOnly(), "minimum"), frames, given, proposals)) == 2
    assert torch.equal(network.seen[0].boxes, proposals.boxes)
    with pytest.raises(ValueError, match="the clip has no proposals, and Proposing needs"):
        unroll(network, Propagation(AnnotatedOnly(), "minimum"), frames, given)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("mode", ["reflect", "zero", "mean"])
def test_boxes_move_with_what_is_padded(mode: Any, first: bool) -> None:
    network, proposals = Proposing(), proposals_of(1)
    network.padding = PaddingRule(mode, larger_half_first=first)
    image = torch.rand(1, 3, 13, 21)
    found = encode(network, FrameInput(image, proposals))
    padding = padding_for(13, 21, 8, first)
    assert found.padding == padding
    assert torch.equal(found.features.image, pad(image, padding, mode))
    moved = torch.tensor([padding.left, padding.top, padding.left, padding.top])
    assert torch.equal(found.features.proposals.boxes, proposals.boxes + moved)
    assert torch.equal(found.features.proposals.masks, proposals.masks)
    assert torch.equal(found.features.proposals.scores, proposals.scores)


@pytest.mark.parametrize("height", [1, 5])
@pytest.mark.parametrize("introduction", ["join", "overwrite"])
def test_given_masks_take_six_floats_a_pixel(introduction: Any, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows are a part follows from it; also of a frame of a single row. Channels of objects, and of the background."""
    asked: list[float] = []

    def recording(function: Any, bytes_of_one: float, *tensors: torch.Tensor) -> Any:
        asked.append(bytes_of_one)
        return mask_ops.by_rows(function, bytes_of_one, *tensors)

    monkeypatch.setattr(step, "by_rows", recording)
    batch, objects, width = 2, 3, 7
    masks = (torch.rand(batch, objects, height, width) > 0.5).float()
    given = Given(masks, torch.ones(batch, objects, dtype=torch.bool))
    logits, probabilities = mask_ops.soft_aggregate(torch.randn_like(masks), given.which, "minimum")
    with torch.no_grad():
        step.introduce(
            torch.randn_like(masks), given.which, masks, given.which, Propagation(AnnotatedOnly(), "minimum", introduction)
        )
        step.show_given(probabilities, given)
        step._show_given(step.StepOutput(logits, probabilities, given.which), given)
    row = 6 * 4 * batch * width
    assert asked == [row * objects, row * (objects + 1), row * (objects + 1), row * (objects + 1)]


@pytest.mark.parametrize("introduction", ["join", "overwrite"])
@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_the_truth_may_be_remembered_instead(mode: Any, introduction: Any) -> None:
    """Padded as the network wants it, without objects that are not there yet; a mask that joins is its own reference."""
    network = DummyNetwork()
    network.padding = PaddingRule(mode)
    frames, labels = random_clip(2, 3, 2, (13, 21))
    truth = torch.rand(2, 3, 2, 13, 21)
    given = {0: given_at(labels, 0, [1], 2), 2: given_at(labels, 2, [2], 2)}
    kept: list[torch.Tensor] = []
    memorize = DummyNetwork.memorize

    def spy(features: Any, masks: torch.Tensor, *rest: Any) -> Any:
        kept.append(masks)
        return memorize(network, features, masks, *rest)

    network.memorize = spy  # type: ignore[method-assign]
    unroll(network, Propagation(AnnotatedOnly(), "minimum", introduction), frames, given, remembered=truth)
    padding = padding_for(13, 21, 8, True)
    known = torch.tensor([[1.0, 0], [1, 0], [1, 1]])[:, None, :, None, None]
    expected = [pad(truth[:, t] * known[t], padding, mode) for t in range(3)]
    if introduction == "join":  # the references of the first and of the last frame, and what the next frame sees of the last
        expected[0][:, 0] = pad(given[0].masks, padding, mode)[:, 0]
        reference = expected[2].clone()
        reference[:, 1] = pad(given[2].masks, padding, mode)[:, 1]
        expected.insert(2, reference)
    assert len(kept) == len(expected)
    for found, wanted in zip(kept, expected, strict=True):
        assert_close(found, wanted)
