"""How fast networks segment: the streaming engine over synthetic frames, several networks in one run, as a table and as JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vos_lightning.app.devices import device_name
from vos_lightning.app.runs import write_text
from vos_lightning.modules.base import VOSModule
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.structures import Proposals

PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Autocast types by name: Lightning's names, then short ones."""
SECTION_PREFIX = "vos/"
"""Networks mark their parts with ``torch.profiler.record_function("vos/<part>")``."""


@dataclass(frozen=True)
class Options:
    """What is measured, and how."""

    size: tuple[int, int] = (480, 854)
    objects: tuple[int, ...] = (1, 3)
    precisions: tuple[str, ...] = ("32-true",)
    frames: int = 10
    """Timed frames of a round. Networks whose memory grows need enough of them: their time depends on the length."""
    warmup: int = 2
    """Frames after the annotated one that are not timed."""
    rounds: int = 2
    """How often every network takes its turn. Taking turns spreads a change of the machine's load over all networks."""
    sections: bool = False
    """Also profile a round and sum the marked parts of the networks."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("warmup", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        if min(self.size) < 16 or not self.objects or min(self.objects) < 1:
            raise ValueError("--size must be at least 16 16, --objects at least 1")


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


def synthetic_video(
    size: tuple[int, int], length: int, objects: int
) -> tuple[list[UInt8[Tensor, "3 H W"]], UInt8[Tensor, "H W"]]:
    """A drifting texture as frames, and rectangles as object masks of the first frame."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    frame = (F.interpolate(texture, size, mode="bilinear")[0] * 255).to(torch.uint8)
    frames = [frame.roll((t, 2 * t), dims=(1, 2)) for t in range(length)]
    label_map = torch.zeros(size, dtype=torch.uint8)
    columns = int(objects**0.5 + 0.999)
    rows = -(-objects // columns)
    for n in range(objects):
        row, column = divmod(n, columns)
        top, left = row * height // rows, column * width // columns
        label_map[top + height // (4 * rows) : top + 3 * height // (4 * rows),
                  left + width // (4 * columns) : left + 3 * width // (4 * columns)] = n + 1  # fmt: skip
    return frames, label_map


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
    engine = module.engine(PRECISIONS[precision])
    engine.short_side = None  # frames are made at the requested size
    return engine


def random_proposals(size: tuple[int, int], count: int = 30) -> Proposals:
    """Random boxes with masks, for networks that read proposals."""
    generator = torch.Generator().manual_seed(0)
    limit = torch.tensor([size[1], size[0]])
    low = torch.rand(1, count, 2, generator=generator) * limit * 0.7
    high = (low + (0.05 + 0.3 * torch.rand(1, count, 2, generator=generator)) * limit).minimum(limit)
    scores = torch.rand(1, count, generator=generator).clamp_min(0.01)
    return Proposals(torch.cat([low, high], dim=2), torch.rand(1, count, 28, 28, generator=generator), scores)


def _measure(engine: InferenceEngine, result: Result, options: Options) -> None:
    frames, label_map = synthetic_video(options.size, 1 + options.warmup + options.frames, result.objects)
    device = engine.network.device
    proposals = random_proposals(options.size)
    with PeakMemory(device) as memory:
        for t, frame in enumerate(frames):
            start, cpu_start = time.perf_counter(), time.process_time()
            engine.step(frame, label_map if t == 0 else None, proposals=proposals)
            _synchronize(device)
            if t > options.warmup:
                result.times.append(time.perf_counter() - start)
                result.cpu_times.append((time.process_time() - cpu_start) / torch.get_num_threads())
    if memory.peak is not None:
        result.peak_memory = max(result.peak_memory or 0, memory.peak)


def _profile(engine: InferenceEngine, objects: int, options: Options) -> dict[str, float]:
    frames, label_map = synthetic_video(options.size, 1 + options.warmup + options.frames, objects)
    device = engine.network.device
    proposals = random_proposals(options.size)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type != "cpu":
        activities += sorted(torch.profiler.supported_activities() - {activities[0]}, key=str)
    for frame in frames[: 1 + options.warmup]:
        engine.step(frame, label_map if not engine.object_ids else None, proposals=proposals)
    with torch.profiler.profile(activities=activities) as profile:
        for frame in frames[1 + options.warmup :]:
            engine.step(frame, proposals=proposals)
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


# Command line ---------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command, with the defaults of :class:`Options`."""
    default = Options()
    parser.add_argument("--size", type=int, nargs=2, default=default.size, metavar=("H", "W"), help="size of the frames")
    parser.add_argument("--objects", type=int, nargs="+", default=default.objects, metavar="N", help="default: 1 3")
    parser.add_argument("--precision", nargs="+", choices=sorted(PRECISIONS), default=default.precisions, help="default: 32-true")
    parser.add_argument("--frames", type=int, default=default.frames, help=f"timed frames of a round: {default.frames}")
    parser.add_argument("--warmup", type=int, default=default.warmup, help=f"frames before the timed ones: {default.warmup}")
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help=f"how often every network takes its turn: {default.rounds}"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as PyTorch chooses)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu ...")
    parser.add_argument("--sections", action="store_true", help="also sum the marked parts of each network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements as JSON")


def options_of(known: argparse.Namespace) -> Options:
    """Checked options of the command line."""
    return Options(
        size=(known.size[0], known.size[1]),
        objects=tuple(known.objects),
        precisions=tuple(known.precision),
        frames=known.frames,
        warmup=known.warmup,
        rounds=known.rounds,
        sections=known.sections,
    )


def report(results: Sequence[Result], options: Options, device: torch.device, file: Path | None) -> None:
    """Print the table and write the JSON file."""
    height, width = options.size
    about = environment(device)
    table = Table(
        *("network", "parameters", "objects", "precision", "s/frame", "quartiles", "cpu", "ratio", "MiB"),
        title=f"{height}x{width}, {about['device_name']}, {about['threads']} threads, torch {about['torch']}, "
        f"convolutions at {about['convolution_gflops']:.0f} GFLOP/s",
        caption="s/frame: median; cpu: CPU time a thread; ratio: median over that of the first network; MiB: peak memory",
    )
    for r in results:
        table.add_row(
            r.network,
            f"{r.parameters / 1e6:.2f} M",
            str(r.objects),
            r.precision,
            f"{r.median:.4f}",
            f"{r.first_quartile:.4f}-{r.third_quartile:.4f}",
            f"{r.cpu:.4f}",
            f"{r.ratio:.2f}",
            "?" if r.peak_memory is None else f"{r.peak_memory / 2**20:.0f}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log has no width
    console.print(table)
    if options.sections:
        parts = Table("network", "objects", "precision", "part", "ms/frame")
        for r in results:
            for part, seconds in sorted(r.sections.items()):
                parts.add_row(r.network, str(r.objects), r.precision, part, f"{1000 * seconds:.2f}")
        console.print(parts)
    if file is not None:
        content = {"environment": about, "options": asdict(options), "results": [asdict(result) for result in results]}
        write_text(file, json.dumps(content, indent=1) + "\n")
