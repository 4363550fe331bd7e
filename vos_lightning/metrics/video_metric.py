"""A metric that scores videos by a protocol during validation, over all processes of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from vos_lightning.metrics.functional import as_array
from vos_lightning.metrics.protocols import check_protocol, evaluate_video, summarize, unique_rows
from vos_lightning.metrics.scores import ObjectScores, Protocol


class VideoMetric(Metric):
    """J and F of whole videos by a protocol, averaged over objects (and G, for YouTube-VOS).

    Processes may see different numbers of videos, none at all, or the same video (a distributed sampler repeats some). Every
    object counts once.

    Args:
        protocol: how videos are scored, see :data:`vos_lightning.metrics.scores.Protocol`.
        kwargs: arguments of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = True
    lines: list[Tensor] | Tensor

    def __init__(self, protocol: Protocol, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_protocol(protocol)
        self.protocol: Protocol = protocol
        # Rows are exchanged between processes as bytes, one line of JSON each, with names of any length and full precision.
        self.add_state("lines", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all videos."""
        super().reset()
        # Without this, torchmetrics gathers an empty *float* tensor from a process without videos, which does not match the
        # others.
        self.lines = [torch.zeros(0, dtype=torch.uint8, device=self.device)]

    def update(
        self, preds: UInt8[Tensor, "T H W"], target: UInt8[Tensor, "T H W"], video: str, unseen_ids: Iterable[int] = ()
    ) -> None:
        """Score one whole video.

        Args:
            preds: predicted label maps of all annotated frames in original ids.
            target: true label maps of the same frames.
            video: name of the video, unique in the data set.
            unseen_ids: objects whose category is not in the training set (YouTube-VOS).
        """
        rows = evaluate_video(as_array(preds), as_array(target), self.protocol, video, unseen_ids)
        encoded = "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()
        assert isinstance(self.lines, list)
        self.lines.append(torch.frombuffer(bytearray(encoded), dtype=torch.uint8).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Means over the objects of all processes; NaN before any video.

        Returns:
            Scalars named as in :func:`summary_keys`.
        """
        return {key: torch.tensor(value, device=self.device) for key, value in summarize(self._decoded(), self.protocol).items()}

    def rows(self) -> list[ObjectScores]:
        """Scores of every object of all processes; in a distributed run, every process must call this method."""
        with self.sync_context():
            return self._decoded()

    def _decoded(self) -> list[ObjectScores]:
        content = bytes(dim_zero_cat(self.lines).cpu().numpy()).decode()
        return unique_rows(ObjectScores(**json.loads(line)) for line in content.splitlines())
