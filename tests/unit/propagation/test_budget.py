"""What a video will cost, and the size at which it fits."""

from __future__ import annotations

import pytest
import torch

from tests.unit.dummies import DummyNetwork
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation import budget
from vos_lightning.propagation.budget import LiveTensors, estimate, fit, free_memory
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import AnnotatedOnly, EveryKth
from vos_lightning.propagation.step import Propagation


def engine_on(network: VOSNetwork, policy: object = EveryKth(5, max_frames=4), **options: object) -> InferenceEngine:
    return InferenceEngine(network, Propagation(policy, "product"), **options)  # type: ignore[arg-type]


def test_live_tensors_are_counted_once_and_forgotten() -> None:
    x = torch.zeros(1000)
    with LiveTensors() as live:
        a = x + 1
        b = a.view(10, 100)
        assert live.now == 4000, "a view has no bytes of its own, and what was there before does not count"
        c = b * 2
        a.add_(1)
        assert (live.now, live.peak) == (8000, 8000)
        del a, c
        assert live.now == 4000
        del b
        assert (live.now, live.peak) == (0, 8000)


def test_the_estimate_grows_with_pixels_objects_and_the_memory(network: VOSNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SAMPLE_SIDE", 32)
    engine = engine_on(network)
    before = engine.object_ids
    small, wide, many = (estimate(engine, size, n).memory for size, n in (((32, 64), 1), ((128, 256), 1), ((128, 256), 50)))
    assert engine.object_ids == before == ()
    assert wide == pytest.approx(16 * small, rel=0.01)
    assert many > wide
    longer = engine_on(network, EveryKth(5, max_frames=400))
    assert estimate(longer, (128, 256), 5).memory > estimate(engine, (128, 256), 5).memory


def test_the_estimate_of_an_object_is_what_lives() -> None:
    """At the size of the sample, nothing is extrapolated but the memory."""
    engine = engine_on(STCN.small().eval(), AnnotatedOnly())
    frame, mask = torch.rand(3, 96, 128), torch.zeros(96, 128, dtype=torch.uint8)
    mask[10:40, 20:60] = 1
    with LiveTensors() as live:
        for t in range(3):
            engine.step((frame * 255).to(torch.uint8), mask if t == 0 else None)
    assert estimate(engine, (96, 128), 1).memory == pytest.approx(live.peak, rel=0.15)
    assert estimate(engine, (96, 128), 1).size == (96, 128)
    assert estimate(engine, (96, 128), 1).seconds > 0


def test_a_video_that_fits_changes_nothing() -> None:
    engine = engine_on(DummyNetwork())
    assert fit(engine, (480, 640), 3, free=2**34) is None
    assert engine.short_side is None


@pytest.mark.parametrize("short_side", [None, 700])
def test_a_video_that_does_not_fit_is_processed_smaller(short_side: int | None) -> None:
    engine = engine_on(STCN.small().eval(), short_side=short_side)
    full = estimate(engine, (960, 1280), 1)
    line = fit(engine, (960, 1280), 1, free=full.memory)
    assert engine.short_side is not None
    assert line is not None
    assert engine.short_side < min(full.size)
    assert engine.short_side % 16 == 0
    assert f"short side of {engine.short_side} pixels instead of {min(full.size)}" in line
    assert estimate(engine, (960, 1280), 1).memory <= budget.USABLE * full.memory
    assert fit(engine, (960, 1280), 1, free=full.memory) is None


def test_nothing_is_made_smaller_than_sense() -> None:
    engine = engine_on(STCN.small().eval())
    assert fit(engine, (480, 640), 1, free=1) is not None
    assert engine.short_side == budget.SMALLEST_SIDE


def test_free_memory_of_this_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert free_memory(torch.device("meta")) is None


def test_without_a_number_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device: None)
    engine = engine_on(DummyNetwork())
    assert fit(engine, (4000, 4000), 200) is None
    assert engine.short_side is None
