"""Start runs the way a user does: ``python -m vos_lightning`` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VOS_EXPERIMENTS": str(ROOT / "experiments"), **extra}


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vos_lightning", *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str, cwd: Path) -> tuple[int, str]:
    process = start(*arguments, cwd=cwd)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
