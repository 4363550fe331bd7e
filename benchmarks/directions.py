"""What annotations on both sides gain: ``python -m benchmarks.directions --data DIR [--checkpoint CKPT] [--every N]``.

``DIR`` has the layout of DAVIS 2016. The truth of the first and of the last frame is given. For every video it prints the mean J
of the frames between them in each direction: ``forward`` sees the first mask, ``backward`` the last one, ``both`` the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.drift import thinned
from data_modules.datasets.davis import DAVISDataModule
from data_modules.videos import RecordVideos
from vos_lightning.checkpoints.files import LITE
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.propagation.directions import Direction
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.structures import VideoSample

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")


def mean_j(engine: InferenceEngine, video: VideoSample, direction: Direction) -> float:
    """Mean J of the frames between the first and the last one, in percent."""
    last = len(video.targets) - 1
    given = {"forward": (0,), "backward": (last,), "both": (0, last)}[direction]
    masks = {t: (video.targets[t] > 0).byte() for t in given}
    scores = []
    for prediction in engine.segment(dataclasses.replace(video, annotations={}), masks, direction=direction):
        if 0 < prediction.frame_index < last:
            one, other = prediction.label_map > 0, video.targets[prediction.frame_index] > 0
            union = int((one | other).sum())
            scores.append(int((one & other).sum()) / union if union else 1.0)
    return 100 * sum(scores) / len(scores)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.directions", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout of DAVIS 2016")
    parser.add_argument("--checkpoint", default=LITE, help=f"default: {LITE}")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th frame alone")
    parser.add_argument("--short-side", type=int, metavar="N", help="short side inside the network; default: that of the run")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    engine = load_engine(options.checkpoint, device=options.device, short_side=options.short_side or "checkpoint")
    data = DAVISDataModule(options.data, year=2016)
    videos = [video for split in ("train", "val") for video in RecordVideos(data.records(split), with_targets=True)]
    print("| video |", " | ".join(DIRECTIONS), "|\n|", " | ".join(["---"] * 4), "|")
    rows = []
    for video in videos:
        few = thinned(video, options.every)
        rows.append([mean_j(engine, few, direction) for direction in DIRECTIONS])
        print(f"| {video.name} |", " | ".join(f"{j:.1f}" for j in rows[-1]), "|", flush=True)
    print("| mean |", " | ".join(f"{sum(column) / len(column):.1f}" for column in zip(*rows, strict=True)), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
