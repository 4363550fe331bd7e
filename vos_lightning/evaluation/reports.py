"""Tables that compare scores with the baselines, for the terminal and as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from vos_lightning.evaluation.baselines import copy_first_mask, warp_by_flow
from vos_lightning.io.files import write_atomically
from vos_lightning.metrics.protocols import describe, evaluate_video, summarize
from vos_lightning.metrics.scores import ObjectScores, Protocol
from vos_lightning.structures import LazySequence, VideoSample

Baseline = Callable[[VideoSample], Iterable[tuple[int, Tensor]]]
BASELINES: dict[str, Baseline] = {"copy": copy_first_mask, "flow": warp_by_flow}
"""``copy`` repeats the first mask; ``flow`` warps it from frame to frame by OpenCV's DIS optical flow."""


def score_baselines(videos: LazySequence[VideoSample], protocol: Protocol) -> dict[str, list[ObjectScores]]:
    """Rows of each baseline on videos with targets, with a progress bar."""
    rows: dict[str, list[ObjectScores]] = {name: [] for name in BASELINES}
    for video in track(videos, description="Baselines", console=Console(stderr=True), transient=True):
        order = sorted(video.targets)
        target = torch.stack([video.targets[t] for t in order])
        for name, baseline in BASELINES.items():
            label_maps = dict(baseline(video))
            rows[name] += evaluate_video(
                torch.stack([label_maps[t] for t in order]), target, protocol, video.name, video.unseen_ids
            )
    return rows


def report(name: str, rows: Sequence[ObjectScores], protocol: Protocol, others: dict[str, list[ObjectScores]]) -> Table:
    """J, F and J&F of every video and of all objects, beside the J&F of other methods."""
    table = Table(caption=describe(protocol, rows))
    table.add_column("video", no_wrap=True)
    for header in ("J", "F", f"J&F {name}", *(f"J&F {other}" for other in others)):
        table.add_column(header, justify="right")
    for video in [*dict.fromkeys(row.video for row in rows), None]:
        if video is None:
            table.add_section()
        of_video = summarize([row for row in rows if video in (None, row.video)])
        beside = [summarize([row for row in group if video in (None, row.video)])["J&F"] for group in others.values()]
        cells = [of_video["J"], of_video["F"], of_video["J&F"], *beside]
        table.add_row(video or "mean over objects", *(f"{100 * value:.1f}" for value in cells))
    return table


def write_scores(path: Path, content: dict[str, Any]) -> None:
    """Write scores as JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
