"""Memory and time of many objects: ``python -m benchmarks.objects [--objects 1 11 200] [--size 240 432]``.

The network that comes with the library segments a few frames of a synthetic video, on one thread, with its objects a part at a
time and, with ``--at-once``, all together. It prints the growth of the resident memory, the processor time of a frame, and what
the last number of objects would take by the times of the first two: what objects share, and the rest once for each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from unittest import mock

import torch

from vos_lightning import load_engine, mask_ops
from vos_lightning.app.benchmark.measure import PeakMemory, synthetic_video
from vos_lightning.app.options import at_least

ALL = 2**60
"""Bytes of a part that every computation fits into."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objects", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--objects", type=at_least(1), nargs="+", default=[1, 11, 200], metavar="N")
    parser.add_argument("--size", type=at_least(1), nargs=2, default=(240, 432), metavar=("H", "W"))
    parser.add_argument("--frames", type=at_least(1), default=3)
    parser.add_argument("--at-once", action="store_true", help="also all objects at once, without a bound of memory")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    engine = load_engine("lite", device="cpu", short_side=None)
    print("| | objects | peak memory | s a frame |")
    print("|", " | ".join(["---"] * 4), "|", flush=True)
    for title, size_of_part in (("a part of the objects at a time", mask_ops.PART_BYTES), ("all objects at once", ALL)):
        if size_of_part == ALL and not options.at_once:
            continue
        seconds = []
        for count in options.objects:
            video = synthetic_video((options.size[0], options.size[1]), options.frames, count)
            with mock.patch.object(mask_ops, "PART_BYTES", size_of_part), PeakMemory(engine.network.device) as memory:
                start = time.process_time()
                for _ in engine.run(video):
                    pass
                seconds.append((time.process_time() - start) / options.frames)
            engine.reset()
            peak = "unknown" if memory.peak is None else f"{memory.peak / 2**20:.0f} MiB"
            print(f"| {title} | {count} | {peak} | {seconds[-1]:.2f} |", flush=True)
        if len(seconds) > 2:
            one, several = options.objects[:2]
            of_one = (seconds[1] - seconds[0]) / (several - one)
            expected = seconds[0] + (options.objects[-1] - one) * of_one
            print(f"By the times of {one} and {several} objects, an object takes {of_one:.4f} s, and {options.objects[-1]} would "
                  f"take {expected:.2f} s; they take {seconds[-1] / expected:.2f} times that.", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
