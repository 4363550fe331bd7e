"""What a video will cost, estimated before it is segmented, and the size at which it fits into memory."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vos_lightning.mask_ops import PART_BYTES
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import MemoryPolicy
from vos_lightning.structures import Proposals

SAMPLE_SIDE = 96
"""Short side, in pixels, of the frames on which the cost is measured."""
PLANES = 10
"""Planes of float32 at full size that one object takes at a time, in the aggregation and in the prediction."""
FULL_PLANES = 12
"""Planes of float32 at the size of the video that are taken where frames are processed at another size, whatever the number of
objects."""
REMEMBERED = 20
"""Frames that a memory without a bound is taken to hold."""
USABLE = 0.5
"""Share of the free memory that a video may take by the estimate, which is good to a factor of about two: it does not know the
buffers of the libraries, and takes more for many objects than is needed. With the network that comes with the library it says
93 MiB for an object at 480p (182 were taken), 377 for five (240), and 1307 for 200 at 240p (718)."""
SMALLEST_SIDE = 96
"""Short side, in pixels, below which no size is proposed."""


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a video."""

    size: tuple[int, int]
    """Height and width at which frames are processed."""
    memory: int
    """Most bytes of tensors at a time, beside the parameters."""
    seconds: float
    """Seconds a frame."""


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that still live; ``peak`` is the largest count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(  # type: ignore[override]
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in given:
                    self._known.add(key)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class _Sample:
    """What was measured on small frames."""

    pixels: int
    peak: int
    seconds: float
    remembered: int
    """Bytes of one remembered frame."""


@dataclass(frozen=True)
class Plan:
    """What was found out about a video before it is segmented."""

    cost: Cost
    """Estimated cost at the size at which frames will be processed."""
    free: int | None
    """Bytes that are free; None where nothing says it."""
    line: str | None
    """A line for the user that says what was changed and why; None if nothing was."""

    @property
    def fits(self) -> bool:
        """Whether the video fits into the free memory, as far as the estimate and the system say."""
        return self.free is None or self.cost.memory <= USABLE * self.free


def estimate(engine: InferenceEngine, size: tuple[int, int], num_objects: int) -> Cost:
    """Cost of a video, from steps of the engine's network over three small frames with one and with two objects.

    Memory and time are taken to grow with the number of pixels. What an object adds is taken to be limited by
    :data:`vos_lightning.mask_ops.PART_BYTES`, but for its planes and its part of the memory. See :data:`USABLE` for how good this
    is. Time is too high rather than too low, as small frames use a device badly.

    Args:
        engine: the engine; its state is not changed.
        size: height and width of the frames.
        num_objects: number of objects at a time, at least 1.
    """
    return _Costs(engine, size, num_objects).now()


def plan(
    engine: InferenceEngine,
    size: tuple[int, int],
    num_objects: int,
    free: int | None = None,
    shrink: bool = True,
    beside: int = 0,
) -> Plan:
    """Cost of a video; the engine is made to process frames at a smaller size if it would not fit into the free memory otherwise.

    Args:
        engine: the engine; its ``short_side`` is changed where that is needed.
        size: height and width of the frames.
        num_objects: number of objects at a time.
        free: bytes that are free; None asks the device or the system, and changes nothing where neither says.
        shrink: whether the engine may be changed.
        beside: bytes that the video takes beside the network, whatever the size inside the network.
    """
    free = free_memory(engine.network.device) if free is None else free
    costs = _Costs(engine, size, num_objects, beside)
    cost = costs.now()
    if free is None or not shrink or cost.memory <= USABLE * free:
        return Plan(cost, free, None)
    before = min(cost.size)
    while cost.memory > USABLE * free and min(cost.size) > SMALLEST_SIDE:
        # The planes at full size do not shrink, so that one step may not be enough.
        smaller = int(min(cost.size) * min(0.95, (USABLE * free / cost.memory) ** 0.5)) // 16 * 16
        engine.short_side = max(SMALLEST_SIDE, smaller)
        cost = costs.now()
    line = (
        f"frames are processed at a short side of {min(cost.size)} pixels instead of {before}, as {num_objects} object(s) would "
        f"not fit into {in_words(free)} of free memory (now about {in_words(cost.memory)}; --short-side chooses another)"
    )
    return Plan(cost, free, line if min(cost.size) < before else None)


def fit(engine: InferenceEngine, size: tuple[int, int], num_objects: int, free: int | None = None) -> str | None:
    """Make the engine process frames at a smaller size if a video would not fit into the free memory otherwise.

    Args:
        engine: the engine; its ``short_side`` is changed where that is needed.
        size: height and width of the frames.
        num_objects: number of objects at a time.
        free: bytes that are free; None asks the device or the system, and changes nothing where neither says.

    Returns:
        A line for the user that says what was changed and why; None if nothing was.
    """
    return plan(engine, size, num_objects, free).line


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; on a CPU what the system, and a container's limit, leave; None where nothing says it."""
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError, AttributeError):  # a device without a module, or one whose module does not say it
            return int(torch.get_device_module(device).mem_get_info(device)[0])
        return None
    found = _left_by_groups()
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    return max(0, min(found)) if found else None


