"""STCN and STM: parameters, the whole propagation against a literal one, training."""

import pytest
import torch
from torch import nn

from tests.oracles import stcn as oracle
from tests.tolerances import assert_close
from tests.unit.decoders.test_refine import count, normalized, randomize
from vos_lightning.mask_ops import IMAGENET_MEAN
from vos_lightning.modules.stcn import STCNModule
from vos_lightning.modules.stm import STMModule
from vos_lightning.networks.stcn import STCN
from vos_lightning.networks.stm import STM
from vos_lightning.propagation.policies import All, EveryKth
from vos_lightning.propagation.step import Propagation, unroll
from vos_lightning.structures import ClipBatch, FrameInput, Given

SIZE = (40, 56)
"""Padded to (48, 64)."""


def boxes(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    masks = torch.zeros(1, len(corners), *SIZE)
    for n, (top, left, bottom, right) in enumerate(corners):
        masks[0, n, top:bottom, left:right] = 1
    return masks


MASKS = boxes((5, 3, 30, 28), (20, 30, 40, 50), (0, 40, 20, 56))


def network_of(kind: type[STCN] | type[STM]) -> STCN | STM:
    torch.manual_seed(0)
    network = kind.small().eval()
    randomize(network)
    # So that probabilities are neither flat nor saturated.
    nn.init.normal_(network.decoder.predictor.weight, std=0.1)
    return network


def test_parameter_counts():
    with torch.device("meta"):
        stcn, stage0, stm = STCN.published(None), STCN.published(None, others=None), STM.published(None)
        assert count(STM.published(None, shared_projection=True)) == 38_925_570 - 5_898_880
    assert count(stcn) == 54_434_180
    assert count(stage0) == 54_431_044
    assert (count(stcn.key_encoder), count(stcn.projection.key), count(stcn.projection.value)) == (8_543_296, 589_888, 4_719_104)
    assert (count(stcn.value_encoder), count(stcn.decoder)) == (21_701_635, 18_880_257)
    assert count(stm) == 38_925_570
    assert (count(stm.memory_encoder), count(stm.query_encoder)) == (8_549_568, 8_543_296)
    for network in (stcn, stm):
        assert all(parameter.requires_grad for parameter in network.parameters())
    # In the released files (``torch.load(...)`` of a state dict): one tensor for both halves of the first convolution, and the
    # buffers of batch normalisation.
    assert sum(b.numel() for b in stcn.buffers() if b.shape != (3, 1, 1)) == 35_130


@pytest.mark.parametrize(("top_k", "from_latest", "include_previous"), [(3, True, False), (None, False, False), (5, True, True)])
def test_stcn_with_a_late_object_equals_the_literal_computation(top_k, from_latest, include_previous):
    network = network_of(STCN)
    network.top_k = top_k
    frames = torch.rand(7, 3, *SIZE)
    start = {0: 0, 1: 0, 2: 3}
    order = {t: {n: MASKS[0, n] for n in start if start[n] == t} for t in (0, 3)}
    policy = EveryKth(2, include_previous, count_from="latest" if from_latest else "start")
    with torch.no_grad():
        expected = oracle.stcn(network, normalized(frames), order, 2, top_k, from_latest, include_previous)
        given = {t: Given(MASKS, torch.tensor([[n in objects for n in range(3)]])) for t, objects in order.items()}
        outputs = unroll(network, Propagation(policy, "product", "overwrite"), frames[None], given)
    assert set(expected) == {(t, n) for n, first in start.items() for t in range(first, 7)}
    for (t, n), foreground in expected.items():
        assert_close(outputs[t].probabilities[0, n + 1], foreground)
    spread = torch.stack([expected[6, n] for n in range(3)]).flatten(1).std(dim=1)
    assert (spread > 1e-3).all(), "flat predictions would compare nothing"


def test_stm_equals_the_literal_computation():
    network = network_of(STM)
    frames = torch.rand(8, 3, *SIZE)
    with torch.no_grad():
        expected = oracle.stm(network, frames, {n: MASKS[0, n] for n in range(3)}, normalized)
        outputs = unroll(
            network,
            Propagation(EveryKth(5, include_previous=True), "product", "overwrite"),
            frames[None],
            {0: Given(MASKS, torch.ones(1, 3, dtype=torch.bool))},
        )
    for (t, n), foreground in expected.items():
        if t > 0:
            assert_close(outputs[t].probabilities[0, n + 1], foreground)
    assert (torch.stack([expected[7, n] for n in range(3)]).flatten(1).std(dim=1) > 1e-3).all()


def test_values_are_encoded_for_remembered_frames_only():
    network = network_of(STCN)
    calls = []
    network.value_encoder.register_forward_hook(lambda *_: calls.append(1))
    frames = torch.rand(1, 7, 3, *SIZE)
    given = {0: Given(MASKS, torch.ones(1, 3, dtype=torch.bool))}
    with torch.no_grad():
        unroll(network, Propagation(EveryKth(5), "product"), frames, given)
    assert len(calls) == 2  # frames 0 and 5


def test_stm_encodes_no_frame_that_is_not_remembered():
    network = network_of(STM)
    calls = []
    network.memory_encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        features = network.encode(FrameInput(torch.rand(1, 3, *SIZE)))
        assert network.memorize(features, MASKS, None, torch.ones(1, 3, dtype=torch.bool), keep=False) == (None, None)
        assert calls == []
        entry, carry = network.memorize(features, MASKS, None, torch.ones(1, 3, dtype=torch.bool), keep=True)
    assert (entry is not None, carry, len(calls)) == (True, None, 1)


def test_top_k_is_for_evaluation():
    network = network_of(STCN)
    network.top_k = 1
    frames = torch.rand(1, 2, 3, *SIZE)
    given = {0: Given(MASKS, torch.ones(1, 3, dtype=torch.bool))}

    def last() -> torch.Tensor:
        with torch.no_grad():
            return unroll(network, Propagation(All(), "product"), frames, given)[-1].logits

    evaluated = last()
    network.train()
    trained = last()
    assert not torch.allclose(evaluated, trained)
    network.eval()
    network.top_k = None
    assert_close(last(), trained)


def variant_of_stm(**arguments) -> STM:
    torch.manual_seed(0)
    return STM.published(
        None, key_channels=8, value_channels=8, decoder_channels=8, blocks=(1, 1, 1), width=4, **arguments
    ).eval()


def last_of(network: STM, frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    given = {0: Given(masks, torch.ones(1, masks.shape[1], dtype=torch.bool))}
    with torch.no_grad():
        return unroll(network, Propagation(All(), "product"), frames, given)[-1].probabilities


def test_the_second_mask_of_stm_holds_the_others_or_the_inverse():
    clamped, inverse, alone = (variant_of_stm(others=others).memory_encoder for others in ("clamped", "inverse", None))
    inverse.load_state_dict(clamped.state_dict())
    alone.load_state_dict({**clamped.state_dict(), "mask_conv.weight": clamped.mask_conv.weight[:, :1]})
    image, own = torch.rand(1, 3, 48, 64), torch.rand(1, 1, 48, 64)
    # Two objects that fill the frame are each other's inverse; one object has no others.
    assert_close(inverse(image, own)[:, 0], clamped(image, torch.cat([own, 1 - own], dim=1))[:, 0])
    assert_close(alone(image, own), clamped(image, own))
    # More than one object in a pixel counts once.
    three = torch.cat([own, torch.ones(1, 2, 48, 64)], dim=1)
    assert_close(clamped(image, three)[:, 0], clamped(image, three[:, :2])[:, 0])
    assert not torch.allclose(inverse(image, own), alone(image, own))


def test_a_shared_projection_is_the_projection_of_both():
    shared, separate = variant_of_stm(shared_projection=True), variant_of_stm()
    separate.load_state_dict(shared.state_dict(), strict=False)
    separate.memory_projection.load_state_dict(shared.query_projection.state_dict())
    frames = torch.rand(1, 3, 3, *SIZE)
    assert_close(last_of(shared, frames, MASKS), last_of(separate, frames, MASKS))
    nn.init.normal_(separate.memory_projection.key.weight)
    assert not torch.allclose(last_of(shared, frames, MASKS), last_of(separate, frames, MASKS))


def test_a_border_of_the_mean_is_that_of_a_frame_with_such_a_border():
    network = variant_of_stm(pad_colour="mean")
    frames = torch.rand(1, 3, 3, *SIZE)
    framed = torch.tensor(IMAGENET_MEAN).view(1, 1, 3, 1, 1).repeat(1, 3, 1, 48, 64)
    framed[..., 4:44, 4:60] = frames
    masks = nn.functional.pad(MASKS, (4, 4, 4, 4))
    plain = last_of(network, frames[:, :2], MASKS)
    assert_close(plain, last_of(network, framed[:, :2], masks)[..., 4:44, 4:60])
    assert not torch.allclose(plain, last_of(variant_of_stm(), frames[:, :2], MASKS))


@pytest.mark.parametrize("kind", [STCN, STM])
def test_top_k_below_one_is_refused(kind):
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        kind.published(None, blocks=(1, 1, 1), width=8, top_k=0)


# The modules ----------------------------------------------------------------------------------------------------------


def test_loss_is_the_bootstrapped_sum_over_frames():
    module = STCNModule(STCN.small(), hardest_from=20, hardest_until=70)
    assert [module.counted_fraction(step) for step in (0, 19, 70, 1000)] == [1, 1, 0.15, 0.15]
    assert module.counted_fraction(45) == pytest.approx(0.15 + 0.85 / 2)
    batch = ClipBatch(
        torch.rand(2, 3, 3, *SIZE),
        torch.randint(0, 3, (2, 3, *SIZE), dtype=torch.uint8),
        torch.tensor([[True, True], [False, False]]),
        ("a", "b"),
        torch.zeros(2, 3, dtype=torch.long),
    )
    given = {0: Given(MASKS[:, :2].expand(2, -1, -1, -1), batch.object_valid)}
    with torch.no_grad():
        outputs = unroll(module.network, module.train_propagation, batch.frames, given)
    expected = 0.0
    for t in (1, 2):
        log_p = outputs[t].probabilities[0].log()
        per_pixel = -log_p.gather(0, batch.label_maps[0, t].long()[None])[0]
        expected += float(per_pixel.mean())
    # The second clip has no object and does not count.
    assert float(module.clip_loss(outputs, batch)["loss"]) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="hardest_from"):
        STCNModule(STCN.small(), hardest_from=2, hardest_until=1)


def test_rate_falls_at_milestones():
    schedule = STCNModule(STCN.small()).optimisation.schedule
    assert [schedule.at(step, 150_000) for step in (0, 124_999, 125_000, 149_999)] == pytest.approx([1, 1, 0.1, 0.1])


def test_memory_of_the_modules():
    stcn, stm = STCNModule(STCN.small(), memory_stride=3), STMModule(STM.small())
    assert stcn.eval_propagation.policy == EveryKth(3)
    assert stm.eval_propagation.policy == EveryKth(5, include_previous=True)
    assert stcn.train_propagation.policy == stm.train_propagation.policy == All()
