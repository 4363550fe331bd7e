"""How the parameters of a system are optimised: optimiser, rates and schedule; one definition for all systems."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

ScheduleKind = Literal["constant", "cosine", "steps", "exponential"]
OptimizerKind = Literal["adam", "adamw"]
_KINDS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over a training, as a factor of the base rate.

    Attributes:
        kind: ``constant``; ``cosine`` to zero over the whole training; ``steps``, which multiplies by ``factor`` at every
            milestone; ``exponential``, which multiplies by ``factor`` every ``period`` steps.
        milestones: optimiser steps of the changes, or shares of the training for values below 1; for ``steps``.
        factor: factor of every change, in (0, 1]; for ``steps`` and ``exponential``.
        period: optimiser steps from one fall of the rate to the next; for ``exponential``.
        warmup_steps: number of steps over which the rate rises linearly from zero, for every kind.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    kind: ScheduleKind = "constant"
    milestones: tuple[int | float, ...] = ()
    factor: float = 0.1
    period: int = 1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"schedule.kind must be one of {get_args(ScheduleKind)}, not {self.kind!r}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"schedule.factor must be in (0, 1], not {self.factor}")
        if self.period < 1:
            raise ValueError(f"schedule.period must be at least 1 step, not {self.period}")
        if any(milestone <= 0 for milestone in self.milestones):
            raise ValueError(f"schedule.milestones must be positive, not {list(self.milestones)}")

    def at(self, step: int, total: int) -> float:
        """The factor at an optimiser step of a training of ``total`` steps."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "steps":
            passed = sum(step >= (milestone * total if milestone < 1 else milestone) for milestone in self.milestones)
            return warmup * self.factor**passed
        if self.kind == "exponential":
            return warmup * self.factor ** (step // self.period)
        if self.kind == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))
        return warmup


@dataclass(frozen=True)
class Optimisation:
    """Optimiser, rates and schedule of a training.

    Attributes:
        optimizer: ``adam``, whose weight decay is an L2 penalty, or ``adamw``, whose decay is decoupled.
        learning_rate: base learning rate.
        weight_decay: strength of the weight decay, see ``optimizer``.
        decay_norms_and_biases: whether biases and the scales and shifts of normalisation decay too.
        schedule: how all rates change over the training.
        rate_factors: factors of the base rate by the name of a part of the network, such as ``backbone``. A part that the
            network's arguments leave out is passed over.

    Raises:
        ValueError: the optimiser is unknown or a rate is negative.
    """

    optimizer: OptimizerKind = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    decay_norms_and_biases: bool = True
    schedule: Schedule = field(default_factory=Schedule)
    rate_factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer not in _KINDS:
            raise ValueError(f"optimisation.optimizer must be one of {tuple(_KINDS)}, not {self.optimizer!r}")
        if self.learning_rate < 0 or self.weight_decay < 0:
            raise ValueError("optimisation.learning_rate and weight_decay must not be negative")

    def build(self, network: nn.Module, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
        """Build the optimiser for parameter groups, which are split where rates or decay differ.

        Args:
            network: network whose parts ``rate_factors`` names.
            groups: mappings with ``params`` and further options of the optimiser's groups.

        Raises:
            ValueError: ``rate_factors`` names no part of the network.
        """
        factors = self._factors(network)
        undecayed = set() if self.decay_norms_and_biases else _norms_and_biases(network)
        split: list[dict[str, Any]] = []
        for group in groups:
            parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                parts.setdefault((factors.get(id(parameter), 1.0), id(parameter) in undecayed), []).append(parameter)
            for index, ((factor, free), parameters) in enumerate(parts.items()):
                own = {**group, "params": parameters, "lr": self.learning_rate * factor}
                if "name" in group and index:  # names are those of curves, which must differ
                    own["name"] = f"{group['name']}_{index}"
                split.append({**own, "weight_decay": 0.0} if free else own)
        return _KINDS[self.optimizer](split, lr=self.learning_rate, weight_decay=self.weight_decay)  # type: ignore[call-arg]

    def _factors(self, network: nn.Module) -> dict[int, float]:
        found: dict[int, float] = {}
        for part, factor in self.rate_factors.items():
            parent, _, name = part.rpartition(".")
            try:
                if getattr(network.get_submodule(parent), name) is None:
                    continue  # an argument of the network leaves this part out
                module = network.get_submodule(part)
            except AttributeError as error:
                parts = ", ".join(name for name, _ in network.named_children())
                raise ValueError(
                    f"optimisation.rate_factors names {part!r}, which is no part of the network; parts are {parts}"
                ) from error
            found |= {id(parameter): factor for parameter in module.parameters()}
        return found


def _norms_and_biases(network: nn.Module) -> set[int]:
    return {id(parameter) for parameter in network.parameters() if parameter.ndim <= 1}


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in parameters if parameter.requires_grad]
