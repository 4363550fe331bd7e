"""Cost of DMN-AOA's refinement at 480 x 854, by the widths of its parts: ``python -m benchmarks.refinement``.

Products and sums are counted (GMAC, of convolutions and of matrix products), and seconds are the best of three calls, all in one
run. ``--objects 1 3`` gives numbers of objects, ``--threads`` those of the processor.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from vos_lightning.attention.aoa import DEFAULT_ALIGNMENT
from vos_lightning.decoders.reference_refine import ReferenceFrame, ReferenceRefinement, ReferenceRefiner
from vos_lightning.structures import FeaturePyramid

FORMS: tuple[tuple[str, tuple[int, int, int], int, int | None], ...] = (
    ("features of 256 channels at every stride", (256, 256, 256), 256, None),
    ("the default: a quarter of the stage's channels", (64, 128, 256), 256, None),
    ("... and the 16 most similar positions (`f0_top_16`)", (64, 128, 256), 256, 16),
    ("... and blocks of 128 channels", (64, 128, 256), 128, None),
    ("... and both", (64, 128, 256), 128, 16),
)
"""Name, ``reduced_channels``, ``refinement.width`` and ``refinement.top_k``."""
SIZE = (30, 54)
"""Height and width of the features at stride 16."""


def measure(channels: tuple[int, int, int], width: int, top_k: int | None, num_objects: int) -> tuple[float, float, float]:
    """GMAC of convolutions and of matrix products, and seconds of one frame."""
    torch.manual_seed(0)
    refiner = ReferenceRefiner(channels, DEFAULT_ALIGNMENT, ReferenceRefinement(width=width, top_k=top_k)).eval()
    h, w = SIZE

    def pyramid() -> FeaturePyramid:
        s4, s8, s16 = (torch.rand(1, c, h * k, w * k) for c, k in zip(channels, (4, 2, 1), strict=True))
        return FeaturePyramid(s4, s8, s16)

    def reference() -> ReferenceFrame:
        features = pyramid()
        masks = torch.rand(1, num_objects, 4 * h, 4 * w)
        return ReferenceFrame(features, refiner.project(features.s16)[1], masks, torch.ones(1, num_objects, dtype=torch.bool))

    current, first, previous = pyramid(), reference(), reference()
    query, coarse = refiner.project(current.s16)[0], torch.rand(1, num_objects, 4 * h, 4 * w)
    with FlopCounterMode(display=False) as counter:
        refiner(current, query, (first,), previous, coarse)
    counts = {str(operator): count / 2e9 for operator, count in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(count for operator, count in counts.items() if "convolution" in operator)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        refiner(current, query, (first,), previous, coarse)
        seconds.append(time.perf_counter() - start)
    return convolutions, sum(counts.values()) - convolutions, min(seconds)


def main() -> None:
    """Print a row for every form and number of objects."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refinement", description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--threads", type=int, default=1)
    known = parser.parse_args()
    torch.set_num_threads(known.threads)
    print(
        "| refinement | objects | GMAC of convolutions | of moves and similarities | s a frame |\n| --- | --- | --- | --- | --- |"
    )
    with torch.no_grad():
        for name, *form in FORMS:
            for num_objects in known.objects:
                convolutions, products, seconds = measure(*form, num_objects)  # type: ignore[arg-type]
                print(f"| {name} | {num_objects} | {convolutions:.1f} | {products:.1f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
