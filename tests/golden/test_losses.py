"""Ten training losses of every experiment's smoke recipe. A refactoring keeps them; a change of behaviour says why it does not.

Processors round differently, and training enlarges a rounding: in single precision, a loss was a twentieth off after nine steps.
So everything here is double precision, the clips are made without rounding, and the learning rate is one at which a difference
stays as small as it began. ``make test-portable`` repeats the test with the instruction sets of other processors.

``VOS_WRITE_GOLDEN=1 pytest tests/golden`` writes the losses anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.clips import random_clip
from tests.double import double_precision
from tests.recipes.experiments import SMOKE, fit
from vos_lightning.structures import ClipBatch, Proposals

FILE = Path(__file__).parent / "losses.json"
STEPS = 10
TOLERANCE = 1e-6
"""Relative: ten orders of magnitude above the rounding of double precision."""


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    with double_precision():
        yield


def proposals_of(labels: Tensor, generator: torch.Generator, count: int = 6, side: int = 28) -> Proposals:
    """Boxes ``(T*B, count, 4)`` near the two objects of every frame and anywhere else, each with a round mask."""
    batch, length, height, width = labels.shape
    boxes = torch.rand(length, batch, count, 4, generator=generator)
    size = torch.tensor([width, height])
    corner, extent = boxes[..., :2] * size * 0.6, size * (0.2 + 0.2 * boxes[..., 2:])
    for t in range(length):
        for b in range(batch):
            for n in (1, 2):
                ys, xs = torch.nonzero(labels[b, t] == n, as_tuple=True)
                if len(ys):
                    jitter = 4 * boxes[t, b, n]
                    corner[t, b, n] = torch.stack([xs.min(), ys.min()]) + jitter[:2]
                    extent[t, b, n] = torch.stack([xs.max() - xs.min(), ys.max() - ys.min()]) + jitter[2:]
    axis = torch.linspace(-1, 1, side)
    bump = (1 - axis[:, None] ** 2) * (1 - axis**2)
    strength = torch.rand(length * batch, count, 1, 1, generator=generator)
    return Proposals(
        torch.cat([corner, corner + extent], dim=-1).flatten(0, 1),
        bump * (0.6 + 0.4 * strength),
        torch.rand(length * batch, count, generator=generator),
    )


def batch_of(step: int) -> ClipBatch:
    """Two clips of three frames, one with two objects and one with one."""
    frames, labels = random_clip(batch=2, length=3, num_objects=2, size=(64, 64), seed=step)
    labels[1][labels[1] == 2] = 0
    return ClipBatch(
        frames=frames,
        label_maps=labels,
        object_valid=torch.tensor([[True, True], [True, False]]),
        video_names=("first", "second"),
        frame_indices=torch.arange(3).expand(2, 3),
        proposals=proposals_of(labels, torch.Generator().manual_seed(step)),
    )


def losses_of(name: str, directory: Path, perturbation: float = 0.0) -> list[float]:
    """Train the recipe, from weights of which each is off by a random part of at most ``perturbation``."""

    def perturb(module: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1 + perturbation * (2 * torch.rand(parameter.shape, generator=generator) - 1))

    options = (
        f"--trainer.max_steps={STEPS}",
        "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=0",
        "--model.init_args.optimisation.learning_rate=0.0003",
        # The backbone of DMN-AOA keeps its own rate of 1e-5.
        *([f"--model.init_args.optimisation.rate_factors.backbone={1 / 30}"] if name == "dmn_aoa_smoke" else []),
    )
    return fit(name, directory, *options, batches=[batch_of(step) for step in range(STEPS)], prepare=perturb).recorded_losses


@pytest.mark.parametrize("name", SMOKE)
def test_losses_are_the_recorded_ones(name: str, tmp_path: Path) -> None:
    losses = losses_of(name, tmp_path)
    recorded = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if os.environ.get("VOS_WRITE_GOLDEN"):
        FILE.write_text(json.dumps({**recorded, name: losses}, indent=1) + "\n")
        return
    assert losses == pytest.approx(recorded[name], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKE)
def test_rounding_does_not_reach_the_record(name: str, tmp_path: Path) -> None:
    """Weights that are off by a hundred million times a rounding leave the losses within the tolerance.

    Nothing enlarges the difference, and none of the choices inside (the best matches, the most uncertain points, the proposal of
    an object, the hardest pixels) is near a tie.
    """
    plain, perturbed = losses_of(name, tmp_path / "plain"), losses_of(name, tmp_path / "perturbed", perturbation=1e-8)
    assert plain != perturbed
    assert perturbed == pytest.approx(plain, rel=TOLERANCE / 10)
