"""How far frames of one scene and of two scenes lie apart: ``python -m benchmarks.cuts --data DIR``.

``DIR`` has the layout of DAVIS 2016, whose videos have no cuts. It prints the smallest and the largest similarity of frames that
are 1, 2, 3 and 5 apart in one video, and that of frames of two videos; ``SAME_SCENE`` should lie between.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_modules.datasets.davis import DAVISDataModule
from data_modules.videos import RecordVideos
from vos_lightning.propagation.cuts import SAME_SCENE, block_histograms, colour_bins, reduced, similarity


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuts", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout of DAVIS 2016")
    options = parser.parse_args(argv)
    data = DAVISDataModule(options.data, year=2016)
    videos = [
        [block_histograms(colour_bins(reduced(frame))) for frame in video.frames]
        for split in ("train", "val")
        for video in RecordVideos(data.records(split), with_targets=False)
    ]
    found = {
        f"one video, {step} apart": [similarity(a, b) for video in videos for a, b in zip(video, video[step:], strict=False)]
        for step in (1, 2, 3, 5)
    }
    found["two videos"] = [
        similarity(a, b)
        for one, other in itertools.permutations(videos, 2)
        for a in (one[0], one[len(one) // 2], one[-1])
        for b in (other[0], other[-1])
    ]
    print("| frames | pairs | smallest | 1 in 200 | median | largest | taken for cuts |\n|", " | ".join(["---"] * 7), "|")
    for name, values in found.items():
        low, rare, middle, high = np.quantile(values, (0, 0.005, 0.5, 1))
        cuts = sum(value < SAME_SCENE for value in values)
        print(f"| {name} | {len(values)} | {low:.3f} | {rare:.3f} | {middle:.3f} | {high:.3f} | {cuts} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
