"""What every VOS system owes, whatever its paper says. A new network file is tested here without an edit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.clips import frame_input, given_at, proposals_of, random_clip
from tests.networks import NETWORKS
from tests.tolerances import assert_close
from vos_lightning.mask_ops import Aggregation
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.memory import grow
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import AnnotatedOnly, EveryKth, MemoryPolicy
from vos_lightning.propagation.snapshots import Stored, read_snapshot, write_snapshot
from vos_lightning.propagation.step import Propagation, StepOutput, advance, introductions, unroll
from vos_lightning.structures import FrameInput, Given, Proposals, VideoSample

SIZE = (64, 80)
KEYS = Path(__file__).parent / "state_dict_keys"


@pytest.fixture(params=["annotated", "every_2nd_and_previous"])
def policy(request: pytest.FixtureRequest) -> MemoryPolicy:
    return {"annotated": AnnotatedOnly(), "every_2nd_and_previous": EveryKth(2, include_previous=True)}[request.param]


@pytest.fixture
def propagation(policy: MemoryPolicy) -> Propagation:
    return Propagation(policy, "minimum", "join")


def run(network: VOSNetwork, propagation: Propagation, frames: Tensor, given: dict[int, Given]) -> list[StepOutput]:
    with torch.no_grad():
        return unroll_all(network, propagation, frames, given)


def unroll_all(network: VOSNetwork, propagation: Propagation, frames: Tensor, given: dict[int, Given]) -> list[StepOutput]:
    frames = frames.to(network.device)
    return unroll(network, propagation, frames, given, proposals_of(network, frames.transpose(0, 1).flatten(0, 1)))


def probabilities(outputs: list[StepOutput]) -> Tensor:
    return torch.stack([output.probabilities for output in outputs], dim=1)


def test_streaming_equals_unroll(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 4, 2, SIZE)
    given = {0: given_at(labels, 0, [1, 2], 2)}
    unrolled = probabilities(run(network, propagation, frames, given))[0]
    engine = InferenceEngine(network, propagation)
    for t in range(frames.shape[1]):
        own = proposals_of(network, frames[:, t])
        prediction = engine.step(frames[0, t], labels[0, 0] if t == 0 else None, proposals=own)
        assert_close(prediction.probabilities, unrolled[t, 1:].cpu())
        # Rounding may decide between two that are equal to the last digit, as a pixel or two are in a random network.
        best, second = unrolled[t].topk(2, dim=0).values.cpu()
        decided = best - second > 1e-6
        assert decided.float().mean() > 0.99
        assert torch.equal(prediction.label_map[decided], unrolled[t].argmax(dim=0).to(torch.uint8).cpu()[decided])


def test_probabilities_are_a_distribution(network: VOSNetwork, policy: MemoryPolicy) -> None:
    frames, labels = random_clip(2, 3, 2, SIZE)
    for aggregation in get_args(Aggregation):
        for introduction in ("overwrite", "join"):
            outputs = run(
                network,
                Propagation(policy, aggregation, introduction),
                frames,
                {0: given_at(labels, 0, [1], 2), 1: given_at(labels, 1, [2], 2)},
            )
            for output in outputs:
                assert output.probabilities.isfinite().all()
                assert output.logits.isfinite().all()
                assert (output.probabilities >= 0).all()
                if aggregation != "none":
                    assert_close(output.probabilities.sum(dim=1), torch.ones_like(output.probabilities[:, 0]))
                    assert_close(output.logits.softmax(dim=1), output.probabilities)


def test_given_masks_are_shown_as_given(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 3, 2, SIZE)
    outputs = run(network, propagation, frames, {0: given_at(labels, 0, [1], 2), 2: given_at(labels, 2, [2], 2)})
    assert torch.equal(outputs[0].probabilities.argmax(dim=1) == 1, labels[:, 0] == 1)
    assert torch.equal(outputs[2].probabilities.argmax(dim=1) == 2, labels[:, 2] == 2)


def test_a_clip_does_not_depend_on_its_batch_mates(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(3, 3, 2, SIZE)
    together = probabilities(run(network, propagation, frames, {0: given_at(labels, 0, [1, 2], 2)}))
    alone = probabilities(run(network, propagation, frames[1:2], {0: given_at(labels[1:2], 0, [1, 2], 2)}))
    assert_close(together[1:2], alone)


def test_new_tensors_are_where_the_network_is(network: VOSNetwork, propagation: Propagation) -> None:
    """The default device is one on which nothing can be computed: what is made there shows."""
    frames, labels = (x.to(network.device) for x in random_clip(1, 3, 2, SIZE))
    given = {0: given_at(labels, 0, [1], 2), 1: given_at(labels, 1, [2], 2)}
    own = proposals_of(network, frames.transpose(0, 1).flatten(0, 1))
    with torch.no_grad():
        expected = unroll(network, propagation, frames, given, own)
        with torch.device("meta"):
            found = unroll(network, propagation, frames, given, own)
    assert torch.equal(probabilities(found), probabilities(expected))


def test_permuting_slots_permutes_outputs(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 3, 3, SIZE)
    given = given_at(labels, 0, [1, 2, 3], 3)
    order = [2, 0, 1]
    permuted = Given(given.masks[:, order], given.which[:, order])
    straight = probabilities(run(network, propagation, frames, {0: given}))
    mixed = probabilities(run(network, propagation, frames, {0: permuted}))
    assert_close(mixed[:, :, 1:], straight[:, :, 1:][:, :, order])


def test_an_invalid_slot_changes_nothing(network: VOSNetwork, policy: MemoryPolicy) -> None:
    frames, labels = random_clip(1, 3, 2, SIZE)
    for aggregation in get_args(Aggregation):
        propagation = Propagation(policy, aggregation, "join")
        two = probabilities(run(network, propagation, frames, {0: given_at(labels, 0, [1, 2], 2)}))
        three = probabilities(run(network, propagation, frames, {0: given_at(labels, 0, [1, 2], 3)}))
        assert_close(three[:, :, :3], two)
        assert three[:, :, 3].eq(0).all()


def test_the_future_does_not_change_the_past(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 4, 2, SIZE)
    given = {0: given_at(labels, 0, [1, 2], 2)}
    before = probabilities(run(network, propagation, frames, given))
    changed = frames.clone()
    changed[:, 3] = 1 - changed[:, 3]
    after = probabilities(run(network, propagation, changed, given))
    assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3], before[:, 3])


def test_a_late_object_leaves_earlier_frames_alone(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 4, 2, SIZE)
    without = probabilities(run(network, propagation, frames, {0: given_at(labels, 0, [1], 2)}))
    late = {0: given_at(labels, 0, [1], 2), 2: given_at(labels, 2, [2], 2)}
    with_late = probabilities(run(network, propagation, frames, late))
    assert_close(with_late[:, :2], without[:, :2])


def test_growing_equals_a_reserved_slot(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 5, 2, SIZE)
    frames = frames.to(network.device)
    reserved = run(network, propagation, frames, {0: given_at(labels, 0, [1], 2), 2: given_at(labels, 2, [2], 2)})
    one = given_at(labels, 0, [1], 1)
    with torch.no_grad():
        _, state = advance(network, propagation, None, frame_input(network, frames[:, 0]), one)
        _, state = advance(network, propagation, state, frame_input(network, frames[:, 1]))
        output, state = advance(
            network, propagation, grow(state, 2), frame_input(network, frames[:, 2]), given_at(labels, 2, [2], 2)
        )
        assert_close(output.probabilities, reserved[2].probabilities)
        for t in (3, 4):
            output, state = advance(network, propagation, state, frame_input(network, frames[:, t]))
            assert_close(output.probabilities, reserved[t].probabilities)


def _without_flags(value: Any, kept: Tensor) -> Any:
    """The same with all flags of objects cleared that are not kept."""
    if isinstance(value, Tensor):
        return value & kept if value.dtype == torch.bool and value.shape == kept.shape else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _without_flags(getattr(value, f.name), kept) for f in dataclasses.fields(value)}
        )
    return value


def test_a_removed_object_leaves_no_trace(network: VOSNetwork, propagation: Propagation) -> None:
    """The others go on as beside a slot that is no longer introduced, and the id may be given anew."""
    frames, labels = random_clip(1, 5, 2, SIZE)
    engine = InferenceEngine(network, propagation)
    frames = frames.to(network.device)
    with torch.no_grad():
        _, state = advance(network, propagation, None, frame_input(network, frames[:, 0]), given_at(labels, 0, [1, 2], 2))
        engine.step(frames[0, 0], labels[0, 0], proposals=proposals_of(network, frames[:, 0]))
        kept = torch.tensor([[False, True]], device=network.device)
        # Some networks fold into their carry which objects there are.
        memory = dataclasses.replace(state.memory, carry=_without_flags(state.memory.carry, kept))
        state = dataclasses.replace(state, introduced=state.introduced & kept, memory=memory)
        engine.remove_object(1)
        for t in (1, 2):
            output, state = advance(network, propagation, state, frame_input(network, frames[:, t]))
            prediction = engine.step(frames[0, t], proposals=proposals_of(network, frames[:, t]))
            assert prediction.object_ids == (2,)
            assert_close(prediction.probabilities, output.probabilities[0, 2:].cpu())
    # What is added again is new: its past outlines do not matter, and it takes a slot of its own behind the others.
    again = engine.step(frames[0, 3], {1: labels[0, 3] == 1}, proposals=proposals_of(network, frames[:, 3]))
    assert again.object_ids == (2, 1)
    assert torch.equal(again.label_map == 1, labels[0, 3] == 1)
    assert engine.step(frames[0, 4], proposals=proposals_of(network, frames[:, 4])).probabilities.isfinite().all()
    for object_id in (1, 2):
        engine.remove_object(object_id)
    assert engine.step(frames[0, 0]).object_ids == ()


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [tensor for f in dataclasses.fields(value) for tensor in _tensors(getattr(value, f.name))]
    return [tensor for entry in value for tensor in _tensors(entry)] if isinstance(value, (tuple, list)) else []


def test_advance_leaves_its_state_untouched(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 3, 2, SIZE)
    frames = frames.to(network.device)
    with torch.no_grad():
        _, state = advance(network, propagation, None, frame_input(network, frames[:, 0]), given_at(labels, 0, [1, 2], 2))
        _, state = advance(network, propagation, state, frame_input(network, frames[:, 1]))
        before = [tensor.clone() for tensor in _tensors(state)]
        first, _ = advance(network, propagation, state, frame_input(network, frames[:, 2]))
        second, _ = advance(network, propagation, state, frame_input(network, frames[:, 2]))
    assert before
    assert all(torch.equal(old, new) for old, new in zip(before, _tensors(state), strict=True))
    assert torch.equal(first.probabilities, second.probabilities)


def _step(engine: InferenceEngine, frames: Tensor, labels: Tensor, t: int) -> Tensor:
    own = proposals_of(engine.network, frames[:, t])
    return engine.step(frames[0, t], labels[0, 0] if t == 0 else None, proposals=own).probabilities


def test_interleaved_engines_do_not_disturb_each_other(network: VOSNetwork, propagation: Propagation) -> None:
    clips = [random_clip(1, 3, 1, SIZE, seed=seed) for seed in (1, 2)]
    separate = []
    for frames, labels in clips:
        engine = InferenceEngine(network, propagation)
        separate.append([_step(engine, frames, labels, t) for t in range(3)])
    engines = [InferenceEngine(network, propagation) for _ in clips]
    for t in range(3):
        for k, (frames, labels) in enumerate(clips):
            assert torch.equal(_step(engines[k], frames, labels, t), separate[k][t])


class _Proposals:
    def __init__(self, network: VOSNetwork, frames: Tensor) -> None:
        self.network, self.frames = network, frames

    def of_frame(self, index: int, frame: Tensor) -> Proposals:
        found = proposals_of(self.network, self.frames[:, index])
        assert found is not None
        return found


def test_a_run_goes_on_from_the_file_of_a_snapshot(network: VOSNetwork, propagation: Propagation, tmp_path: Path) -> None:
    """As if it had never been interrupted, with an object that came before and one that comes after."""
    frames, labels = random_clip(1, 5, 2, SIZE)
    first, second = labels[0, 0] * (labels[0, 0] == 1), labels[0, 3] * (labels[0, 3] == 2)
    video = VideoSample(
        "v",
        list((frames[0] * 255).to(torch.uint8)),
        {0: first, 3: second},
        {},
        (1, 2),
        SIZE,
        None,
        proposals=_Proposals(network, frames) if network.needs_proposals else None,
    )
    engine = InferenceEngine(network, propagation)
    whole = []
    for prediction in engine.run(video):
        whole.append(prediction)
        if prediction.frame_index == 1:
            write_snapshot(tmp_path / "s.pt", engine.snapshot(), {})
    snapshot, _ = read_snapshot(tmp_path / "s.pt")
    again = list(InferenceEngine(network, propagation).run(video, Stored(snapshot, lambda index, frame: whole[index])))
    assert [prediction.frame_index for prediction in again] == list(range(5))
    assert all(torch.equal(a.probabilities, b.probabilities) for a, b in zip(again, whole, strict=True))


@pytest.mark.parametrize("size", [(64, 64), (17, 70), (33, 16), (7, 5)])
def test_any_size_comes_back(network: VOSNetwork, propagation: Propagation, size: tuple[int, int]) -> None:
    frames, labels = random_clip(1, 2, 1, size)
    for output in run(network, propagation, frames, {0: given_at(labels, 0, [1], 1)}):
        assert output.probabilities.shape[-2:] == size
        assert output.probabilities.isfinite().all()


def test_finite_when_an_object_may_read_nothing(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(2, 3, 2, SIZE)
    nothing = given_at(labels, 0, [], 2)
    outputs = run(network, propagation, frames, {0: nothing, 1: given_at(labels, 1, [1], 2)})
    for output in outputs:
        assert output.probabilities.isfinite().all()
    assert outputs[0].probabilities[:, 0].eq(1).all()


def test_every_trainable_parameter_gets_a_gradient(network: VOSNetwork, propagation: Propagation) -> None:
    network.train()
    frames, labels = random_clip(2, 4, 2, SIZE)
    labels = labels.to(network.device)
    given = introductions(labels, torch.ones(2, 2, dtype=torch.bool, device=network.device), late_objects=True)
    outputs = unroll_all(network, propagation, frames, given)
    sum(output.logits[:, 1].sum() + sum(v.sum() for v in output.aux.values()) for output in outputs[1:]).backward()
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    missing = [name for name, parameter in trainable.items() if parameter.grad is None]
    assert trainable
    assert not missing


def test_state_dict_keys_are_pinned(network: VOSNetwork) -> None:
    """Renaming a parameter breaks every published checkpoint: do it on purpose, with the file beside this test."""
    slug = type(network).__module__.rsplit(".", 1)[-1]
    path = KEYS / f"{slug}.json"
    actual = {name: list(value.shape) for name, value in network.state_dict().items()}
    if not path.is_file():
        KEYS.mkdir(exist_ok=True)
        path.write_text(json.dumps(actual, indent=0) + "\n")
        pytest.fail(f"wrote {path}: commit it")
    assert actual == json.loads(path.read_text())


def test_a_network_that_needs_proposals_refuses_frames_without(network: VOSNetwork, propagation: Propagation) -> None:
    """Without them it would be another method. That the detector found nothing in a frame is another thing."""
    frames, labels = random_clip(1, 3, 1, SIZE)
    frames = frames.to(network.device)
    given = {0: given_at(labels, 0, [1], 1)}
    engine = InferenceEngine(network, propagation)
    if not network.needs_proposals:
        assert network.check_proposals(None, "a frame") is None
        return
    with torch.no_grad(), pytest.raises(ValueError, match=f"the clip has no proposals, and {type(network).__name__} needs"):
        unroll(network, propagation, frames, given)
    with torch.no_grad(), pytest.raises(ValueError, match="the frame has no proposals"):
        advance(network, propagation, None, FrameInput(frames[:, 0]), given[0])
    assert engine.step(frames[0, 0]).object_ids == ()  # before the first annotation the network is not asked
    for t, masks in ((1, labels[0, 1]), (2, None)):
        with pytest.raises(ValueError, match=f"frame {t} has no proposals"):
            engine.step(frames[0, t], masks)
        nothing = Proposals(torch.zeros(1, 0, 4), torch.zeros(1, 0, 28, 28), torch.zeros(1, 0))
        assert engine.step(frames[0, t], masks, proposals=nothing).frame_index == t


def test_objects_a_part_at_a_time_change_nothing(
    network: VOSNetwork, propagation: Propagation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the objects of a frame share is computed once, and each object by itself."""
    frames, labels = random_clip(1, 4, 5, SIZE)
    given = {0: given_at(labels, 0, [1, 2, 4], 5), 2: given_at(labels, 2, [2, 3, 5], 5)}
    calls = {"parts": 0}
    narrow = Tensor.narrow

    def counting(self: Tensor, *arguments: Any) -> Tensor:
        calls["parts"] += 1
        return narrow(self, *arguments)

    together = run(network, propagation, frames, given)
    with monkeypatch.context() as patch:
        patch.setattr("vos_lightning.mask_ops.PART_BYTES", 1)
        patch.setattr(Tensor, "narrow", counting)
        apart = run(network, propagation, frames, given)
    assert calls["parts"] > 0
    for one, other in zip(apart, together, strict=True):
        assert_close(one.probabilities, other.probabilities)
        assert_close(one.logits, other.logits)
        assert one.aux.keys() == other.aux.keys()
        for name, value in one.aux.items():
            if name not in ("points", "points_valid", "point_logits"):  # as wide as the most points of an object
                assert_close(value, other.aux[name])


def test_bfloat16_runs(network: VOSNetwork, propagation: Propagation) -> None:
    frames, labels = random_clip(1, 3, 1, SIZE)
    with torch.autocast(network.device.type, dtype=torch.bfloat16):
        outputs = run(network, propagation, frames, {0: given_at(labels, 0, [1], 1)})
    assert all(output.probabilities.isfinite().all() for output in outputs)


def test_networks_are_found() -> None:
    assert "emvos" in NETWORKS
