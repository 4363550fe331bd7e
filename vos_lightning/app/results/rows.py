"""Published rows, and measured scores."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vos_lightning.app.experiments import Experiment, experiment_files, load_experiments
from vos_lightning.app.runs import weights_kind


@dataclass(frozen=True)
class Score:
    """One measured evaluation."""

    path: Path
    experiment: str
    metrics: Mapping[str, float]
    """Scores in percent, by name."""
    evaluation: Mapping[str, Any]
    """A mapping with ``date``, ``commit``, ``hardware``, ``data``, ``departures`` and ``trained``."""
    fingerprint: str
    description: str
    """The protocol in words, or the data set of an evaluation server."""
    server: bool = False

    @property
    def trainings(self) -> list[Mapping[str, Any]]:
        """Records of the trainings behind the checkpoint, the last one first."""
        found = []
        known = self.evaluation.get("trained") or {}
        while known.get("run"):
            found.append(known["run"])
            known = found[-1].get("initial") or {}
        return found

    @property
    def weights(self) -> str:
        """Which weights were evaluated: the last ones, the best ones, or the step of any others."""
        trained = self.evaluation.get("trained") or {}
        return weights_kind(trained.get("checkpoint", "")) or (f"step {trained['step']}" if "step" in trained else "")

    @property
    def seed(self) -> str:
        """Seeds of all trainings."""
        return json.dumps([training.get("seed") for training in self.trainings])


@dataclass
class Row:
    """A published row and what was measured for it."""

    experiment: Experiment
    ours: list[Score] = field(default_factory=list)
    others: list[tuple[Score, str]] = field(default_factory=list)
    """Scores of the experiment that do not count for the row, with the reason."""

    @property
    def published(self) -> Mapping[str, Any]:
        """The ``published`` section of the experiment."""
        return self.experiment.published

    @property
    def speed(self) -> str:
        """The published speed in frames per second, and the hardware that it was measured on."""
        values = [str(self.published[key]) for key in ("fps", "hardware") if key in self.published]
        return ", ".join(values) if "fps" in self.published else ""

    def cells(self) -> list[tuple[str, float, str, str]]:
        """Metric, published value, our value (mean and deviation over seeds), difference; empty texts if nothing was measured."""
        cells = []
        for metric, value in self.published["metrics"].items():
            measured = [score.metrics[metric] for score in self.ours if math.isfinite(score.metrics.get(metric, math.nan))]
            if not measured:
                cells.append((metric, float(value), "", ""))
                continue
            mean = statistics.fmean(measured)
            spread = f" ± {statistics.stdev(measured):.1f} ({len(measured)} seeds)" if len(measured) > 1 else ""
            cells.append((metric, float(value), f"{mean:.1f}{spread}", f"{mean - float(value):+.1f}"))
        return cells


def published_rows() -> list[Row]:
    """Every published row, by paper and table."""
    experiments = load_experiments(experiment_files())
    return [Row(experiment) for experiment in sorted((e for e in experiments if e.published), key=published_order)]


def published_order(experiment: Experiment) -> tuple[Any, ...]:
    """Sorting key: paper, table, data set; otherwise rows keep the order of their files."""
    published = experiment.published
    table = str(published.get("table", ""))
    number = re.search(r"\d+", table)
    return (str(published.get("paper", "")), int(number[0]) if number else 0, table, str(published.get("dataset", "")))
