"""Frames a second of the small network with PyTorch and with ONNX Runtime: ``python -m benchmarks.light FRAMES MASK``.

Both engines take each frame in turn, so that other work on the machine slows them alike: the ratio says more than the seconds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

from vos_lightning import load_engine
from vos_lightning.app.backends import LITE_FOLDER
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.io.videos import open_frames
from vos_lightning.labels import as_object_map
from vos_lightning.light.engine import LightEngine

WARM_UP = 2
"""Frames that are not counted: the first ones prepare buffers."""


def main() -> None:
    """Segment a video with both engines, and print their speed and how far they differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("frames", type=Path, metavar="FRAMES", help="folder of images, or video file")
    parser.add_argument("mask", type=Path, metavar="MASK", help="mask of the first frame")
    parser.add_argument("--count", type=int, default=25, help="number of frames (default: 25)")
    arguments = parser.parse_args()
    mask = as_object_map(read_label_map(arguments.mask))
    engines = {"PyTorch": load_engine("lite", device="cpu"), "ONNX Runtime": LightEngine(LITE_FOLDER)}
    clock: dict[str, list[float]] = {name: [] for name in engines}
    processor: dict[str, list[float]] = {name: [] for name in engines}
    pixels = differing = 0
    difference = 0.0
    for t, frame in enumerate(itertools.islice(open_frames(arguments.frames), arguments.count)):
        found = {}
        for name, engine in sorted(engines.items(), reverse=t % 2 == 1):
            start, used = time.perf_counter(), time.process_time()
            found[name] = engine.step(frame, mask if t == 0 else None)
            clock[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
        one, other = found.values()
        pixels += one.label_map.numel()
        differing += int((one.label_map != other.label_map).sum())
        difference = max(difference, float((one.probabilities - other.probabilities).abs().max()))
    medians = {name: [statistics.median(times[name][WARM_UP:]) for times in (clock, processor)] for name in engines}
    for name, (seconds, used) in medians.items():
        print(f"{name}: {1 / seconds:.2f} frames a second, {used:.2f} s of processor time a frame (medians)")
    by_clock, by_processor = (a / b for a, b in zip(medians["PyTorch"], medians["ONNX Runtime"], strict=True))
    print(f"PyTorch takes {by_clock:.1f} times as long by the clock, and {by_processor:.1f} times the processor time")
    print(f"{differing} of {pixels} pixels differ; probabilities by at most {difference:.1e}")


if __name__ == "__main__":
    main()
