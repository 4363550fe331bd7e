"""What the smoke recipes draw for training. A refactoring keeps it; a change of behaviour says why it does not.

The draws are whole numbers and double precision, the same on every processor. Pixels are drawn in single precision, so that they
are recorded as means and areas, with room for a few that are rounded otherwise.

``VOS_WRITE_GOLDEN=1 pytest tests/golden`` writes the record anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from data_modules.base import VOSDataModule
from tests.recipes.experiments import EXPERIMENTS, SMOKE
from tests.unit.data_modules.helpers import Recorder, trainer
from vos_lightning.structures import ClipBatch

FILE = Path(__file__).parent / "clips.json"
STEPS = 4

NAMES = [
    name
    for i, name in enumerate(SMOKE)
    if EXPERIMENTS[name].config["data"] not in [EXPERIMENTS[n].config["data"] for n in SMOKE[:i]]
]
"""One recipe of those that draw the same."""


class Keeper(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[ClipBatch] = []

    def training_step(self, batch: ClipBatch, batch_idx: int) -> torch.Tensor:
        self.kept.append(batch)
        return super().training_step(batch, batch_idx)


def described(batch: ClipBatch) -> dict[str, Any]:
    areas = torch.stack([(batch.label_maps == slot).sum(dim=(2, 3)) for slot in (0, 1, 2)], dim=-1)
    means = batch.frames.double().mean(dim=(3, 4))
    found: dict[str, Any] = {
        "videos": list(batch.video_names),
        "frames": batch.frame_indices.tolist(),
        "slots": batch.object_valid.tolist(),
        "areas": areas.flatten().tolist(),
        "colours": [round(value, 4) for value in means.flatten().tolist()],
    }
    if batch.proposals is not None:
        found["boxes"] = [round(value, 2) for value in batch.proposals.boxes.flatten().tolist()]
        found["masks"] = [round(value, 3) for value in batch.proposals.masks.mean(dim=(2, 3)).flatten().tolist()]
        found["scores"] = [round(value, 3) for value in batch.proposals.scores.flatten().tolist()]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_clips_are_the_recorded_ones(name: str, tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(VOSDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": EXPERIMENTS[name].config["data"]})).data
    module = Keeper()
    trainer(tmp_path, max_steps=STEPS, limit_val_batches=0).fit(module, datamodule=data)
    found = [described(batch) for batch in module.kept]
    recorded = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if os.environ.get("VOS_WRITE_GOLDEN"):
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted({**recorded, name: found}.items()))
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    # OpenCV 5 rounds one direction of HSV otherwise than 4.14, by up to 1 of 255, which moves the mean of a frame by up to 7e-4.
    rooms = {"areas": 3, "colours": 1e-3, "boxes": 0.05, "masks": 5e-3, "scores": 2e-3}
    for step, (batch, expected) in enumerate(zip(found, recorded[name], strict=True)):
        assert batch.keys() == expected.keys()
        for key, value in batch.items():
            wanted = pytest.approx(expected[key], rel=0, abs=rooms[key]) if key in rooms else expected[key]
            assert value == wanted, f"{key} of step {step}"
