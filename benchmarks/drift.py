"""How good the drift flags are: ``python -m benchmarks.drift --data DIR [--checkpoint CKPT | --predictions DIR]``.

``DIR`` has the layout of DAVIS 2016; every frame has a ground truth, and no video has more than one object. For every split and
every source of predictions it prints how many of the frames with J < 0.5 are flagged (recall), how many of the flagged frames
have J < 0.5 (precision), and how many of the frames that are good (J >= 0.75) are flagged (false alarms).

Without a checkpoint or predictions, the sources need no network: both baselines, and masks made from the truth. ``truth`` is the
truth itself, ``rough`` has a contour that a good tracker might have; ``shrinking``, ``growing`` and ``sliding`` get slowly worse.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from data_modules.datasets.davis import DAVISDataModule
from data_modules.videos import RecordVideos
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.evaluation.baselines import copy_first_mask, warp_by_flow
from vos_lightning.io.label_maps import read_label_map
from vos_lightning.predictions.drift import DriftIndex
from vos_lightning.structures import FramePrediction, VideoSample

BAD, GOOD = 0.5, 0.75
Source = Callable[[VideoSample], Iterator[FramePrediction]]


def judge(video: VideoSample, predictions: Iterator[FramePrediction]) -> tuple[list[float], list[frozenset[str]]]:
    """J and flags of the object, frame by frame, without the frame that the mask is given in.

    Args:
        video: of one object, which is given in the first frame.
        predictions: one a frame.
    """
    index = DriftIndex()
    scores, flags = [], []
    for t, prediction in enumerate(predictions):
        (row,) = index.rows(str(t), prediction)
        one, other = prediction.label_map > 0, video.targets[t] > 0
        union = int((one | other).sum())
        scores.append(int((one & other).sum()) / union if union else 1.0)
        flags.append(frozenset(row.flags.split()))
    return scores[1:], flags[1:]


def as_prediction(index: int, frame: torch.Tensor, mask: np.ndarray, confidence: float = 1.0) -> FramePrediction:
    """A prediction of object 1 whose pixels are all equally sure; its mask is given in the first frame."""
    label_map = torch.from_numpy(mask.astype(np.uint8))
    return FramePrediction(index, frame, label_map, label_map[None] * confidence, (1,), (1,) if index == 0 else ())


def thinned(video: VideoSample, every: int) -> VideoSample:
    """The video with every ``every``-th frame alone: faster to measure, and harder to follow."""
    names = video.frame_names[::every]
    return dataclasses.replace(
        video,
        frames=list(itertools.islice(video.frames, None, None, every)),
        targets={new: video.targets[new * every] for new in range(len(names))},
        frame_names=names,
        required_frames=None,
    )


# Sources --------------------------------------------------------------------------------------------------------------


def simulated(kind: str) -> Source:
    """Masks made from the truth: ``truth``, ``rough``, ``shrinking``, ``growing`` or ``sliding``."""

    def run(video: VideoSample) -> Iterator[FramePrediction]:
        rng = np.random.default_rng(0)
        for t, frame in enumerate(video.frames):
            mask = (video.targets[t] > 0).numpy()
            yield as_prediction(t, frame, mask if t == 0 else _worse(kind, mask, t / video.length, rng))

    return run


def _worse(kind: str, mask: np.ndarray, progress: float, rng: np.random.Generator) -> np.ndarray:
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    radius = float(np.sqrt(mask.sum() / np.pi))
    if kind == "rough":
        noise = cv2.GaussianBlur(rng.standard_normal(mask.shape).astype(np.float32), (0, 0), max(2.0, radius * 0.08))
        signed = depth - cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
        return np.asarray(signed + 0.05 * radius * (noise / noise.std() + rng.uniform(-1, 1)) > 0)
    if kind == "shrinking":
        return np.asarray(mask & (depth > progress * depth.max()))
    if kind == "growing":
        return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) <= progress * radius)
    if kind == "sliding":
        move = np.float32([[1, 0, 2 * radius * progress], [0, 1, 0.6 * radius * progress]])
        return cv2.warpAffine(mask.astype(np.uint8), move, mask.shape[::-1]) > 0
    return mask


def baseline(function: Callable[[VideoSample], Iterator[tuple[int, torch.Tensor]]]) -> Source:
    """A function of :mod:`vos_lightning.evaluation.baselines`."""
    return lambda video: (
        as_prediction(t, frame, label_map.numpy() > 0)
        for frame, (t, label_map) in zip(video.frames, function(video), strict=True)
    )


def stored(folder: Path) -> Source:
    """``<folder>/<video>/*.png``, one a frame; their confidence is not known and taken as 1."""

    def run(video: VideoSample) -> Iterator[FramePrediction]:
        for t, frame in enumerate(video.frames):
            yield as_prediction(t, frame, read_label_map(folder / video.name / f"{video.name_of(t)}.png").numpy() > 0)

    return run


# Table ----------------------------------------------------------------------------------------------------------------


def table_row(name: str, scores: Sequence[float], flags: Sequence[frozenset[str]]) -> str:
    """One source on one split."""
    score, flagged = np.array(scores), np.array([bool(f) for f in flags])
    bad, good = score < BAD, score >= GOOD

    def ratio(hits: np.ndarray, among: np.ndarray) -> str:
        return f"{int((hits & among).sum()):4d}/{int(among.sum()):4d} {(hits & among).sum() / max(among.sum(), 1):5.2f}"

    each = []
    for flag in sorted(frozenset().union(*flags)):
        has = np.array([flag in f for f in flags])
        each.append(f"{flag} {int((has & bad).sum())}+{int((has & ~bad).sum())}")
    return (
        f"{name:24} J {score.mean():.2f}  recall {ratio(flagged, bad)}  precision {ratio(bad, flagged)}  "
        f"false alarms {ratio(flagged, good)}  [{', '.join(each)}]"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder in the layout of DAVIS 2016")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[])
    parser.add_argument("--predictions", type=Path, nargs="*", default=[])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="look at every N-th frame alone")
    arguments = parser.parse_args(argv)
    sources: dict[str, Source] = {str(path): load_engine(path, device="cpu").run for path in arguments.checkpoint}
    sources.update({str(path): stored(path) for path in arguments.predictions})
    if not sources:
        sources = {kind: simulated(kind) for kind in ("truth", "rough", "shrinking", "growing", "sliding")}
        sources |= {"copy": baseline(copy_first_mask), "flow": baseline(warp_by_flow)}
    print("flags in brackets: frames with J < 0.5 + other frames")
    for split in arguments.splits:
        videos = RecordVideos(DAVISDataModule(arguments.data, year=2016).records(split), with_targets=True)
        for name, source in sources.items():
            scores, flags = [], []
            for video in (thinned(video, arguments.every) for video in videos):
                one, other = judge(video, source(video))
                scores += one
                flags += other
            print(f"{split:6}", table_row(name, scores, flags), flush=True)
    print(f"{time.process_time():.0f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
