"""Time of J and F against the plain oracle, on one process and one thread: ``python -m benchmarks.metrics``.

The label maps are synthetic: one object of DAVIS size that moves and deforms at 480 x 854, and a prediction that follows it with
errors. Both sides score the same maps in memory (reading files is left out), and the values are compared as well. Processor time
is measured, which on one thread is the time that passes, less what other programs take.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from tests.oracles import davis_metrics as oracle
from vos_lightning.io.files import write_atomically
from vos_lightning.metrics.functional import region_and_boundary

HEIGHT, WIDTH, CHUNK = 480, 854, 50


def draw(centre: tuple[float, float], radius: float, phase: float) -> np.ndarray:
    """A wobbling blob, filled with 1."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    r = radius * (1 + 0.2 * np.sin(3 * angle + phase) + 0.08 * np.sin(11 * angle - 2 * phase))
    points = np.stack([centre[0] + 1.3 * r * np.cos(angle), centre[1] + r * np.sin(angle)], axis=1)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask


def synthetic_chunks(num_frames: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Predictions and truth, ``CHUNK`` frames at a time: 1376 frames at once would be half a gigabyte each."""
    for start in range(0, num_frames, CHUNK):
        pairs = []
        for t in range(start, min(start + CHUNK, num_frames)):
            centre = (WIDTH * (0.5 + 0.35 * np.sin(t / 40)), HEIGHT * (0.5 + 0.25 * np.cos(t / 29)))
            radius = 90 + 35 * np.sin(t / 17)
            shifted = (centre[0] + 8 * np.sin(t / 5), centre[1] + 5 * np.cos(t / 7))
            pairs.append((draw(shifted, radius * 1.05, t / 9 + 0.15), draw(centre, radius, t / 9)))
        preds, target = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
        yield preds, target


def main() -> None:
    """Measure, print and optionally save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1376, help="frames that ours scores (1376: DAVIS 2016 val)")
    parser.add_argument("--oracle-frames", type=int, default=350, help="frames that the oracle scores; its time is scaled up")
    parser.add_argument("--full", action="store_true", help="let the oracle score all frames")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    oracle_limit = arguments.frames if arguments.full else min(arguments.oracle_frames, arguments.frames)
    ours_seconds = oracle_seconds = 0.0
    oracle_frames = 0
    values, largest_difference = [], 0.0
    for preds, target in synthetic_chunks(arguments.frames):
        started = time.process_time()
        ours = np.concatenate(region_and_boundary(preds, target, (1,)))
        ours_seconds += time.process_time() - started
        values.append(ours)
        count = min(len(preds), oracle_limit - oracle_frames)
        if count > 0:
            p, t = preds[:count].numpy(), target[:count].numpy()
            started = time.process_time()
            plain = [
                oracle.over_video(measure, p, t, (1,))[0] for measure in (oracle.region_similarity, oracle.boundary_accuracy)
            ]
            oracle_seconds += time.process_time() - started
            oracle_frames += count
            largest_difference = max(largest_difference, float(np.abs(ours[:, :count] - np.array(plain)).max()))

    scaled = oracle_seconds * arguments.frames / oracle_frames
    j, f = np.concatenate(values, axis=1).mean(axis=1).tolist()
    result = {
        "frames": arguments.frames,
        "size": [HEIGHT, WIDTH],
        "threads": 1,
        "J": j,
        "F": f,
        "largest_difference": largest_difference,
        "ours_seconds": ours_seconds,
        "oracle_seconds": scaled,
        "oracle_frames_timed": oracle_frames,
        "oracle_to_ours": scaled / ours_seconds,
    }
    how = "measured" if oracle_frames == arguments.frames else f"scaled from {oracle_frames} frames"
    print(f"{arguments.frames} frames of {HEIGHT} x {WIDTH}, one object, one thread; mean J {j:.3f}, mean F {f:.3f}")
    print(f"ours   {ours_seconds:8.2f} s  {1e3 * ours_seconds / arguments.frames:6.2f} ms a frame")
    print(f"oracle {scaled:8.2f} s  {1e3 * oracle_seconds / oracle_frames:6.2f} ms a frame  ({how})")
    print(f"oracle / ours = {result['oracle_to_ours']:.1f}; largest difference of a value {largest_difference:.1e}")
    if arguments.json:
        write_atomically(arguments.json, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
