"""The estimate of what a video costs, term by term, and where the free memory is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.dummies import DummyNetwork
from vos_lightning.propagation import budget
from vos_lightning.propagation.budget import (
    FULL_PLANES,
    PLANES,
    Cost,
    LiveTensors,
    _measure,
    _Sample,
    estimate,
    fit,
    free_memory,
)  # fmt: skip
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import All, AnnotatedOnly, EveryKth, MemoryPolicy
from vos_lightning.propagation.step import Propagation

PIXELS = 100
ONE = _Sample(PIXELS, 1000, 0.25, 40)


def engine_on(policy: MemoryPolicy, short_side: int | None = None) -> InferenceEngine:
    return InferenceEngine(DummyNetwork(), Propagation(policy, "minimum"), short_side=short_side)


@pytest.mark.parametrize("two", [_Sample(PIXELS, 1300, 0.375, 55), _Sample(PIXELS, 900, 0.125, 30)], ids=["more", "less"])
@pytest.mark.parametrize(("short_side", "inner"), [(None, (20, 40)), (10, (10, 20))])
@pytest.mark.parametrize("num_objects", [1, 2, 7])
@pytest.mark.parametrize(
    ("policy", "frames"),
    [(AnnotatedOnly(), 1), (EveryKth(5, max_frames=4), 5), (EveryKth(5), 1 + 19), (EveryKth(25), 1 + 3), (All(), 1 + 20)],
)
def test_the_estimate_is_the_formula(
    monkeypatch: pytest.MonkeyPatch,
    two: _Sample,
    short_side: int | None,
    inner: tuple[int, int],
    num_objects: int,
    policy: MemoryPolicy,
    frames: int,
) -> None:
    monkeypatch.setattr(budget, "_measure", lambda engine, size, count: {(inner, 1): ONE, (inner, 2): two}[size, count])
    monkeypatch.setattr(budget, "PART_BYTES", 2000)
    ratio, others = inner[0] * inner[1] / PIXELS, num_objects - 1
    memory = ratio * ONE.peak
    memory += min(2 * 2000, others * ratio * max(two.peak - ONE.peak, 0))  # what the work on the other objects takes
    memory += others * PLANES * 4 * inner[0] * inner[1]
    if inner != (20, 40):
        memory += (others * 3 + FULL_PLANES) * 4 * 20 * 40  # planes at full size
    memory += 2 * frames * ratio * (ONE.remembered + others * max(two.remembered - ONE.remembered, 0))
    found = estimate(engine_on(policy, short_side), (20, 40), num_objects)
    assert found.size == inner
    assert found.memory == pytest.approx(memory, abs=1)
    assert found.seconds == pytest.approx(ratio * (ONE.seconds + others * max(two.seconds - ONE.seconds, 0)))


@pytest.mark.parametrize("needs_proposals", [False, True])
@pytest.mark.parametrize(
    ("num_objects", "inner", "size"),
    [
        (1, (40, 60), (40, 60)),
        (2, (40, 60), (40, 60)),
        (1, (192, 300), (96, 150)),
        (2, (97, 96), (97, 96)),
        (1, (1, 3), (1, 3)),
        (1, (3, 5), (3, 5)),
    ],
)
def test_the_cost_is_measured_on_small_frames(
    monkeypatch: pytest.MonkeyPatch, num_objects: int, inner: tuple[int, int], size: tuple[int, int], needs_proposals: bool
) -> None:
    """Three frames whose memory is counted, and three that are timed; the objects lie in the left half, one below another."""
    engine, steps = engine_on(EveryKth(1), 50), list[Any]()
    engine.min_object_pixels = 1000
    engine.network.needs_proposals = needs_proposals
    step, clock = InferenceEngine.step, iter([0.0, 5.0, 10.0, 12.0, 20.0, 24.0])

    def spy(self: InferenceEngine, frame: Any, masks: Any = None, *, proposals: Any = None) -> Any:
        assert (self.short_side, self.min_object_pixels) == (None, 0)
        assert self is not engine
        steps.append((frame, masks, proposals))
        return step(self, frame, masks, proposals=proposals)

    monkeypatch.setattr(InferenceEngine, "step", spy)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(clock))
    found = _measure(engine, inner, num_objects)
    assert [masks is not None for _, masks, _ in steps] == [True] + [False] * 5
    assert all(frame.shape == (3, *size) and frame.dtype == torch.uint8 for frame, _, _ in steps)
    expected = torch.zeros(size, dtype=torch.uint8)
    for i in range(num_objects):
        top = i * size[0] // num_objects
        expected[top : top + max(1, size[0] // num_objects // 2), : size[1] // 2] = i + 1
    assert torch.equal(steps[0][1], expected)
    assert (found.pixels, found.seconds) == (size[0] * size[1], 2.0)
    padded = -(-size[0] // 8) * -(-size[1] // 8) * 64
    assert found.remembered == 4 * padded * num_objects
    assert found.peak > found.remembered
    for frame, _, proposals in steps:
        assert frame.float().std() > 10, "a frame of one colour is no picture"
        if not needs_proposals:
            assert proposals is None
            continue
        assert proposals.boxes.tolist() == [[[0.0, 0.0, size[1] / 2, size[0] / 2]] * 10]
        assert proposals.masks.shape == (1, 10, 28, 28)
        assert proposals.scores.tolist() == [[0.5] * 10]


def test_what_was_there_before_is_not_counted_whatever_is_done_with_it() -> None:
    x = torch.zeros(1000)
    with LiveTensors() as live:
        view = x.view(10, 100)
        x.add_(1)
        view[0].mul_(2)
        assert (live.now, live.peak) == (0, 0)


@pytest.mark.parametrize(
    ("planes", "share", "short_side", "steps"),
    [
        (0, 0.25, 240, 1),  # a quarter of the memory: half the side
        (0, 0.99, 448, 1),  # at least 5 % less, and whole multiples of 16: 456 is not one
        (0, 0.24, 224, 1),  # 0.49 of 480 is 235
        (100_000, 0.6, 304, 3),  # what does not shrink with the side is found out step by step
        (0, 0.01, 96, 1),
    ],
)
def test_the_side_shrinks_until_the_video_fits(
    monkeypatch: pytest.MonkeyPatch, planes: int, share: float, short_side: int, steps: int
) -> None:
    engine, asked = engine_on(AnnotatedOnly()), list[int]()

    class Costs:
        """Costs by a formula instead of measured ones."""

        def __init__(self, engine: InferenceEngine, size: tuple[int, int], num_objects: int, beside: int = 0) -> None:
            assert (size, num_objects, beside) == ((480, 640), 3, 0)
            self.engine = engine

        def now(self) -> Cost:
            inner = self.engine.inner_size((480, 640))
            asked.append(inner[0])
            return Cost(inner, 4096 * (inner[0] ** 2 + planes), 1.0)

    monkeypatch.setattr(budget, "_Costs", Costs)
    full = Costs(engine, (480, 640), 3).now().memory
    free = int(share * full / budget.USABLE)
    line = fit(engine, (480, 640), 3, free)
    assert engine.short_side == short_side
    assert len(asked) - 2 == steps
    assert line == (
        f"frames are processed at a short side of {short_side} pixels instead of 480, as 3 object(s) would not fit into "
        f"{budget.in_words(free)} of free memory (now about {budget.in_words(4096 * (short_side**2 + planes))}; "
        "--short-side chooses another)"
    )
    assert fit(engine_on(AnnotatedOnly()), (480, 640), 3, int(full / budget.USABLE)) is None


class Files:
    """Stands in for the files of the system."""

    def __init__(self, content: dict[str, str]) -> None:
        self.content = content

    def __call__(self, path: str) -> Any:
        found = self.content

        class File:
            def read_text(self) -> str:
                if path not in found:
                    raise FileNotFoundError(path)
                return found[path]

        return File()


SYSTEM = {"/proc/meminfo": "MemTotal: 90 kB\nMemAvailable:      60 kB\nSwapFree: 7 kB\n"}


def container(limit: str, used: str) -> dict[str, str]:
    return {"/sys/fs/cgroup/memory.max": f"{limit}\n", "/sys/fs/cgroup/memory.current": f"{used}\n"}


@pytest.mark.parametrize(
    ("content", "free"),
    [
        (SYSTEM, 60 * 1024),
        (SYSTEM | container("50000", "20000"), 30000),
        (SYSTEM | container("500000", "20000"), 60 * 1024),
        (SYSTEM | container("max", "20000"), 60 * 1024),
        (SYSTEM | container("20000", "30000"), 0),
        (container("50000", "20000"), 30000),
        ({"/proc/meminfo": "MemTotal: 90 kB\n"}, None),
        ({"/proc/meminfo": "MemAvailable: much\n"}, None),
        ({}, None),
    ],
)
def test_the_free_memory_is_the_least_that_a_file_says(
    monkeypatch: pytest.MonkeyPatch, content: dict[str, str], free: int | None
) -> None:
    monkeypatch.setattr(budget, "Path", Files(content))
    assert free_memory(torch.device("cpu")) == free
