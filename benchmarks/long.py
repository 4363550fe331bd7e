"""Memory and time over a long video: ``python -m benchmarks.long [NETWORK ...] [--frames 10000] [--size 64 80]``.

Every network, small and with random weights, is stepped over a video of two objects with at most 20 remembered frames. It prints
the resident memory of the process after a tenth, half and all of the frames, and the processor time of a frame in each tenth;
neither should grow.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import pkgutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import vos_lightning.networks
from vos_lightning.app.benchmark.measure import synthetic_video
from vos_lightning.app.options import at_least
from vos_lightning.checkpoints.loading import module_of_network
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork

MEMORY_FRAMES = 20
OBJECTS = 2
PERIOD = 64
"""Frames after which the picture is the first one again."""


def engine_of(name: str) -> InferenceEngine:
    """An engine on the small network of a paper, with the propagation of its module and a bounded memory."""
    module = pkgutil.resolve_name(f"vos_lightning.networks.{name}")
    network = next(n for n in vars(module).values() if _is_network(n, module.__name__))
    torch.manual_seed(0)
    built = module_of_network(f"{module.__name__}.{network.__name__}", small=True).eval().requires_grad_(False)
    propagation = built.eval_propagation
    return InferenceEngine(built.network, dataclasses.replace(propagation, policy=propagation.policy.bounded(MEMORY_FRAMES)))


def _is_network(value: object, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, VOSNetwork) and value.__module__ == module


class Cycle:
    """The same frames again and again, as many as are asked for."""

    def __init__(self, frames: Sequence[Tensor], length: int) -> None:
        self.frames, self.length = frames, length

    def __iter__(self) -> Iterator[Tensor]:
        return (self.frames[t % len(self.frames)] for t in range(self.length))


def resident() -> float:
    """Resident memory of this process in MiB, without what is free for reuse."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    names = [module.name for module in pkgutil.iter_modules(vos_lightning.networks.__path__)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"default: {' '.join(names)}")
    parser.add_argument("--frames", type=at_least(10), default=10_000)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 80), metavar=("H", "W"))
    options = parser.parse_args(argv)
    tenth = options.frames // 10
    counts = [f"MiB after {share * tenth:,}" for share in (1, 5, 10)]
    print("|", " | ".join(["network", *counts, "ms a frame in each tenth"]), "|")
    print("|", " | ".join(["---"] * 5), "|", flush=True)
    for name in options.networks or names:
        engine = engine_of(name)
        video = synthetic_video((options.size[0], options.size[1]), PERIOD, OBJECTS)
        video = dataclasses.replace(video, frames=Cycle(tuple(video.frames), options.frames), frame_names=None)
        memory, spent = [], []
        start = time.process_time()
        for prediction in engine.run(video):
            if (prediction.frame_index + 1) % tenth == 0:
                spent.append(1000 * (time.process_time() - start) / tenth)
                memory.append(resident())
                start = time.process_time()
        cells = [name, *(f"{memory[tenth_of - 1]:.0f}" for tenth_of in (1, 5, 10)), " ".join(f"{ms:.1f}" for ms in spent)]
        print("|", " | ".join(cells), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
