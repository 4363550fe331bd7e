"""The command line starts at once: what takes seconds to import is imported by the commands that compute."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "lightning",
    "torchvision",
    "torchmetrics",
    "jsonargparse",
    "cv2",
    "numpy",
    "albumentations",
    "matplotlib",
    "av",
)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list"], ["list", "--plain"], ["show", "emvos_davis17"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from vos_lightning.app.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    code = error.code\n"
        f"sys.exit(code or ', '.join(name for name in {HEAVY} if name in sys.modules) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
