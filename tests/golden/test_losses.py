"""Ten training losses of every experiment's smoke recipe. A refactoring keeps them; a change of behaviour says why it does not.

``VOS_WRITE_GOLDEN=1 pytest tests/golden`` writes them anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.recipes.experiments import SMOKE, fit

FILE = Path(__file__).parent / "losses.json"


@pytest.mark.parametrize("name", SMOKE)
def test_losses_are_the_recorded_ones(name: str, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    # A larger rate than the recipe's, so that ten steps tell networks apart.
    steps = ("--trainer.max_steps=10", "--trainer.val_check_interval=10", "--model.init_args.learning_rate=0.003")
    cli = fit(name, tmp_path, *steps, record=True)
    losses = cli.model.recorded_losses
    recorded = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if os.environ.get("VOS_WRITE_GOLDEN"):
        FILE.write_text(json.dumps({**recorded, name: losses}, indent=1) + "\n")
        return
    # Not to the last digit: another processor sums in another order, and ten steps of training enlarge that.
    assert losses == pytest.approx(recorded[name], rel=2e-3)