def _left_by_groups(mounted: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[int]:
    """What the limits of this process's control groups leave, of both versions; those of containers and of batch jobs."""
    groups = {(2, "")}
    with contextlib.suppress(OSError, ValueError):
        for line in Path(own).read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            version = 2 if number == "0" else 1
            if version == 2 or "memory" in kinds.split(","):
                names = path.rstrip("/").split("/")
                groups |= {(version, "/".join(names[:count])) for count in range(1, len(names) + 1)}
    roots = {1: f"{mounted}/memory", 2: mounted}
    found = (_left_by_group(version, roots[version] + path) for version, path in groups)
    return [left for left in found if left is not None]


def _left_by_group(version: int, folder: str) -> int | None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    cached = 0
    try:
        limit, used = (int(Path(f"{folder}/{name}").read_text()) for name in names)
    except (OSError, ValueError):  # no limit is the word "max"
        return None
    with contextlib.suppress(OSError, ValueError):
        entries = dict(entry.split() for entry in Path(f"{folder}/memory.stat").read_text().splitlines())
        # Pages of files that were read count as used, but the system gives them back.
        cached = sum(int(entries.get(f"total_{kind}", entries.get(kind, 0))) for kind in ("inactive_file", "active_file"))
    return limit - used + cached


class _Costs:
    """Costs of a video at any inner size; samples are measured once."""

    def __init__(self, engine: InferenceEngine, size: tuple[int, int], num_objects: int, beside: int = 0) -> None:
        self._engine, self._size, self._num_objects, self._beside = engine, size, num_objects, beside
        self._samples: dict[tuple[tuple[int, int], int], _Sample] = {}

    def now(self) -> Cost:
        """Cost at the size at which the engine would process frames as it is."""
        inner, size, more = self._engine.inner_size(self._size), self._size, self._num_objects - 1
        one = self._sample(inner, 1)
        two = self._sample(inner, 2) if more else one
        ratio = inner[0] * inner[1] / one.pixels
        kept = _remembered_frames(self._engine.propagation.policy)
        of_frame = one.remembered + more * max(0, two.remembered - one.remembered)
        memory = (
            ratio * one.peak
            + min(more * ratio * max(0, two.peak - one.peak), 2.0 * PART_BYTES)
            + more * 4 * (PLANES * inner[0] * inner[1] + (3 * size[0] * size[1] if inner != size else 0))
            + 2 * kept * ratio * of_frame  # as frames, and stacked
            + (4 * FULL_PLANES * size[0] * size[1] if inner != size else 0)
            + self._beside
        )
        seconds = ratio * (one.seconds + more * max(0.0, two.seconds - one.seconds))
        return Cost(inner, int(memory), seconds)

    def _sample(self, inner: tuple[int, int], num_objects: int) -> _Sample:
        key = _sample_size(inner), num_objects
        if key not in self._samples:
            self._samples[key] = _measure(self._engine, inner, num_objects)
        return self._samples[key]


def _sample_size(inner: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the frames on which the cost of larger ones is measured."""
    scale = min(1.0, SAMPLE_SIDE / min(inner))
    return max(1, round(inner[0] * scale)), max(1, round(inner[1] * scale))


def _measure(engine: InferenceEngine, inner: tuple[int, int], num_objects: int) -> _Sample:
    height, width = _sample_size(inner)
    probe = engine.another()
    probe.short_side, probe.min_object_pixels = None, 0
    generator = torch.Generator().manual_seed(0)  # the user's draws of random numbers are left alone
    frame = (F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), (height, width))[0] * 255).to(torch.uint8)
    masks = torch.zeros(height, width, dtype=torch.uint8)
    for i in range(num_objects):
        masks[i * height // num_objects : i * height // num_objects + max(1, height // (2 * num_objects)), : width // 2] = i + 1
    proposals = None
    if engine.network.needs_proposals:
        boxes = torch.tensor([[[0.0, 0.0, width / 2, height / 2]]]).expand(1, 10, 4)
        proposals = Proposals(boxes, torch.rand(1, 10, 28, 28, generator=generator), torch.full((1, 10), 0.5))
    with LiveTensors() as live:
        for t in range(3):
            probe.step(frame, masks if t == 0 else None, proposals=proposals)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        probe.step(frame, proposals=proposals)  # the result is on the host, so that a device is waited for
        seconds.append(time.perf_counter() - start)
    return _Sample(height * width, live.peak, min(seconds), probe.bytes_remembered())


def _remembered_frames(policy: MemoryPolicy) -> int:
    """How many frames a memory holds at most, the annotated one included."""
    bound = getattr(policy, "max_frames", None) or REMEMBERED
    return 1 + min(bound, sum(policy.keeps(t) for t in range(1, 100)))


def in_words(count: int) -> str:
    """Bytes for a line to the user, in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
