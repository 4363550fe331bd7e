"""Rates, schedules and groups of parameters."""

import math

import pytest
import torch
from torch import nn

from vos_lightning.modules.optimisation import Optimisation, Schedule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1, 1, 1]),
        (Schedule("cosine"), [1, 0.5 * (1 + math.cos(0.2 * math.pi)), 0.5, 0.5 * (1 + math.cos(0.9 * math.pi)), 0]),
        (Schedule("steps", milestones=(2, 9)), [1, 0.1, 0.1, 0.01, 0.01]),
        (Schedule("steps", milestones=(0.5,), factor=0.2), [1, 1, 0.2, 0.2, 0.2]),
        (Schedule("exponential", factor=0.5, period=5), [1, 1, 0.5, 0.5, 0.25]),
        (Schedule(warmup_steps=4), [0.25, 0.75, 1, 1, 1]),
        (Schedule("steps", milestones=(2,), warmup_steps=4), [0.25, 0.075, 0.1, 0.1, 0.1]),
    ],
)
def test_factors_of_a_training_of_ten_steps(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.at(step, 10) for step in (0, 2, 5, 9, 10)] == pytest.approx(expected)


def test_groups_have_their_rates_and_decay() -> None:
    network = Net()
    options = Optimisation(
        "adamw", learning_rate=1.0, weight_decay=0.1, decay_norms_and_biases=False, rate_factors={"backbone": 0.25}
    )
    optimizer = options.build(network, [{"params": list(network.parameters()), "name": "all"}])
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert found == {
        id(network.backbone[0].weight): (0.25, 0.1),
        id(network.backbone[0].bias): (0.25, 0.0),
        id(network.backbone[1].weight): (0.25, 0.0),
        id(network.backbone[1].bias): (0.25, 0.0),
        id(network.head.weight): (1.0, 0.1),
        id(network.head.bias): (1.0, 0.0),
    }
    assert [group["name"] for group in optimizer.param_groups] == ["all", "all_1", "all_2", "all_3"]
    assert len(Optimisation().build(network, [{"params": list(network.parameters())}]).param_groups) == 1


def test_a_part_that_is_left_out_has_no_rate() -> None:
    network = Net()
    network.head = None
    optimizer = Optimisation(learning_rate=1.0, rate_factors={"head": 0.5, "backbone.0": 0.25}).build(
        network, [{"params": list(network.parameters())}]
    )
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.25, 2), (1.0, 2)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Schedule(factor=0.0), "schedule.factor"),
        (lambda: Schedule(period=0), "schedule.period"),
        (lambda: Schedule(milestones=(0,)), "schedule.milestones"),
        (lambda: Optimisation(learning_rate=-1.0), "must not be negative"),
        (lambda: Optimisation(rate_factors={"neck": 0.1}).build(Net(), [{"params": []}]), "no part of the network; parts are"),
    ],
)
def test_refusals_name_the_option(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
