"""How fast networks segment: the streaming engine over synthetic frames, several networks in one run, as numbers."""

from __future__ import annotations

import ctypes
import gc
import itertools
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from vos_lightning.app.benchmark.options import Options
from vos_lightning.app.devices import device_name
from vos_lightning.app.options import PRECISIONS
from vos_lightning.modules.base import VOSModule
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.structures import Proposals, VideoSample

SECTION_PREFIX = "vos/"
"""Networks mark their parts with ``torch.profiler.record_function("vos/<part>")``."""


@dataclass
class Result:
    """One network with one number of objects in one precision. Times are seconds a frame."""

    network: str
    parameters: int
    objects: int
    precision: str
    median: float = 0.0
    first_quartile: float = 0.0
    third_quartile: float = 0.0
    mean: float = 0.0
    cpu: float = 0.0
    """Mean CPU time a thread, in seconds: for work that scales over threads, the time on an otherwise idle machine."""
    ratio: float = 1.0
    """This network's median divided by the median of the first network."""
    peak_memory: int | None = None
    """Most memory in use, in bytes, see :class:`PeakMemory`."""
    times: list[float] = field(default_factory=list)
    cpu_times: list[float] = field(default_factory=list)
    sections: dict[str, float] = field(default_factory=dict)
    """Seconds a frame of each marked part; a part may lie inside another one."""


def run(modules: Mapping[str, VOSModule], options: Options) -> list[Result]:
    """Measure every network with every number of objects in every precision.

    Args:
        modules: modules by name, in evaluation mode and on their device; each runs with its evaluation propagation.
        options: what is measured, and how.

    Returns:
        Results in the order of precisions, objects, networks.
    """
    results = []
    for precision in options.precisions:
        for objects in options.objects:
            group = [
                Result(name, sum(p.numel() for p in module.network.parameters()), objects, precision)
                for name, module in modules.items()
            ]
            for _ in range(options.rounds):
                for result in group:
                    _measure(_engine(modules[result.network], precision), result, options)
            for result in group:
                _summarize(result, group[0])
                if options.sections:
                    result.sections = _profile(_engine(modules[result.network], precision), objects, options)
            results += group
    return results


