"""Kill a staged training again and again, and compare what it ends with to the training that nobody has killed.

``python -m benchmarks.kills --kills 50 --seed 0`` trains two small stages on synthetic videos, with a save every three steps and
a validation every six. Each start is ended by SIGKILL, SIGTERM or SIGUSR1 at a random moment: while it starts, while it writes
a checkpoint, or some time after that, in a step or a validation. The command is started again until it is finished, and the
training begins anew until the number of kills is reached. Weights, state of the optimiser, scores of all validations, and the
best checkpoint have to be equal bit by bit. The exit code is 1 if they are not.
"""

from __future__ import annotations

import argparse
import collections
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vos_lightning.app.runs import write_text
from vos_lightning.callbacks.stopping import STOPPED
from vos_lightning.checkpoints.files import LAST

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = (
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=6",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--last_checkpoint.every_n_train_steps=3",
    "--data.init_args.num_val_videos=4",
    "--panels.videos=[]",
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each kill, and whether the trainings agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no other start after this time")
    known = parser.parse_args(argv)
    end = time.monotonic() + 60 * known.minutes
    draw = random.Random(known.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_text(place / "staged.yaml", yaml.safe_dump({"stages": ["emvos_smoke", "emvos_smoke"]}))
        expected = _outcome(_train_without_kills(place / "straight"))
        kills, trainings, moments = 0, 0, collections.Counter[str]()
        while kills < known.kills and time.monotonic() < end:
            trainings += 1
            directory = place / f"killed{trainings}"
            while kills < known.kills and time.monotonic() < end:
                moment = _start_and_kill(directory, draw, kills + 1)
                if moment is None:
                    break
                kills += 1
                moments[moment] += 1
            differences = _differences(expected, _outcome(_train_without_kills(directory)))
            if differences:
                print(f"training {trainings} differs after {kills} kills: " + "; ".join(differences))
                return 1
            print(f"training {trainings} is equal to the one without kills", flush=True)
    counts = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
    print(
        f"{kills} kills in {trainings} trainings ({counts}): weights, optimiser, scores and best checkpoints are equal bit by bit"
    )
    return 0


def _command(directory: Path) -> subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "vos_lightning",
        "train",
        str(directory.parent / "staged.yaml"),
        "--run-dir",
        "run",
        *OPTIONS,
    ]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "VOS_EXPERIMENTS": str(ROOT / "experiments"), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=directory, env=variables, text=True, start_new_session=True, **pipes)


def _train_without_kills(directory: Path) -> list[Path]:
    """Directories of the stages, which are finished."""
    process = _command(directory)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the training ended with {process.returncode}:\n{output}")
    stages = [directory / "emvos_smoke"] if (directory / "emvos_smoke").is_dir() else []
    return stages + sorted(path for path in directory.glob("emvos_smoke-*"))


def _start_and_kill(directory: Path, draw: random.Random, count: int) -> str | None:
    """Where the training was when it was killed; None if it had ended before."""
    number, where = draw.choice(SIGNALS), draw.choice(("start", "save", "later", "later"))
    saves, delay = draw.randrange(1, 4), draw.random()
    process, before = _command(directory), _saved(directory)
    begin = time.monotonic()
    if where == "start":
        while time.monotonic() < begin + 8 * delay and process.poll() is None:
            time.sleep(0.001)
    else:
        while saves and process.poll() is None:
            time.sleep(0.0005)
            now = _saved(directory)
            if where == "save" and saves == 1 and _is_saving(directory):
                break
            saves -= now != before
            before = now
        time.sleep(0.6 * delay if where == "later" else 0.01 * delay)
    if process.poll() is not None:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the training ended by itself with {process.returncode}:\n{output}")
        return None
    # SIGKILL takes all processes of the command, as a cluster does; the others go to the command, which passes them on.
    os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
    sent = time.monotonic()
    output, _ = process.communicate()
    ended = time.monotonic()
    if where == "later":
        where = "in a validation" if _is_validating(directory) else "in a step"
    else:
        where = "in a save" if where == "save" else "at the start"
    print(
        f"{count:3d} {number.name:8s} {where:15s} {sent - begin:5.1f} s after its start: exit code {process.returncode} "
        f"after {ended - sent:.1f} s",
        flush=True,
    )
    allowed = (-number,) if number == signal.SIGKILL else (STOPPED, -number, 0)
    if process.returncode not in allowed:
        raise RuntimeError(f"the training ended with {process.returncode} after {number.name}:\n{output}")
    return where


def _saved(directory: Path) -> tuple[int, ...]:
    return tuple(path.stat().st_mtime_ns for path in directory.glob(f"emvos_smoke*/checkpoints/{LAST}"))


def _is_saving(directory: Path) -> bool:
    return any(directory.glob("emvos_smoke*/checkpoints/.*.tmp"))


def _is_validating(directory: Path) -> bool:
    """Whether the stage that was trained last has a validation to repeat."""
    places = sorted(directory.glob(f"emvos_smoke*/checkpoints/{LAST}"), key=lambda path: path.stat().st_mtime_ns)
    return bool(places) and bool(torch.load(places[-1], weights_only=True)["callbacks"]["LastCheckpoint"]["validation_due"])


def _outcome(stages: list[Path]) -> list[dict[str, Any]]:
    """All of a training that must not depend on kills, a dictionary for each stage."""
    found = []
    for stage in stages:
        checkpoints = {path.name: _content(path) for path in sorted(stage.glob("checkpoints/best*.ckpt"))}
        found.append({"last": _content(stage / "checkpoints" / LAST), "best": checkpoints, "scores": _scores(stage)})
    return found


def _content(path: Path) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    best: dict[str, Any] = next((state for name, state in content["callbacks"].items() if "'monitor': 'val_jf'" in name), {})
    names = {Path(name).name: float(score) for name, score in best.get("best_k_models", {}).items()}
    kept = {key: content[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    return {**kept, "best": names}


def _scores(stage: Path) -> dict[str, set[str]]:
    """Step and name of a score -> its values in the logs of all starts, which have to be one."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for path in stage.glob("logs/start_*/metrics.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name.startswith("val") and value:
                        found[f"{row['step']} {name}"].add(value)
    return dict(found)


def _differences(expected: Any, found: Any, where: str = "") -> list[str]:
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return [] if torch.equal(expected, found) else [f"{where} differs"]
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            return [f"{where} has {sorted(map(str, found.keys() ^ expected.keys()))} in one of them only"]
        return [line for key in expected for line in _differences(expected[key], found[key], f"{where}/{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for place, (one, other) in pairs for line in _differences(one, other, f"{where}/{place}")]
    return [] if expected == found else [f"{where} is {found} instead of {expected}"]


if __name__ == "__main__":
    sys.exit(main())
