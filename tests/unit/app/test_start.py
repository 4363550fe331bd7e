"""The command line starts at once: what takes seconds to import is imported by the commands that compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vos_lightning.app.cli import COMMANDS

SLOW = ("torch", "lightning", "torchvision", "torchmetrics", "jsonargparse", "cv2", "albumentations", "matplotlib", "av", "scipy")
"""Modules that take longest to import."""
HEAVY = (*SLOW, "numpy")

FORBIDDEN: dict[str, tuple[str, ...]] = {
    "--help": HEAVY,
    "list": HEAVY,
    "list emvos": HEAVY,
    "list --all": HEAVY,
    "list --plain": HEAVY,
    "results --output {folder}": HEAVY,
    "show emvos_davis17": HEAVY,
    "train --help": HEAVY,
    "slurm --help": HEAVY,
    "test --help": HEAVY,
    "validate --help": HEAVY,
    "list --help": HEAVY,
    "results --help": HEAVY,
    "show --help": HEAVY,
    "doctor --help": HEAVY,
    "submit --help": HEAVY,
    "import-checkpoint --help": HEAVY,
    "export --help": HEAVY,
    "precompute-proposals --help": HEAVY,
    # Both score files with NumPy alone, so that it is all they wait for.
    "evaluate --help": SLOW,
    "curves --help": SLOW,
    "predict --help": HEAVY,
    "segment --help": SLOW,
    "app --help": SLOW,
    "visualize --help": SLOW,
    "benchmark --help": SLOW,
}
"""Command -> modules that it does not import."""


@pytest.mark.parametrize("command", FORBIDDEN)
def test_nothing_heavy_is_imported(command: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from vos_lightning.app.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    code = error.code\n"
        f"sys.exit(code or ', '.join(name for name in {FORBIDDEN[command]} if name in sys.modules) or None)\n"
    )
    arguments = command.format(folder=tmp_path).split()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout or "published rows" in done.stderr


def test_every_help_is_looked_at() -> None:
    assert {command.split()[0] for command in FORBIDDEN if command.endswith(" --help")} == set(COMMANDS)