def synthetic_video(size: tuple[int, int], length: int, objects: int) -> VideoSample:
    """A drifting texture as frames, and rectangles as object masks of the first frame; random proposals for networks that match.

    Args:
        size: height and width in pixels.
        length: number of frames.
        objects: number of objects.
    """
    height, width = size
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    frame = (F.interpolate(texture, size, mode="bilinear")[0] * 255).to(torch.uint8)
    label_map = torch.zeros(size, dtype=torch.uint8)
    columns = int(objects**0.5 + 0.999)
    rows = -(-objects // columns)
    for n in range(objects):
        row, column = divmod(n, columns)
        top, left = row * height // rows, column * width // columns
        label_map[top + height // (4 * rows) : top + 3 * height // (4 * rows),
                  left + width // (4 * columns) : left + 3 * width // (4 * columns)] = n + 1  # fmt: skip
    return VideoSample(
        name="synthetic",
        frames=[frame.roll((t, 2 * t), dims=(1, 2)) for t in range(length)],
        annotations={0: label_map},
        targets={},
        object_ids=tuple(range(1, objects + 1)),
        original_size=size,
        frame_names=tuple(f"{t:05d}" for t in range(length)),
        proposals=_RandomProposals(size),
    )


class PeakMemory:
    """Peak memory inside the ``with`` block.

    On an accelerator: the memory that PyTorch has allocated, parameters included. On the CPU: how much the resident memory of the
    process has grown, without the parameters; None where the system (other than Linux) does not report it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
            return self
        try:
            ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, else its reuse would not count as growth
            Path("/proc/self/clear_refs").write_text("5")
            self._start = _status("VmRSS")
        except (OSError, AttributeError):
            self._start = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type != "cpu":
            self.peak = torch.accelerator.max_memory_allocated(self.device)
        elif self._start is not None:
            highest = _status("VmHWM")
            self.peak = None if highest is None else max(0, highest - self._start)


def environment(device: torch.device) -> dict[str, Any]:
    """Everything beside the network that a measurement depends on."""
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "convolution_gflops": convolution_rate(device),
    }


def convolution_rate(device: torch.device) -> float:
    """Best of a few 3 x 3 convolutions of 256 float32 channels in channels-last order, in GFLOP/s.

    Networks are mostly limited by arithmetic, so multiplying times with this rate makes different machines comparable.
    """
    height, width, channels = 60, 108, 256
    frame = torch.ones(1, channels, height, width, device=device).to(memory_format=torch.channels_last)
    weight = torch.ones(channels, channels, 3, 3, device=device).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            F.conv2d(frame, weight, padding=1).sum().item()  # reading the sum waits for the device
            times.append(time.perf_counter() - start)
    return 2 * 9 * channels**2 * height * width / min(times) / 1e9


# Details --------------------------------------------------------------------------------------------------------------


def _engine(module: VOSModule, precision: str) -> InferenceEngine:
    name = PRECISIONS[precision]
    engine = module.engine(None if name is None else getattr(torch, name))
    engine.short_side = None  # frames are made at the requested size
    return engine


class _RandomProposals:
    """The same random boxes with masks for every frame."""

    def __init__(self, size: tuple[int, int], count: int = 30) -> None:
        generator = torch.Generator().manual_seed(0)
        limit = torch.tensor([size[1], size[0]])
        low = torch.rand(1, count, 2, generator=generator) * limit * 0.7
        high = (low + (0.05 + 0.3 * torch.rand(1, count, 2, generator=generator)) * limit).minimum(limit)
        scores = torch.rand(1, count, generator=generator).clamp_min(0.01)
        masks = torch.rand(1, count, 28, 28, generator=generator)
        self._proposals = Proposals(torch.cat([low, high], dim=2), masks, scores)

    def of_frame(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Proposals:  # noqa: ARG002
        """The proposals."""
        return self._proposals


def _video(options: Options, objects: int) -> VideoSample:
    return synthetic_video(options.size, 1 + options.warmup + options.frames, objects)


def _measure(engine: InferenceEngine, result: Result, options: Options) -> None:
    video, device = _video(options, result.objects), engine.network.device
    with PeakMemory(device) as memory:
        start, cpu_start = time.perf_counter(), time.process_time()
        for prediction in engine.run(video):
            _synchronize(device)
            if prediction.frame_index > options.warmup:
                result.times.append(time.perf_counter() - start)
                result.cpu_times.append((time.process_time() - cpu_start) / torch.get_num_threads())
            start, cpu_start = time.perf_counter(), time.process_time()
    if memory.peak is not None:
        result.peak_memory = max(result.peak_memory or 0, memory.peak)


def _profile(engine: InferenceEngine, objects: int, options: Options) -> dict[str, float]:
    device = engine.network.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type != "cpu":
        activities += sorted(torch.profiler.supported_activities() - {activities[0]}, key=str)
    predictions = engine.run(_video(options, objects))
    for _ in itertools.islice(predictions, 1 + options.warmup):
        pass
    with torch.profiler.profile(activities=activities) as profile:
        for _ in predictions:
            pass
        _synchronize(device)
    total = "device_time_total" if device.type != "cpu" else "cpu_time_total"
    return {
        event.key.removeprefix(SECTION_PREFIX): getattr(event, total) * 1e-6 / options.frames
        for event in profile.key_averages()
        # The profiler lists the same range a second time, with the device's time.
        if event.key.startswith(SECTION_PREFIX) and event.device_type == torch.profiler.DeviceType.CPU
    }


def _summarize(result: Result, first: Result) -> None:
    quartiles = statistics.quantiles(result.times, n=4, method="inclusive") if len(result.times) > 1 else result.times * 3
    result.first_quartile, result.median, result.third_quartile = quartiles
    result.mean, result.cpu = statistics.fmean(result.times), statistics.fmean(result.cpu_times)
    result.ratio = result.median / first.median


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _status(key: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
