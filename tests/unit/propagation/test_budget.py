"""What a video will cost, and the size at which it fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.unit.dummies import DummyNetwork
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation import budget
from vos_lightning.propagation.budget import LiveTensors, estimate, fit, free_memory, plan
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


def test_an_accelerator_is_asked_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    asked: list[torch.device] = []

    def mem_get_info(of: torch.device) -> tuple[int, int]:
        asked.append(of)
        return 2**33, 2**36

    monkeypatch.setattr(torch, "get_device_module", lambda of: SimpleNamespace(mem_get_info=mem_get_info))
    assert free_memory(device) == 2**33
    assert asked == [device]
    monkeypatch.setattr(torch, "get_device_module", lambda of: SimpleNamespace())
    assert free_memory(torch.device("mps")) is None


def test_without_a_number_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device: None)
    engine = engine_on(DummyNetwork())
    assert fit(engine, (4000, 4000), 200) is None
    assert engine.short_side is None


def test_samples_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of sizes is tried, the start is not delayed by it; one object needs no second sample."""
    measured: list[int] = []
    measure = budget._measure

    def counted(engine: InferenceEngine, size: tuple[int, int], num_objects: int) -> budget._Sample:
        measured.append(num_objects)
        return measure(engine, size, num_objects)

    monkeypatch.setattr(budget, "_measure", counted)
    engine = engine_on(DummyNetwork())
    assert plan(engine, (2000, 2000), 1, free=2**20).line is not None
    assert set(measured) == {1}
    assert len(measured) == 1
    measured.clear()
    plan(engine_on(DummyNetwork()), (2000, 2000), 7, free=2**40)
    assert measured == [1, 2]


def test_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    estimate(engine_on(DummyNetwork()), (32, 32), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups(version: int, tmp_path: Path) -> None:
    """A batch job lies in groups within groups, each with its limit; files that were read are given back."""
    mounted, own = tmp_path / "cgroup", tmp_path / "own"
    root = mounted / "memory" if version == 1 else mounted
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    prefix = "total_" if version == 1 else ""
    own.write_text("3:cpu,cpuacct:/elsewhere\n4:memory:/job/step\n" if version == 1 else "0::/job/step\n")
    for folder, limit, used, cached in (("job/step", "5000", 100, 0), ("job", "3000", 2500, 600), ("", "max", 9, 0)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / names[0]).write_text(f"{limit}\n")
        (root / folder / names[1]).write_text(f"{used}\n")
        (root / folder / "memory.stat").write_text(
            f"anon 3\n{prefix}inactive_file {cached - cached // 3}\n{prefix}active_file {cached // 3}\n"
        )
    assert sorted(budget._left_by_groups(str(mounted), str(own))) == [1100, 4900]
    assert budget._left_by_groups(str(tmp_path / "elsewhere"), str(tmp_path / "nothing")) == []


def test_frames_of_another_size_take_their_planes_too() -> None:
    """A 4K video that is processed at 240p takes far more than a 240p video: its frames and masks are large."""
    engine = engine_on(DummyNetwork(), short_side=240)
    small, large = (estimate(engine, size, 1) for size in ((240, 426), (2160, 3840)))
    assert large.size == (240, 426)
    assert large.memory - small.memory == pytest.approx(4 * budget.FULL_PLANES * 2160 * 3840, rel=0.01)
    beside = plan(engine, (2160, 3840), 1, free=2**40, beside=10**9)
    assert beside.cost.memory - large.memory == pytest.approx(10**9, rel=0.01)
    assert not plan(engine, (2160, 3840), 1, free=10**9, beside=10**9, shrink=False).fits


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 MiB"), (5 * 2**20, "5 MiB"), (2**30, "1.0 GiB"), (int(2.5 * 2**30), "2.5 GiB")]
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert budget.in_words(count) == words
