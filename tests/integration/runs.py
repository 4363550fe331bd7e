"""Start runs in processes of their own: the way a user does, or without the seconds that every import takes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Its processes are copies of one that has imported everything and done nothing else.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "tests.double",
        "tests.networks",
        "vos_lightning.app.lightning_cli",
        "vos_lightning.app.training",
        "data_modules.datasets.synthetic",
        "torch._dynamo",
    ]
)


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "VOS_EXPERIMENTS": str(ROOT / "experiments"), **extra}


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """``python -m vos_lightning``."""
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


class Started:
    """The same command, in double precision, in a process that does not have to import anything.

    Signals and exit codes are those of any process.

    Args:
        arguments: of the command.
        cwd: where it runs.
        signal_after: a number of checkpoints and the signal that the process gets when it has written as many.
        variables: of its environment.
    """

    def __init__(self, *arguments: str, cwd: Path, signal_after: tuple[int, int] | None = None, **variables: str) -> None:
        self._output = cwd / f"output-{len(list(cwd.glob('output-*')))}.txt"
        self._output.touch()
        settings = (arguments, cwd, environment(**variables), self._output, signal_after)
        self._process = _SERVER.Process(target=_main, args=settings)
        self._process.start()

    def wait(self) -> tuple[int | None, str]:
        """Exit code, the negative number of the signal that ended it, and what it printed."""
        self._process.join(timeout=300)
        return self._process.exitcode, self._output.read_text()


def quick_run(*arguments: str, cwd: Path) -> tuple[int | None, str]:
    return Started(*arguments, cwd=cwd).wait()


def run_on_two(*arguments: str, cwd: Path) -> tuple[int | None, str]:
    """One process a rank, as a cluster or ``torchrun`` starts them: the first exit code but 0, and all that was printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    options = ("--trainer.devices=2", "--trainer.strategy=ddp")
    started = [Started(*arguments, *options, cwd=cwd, **cluster, LOCAL_RANK=str(rank)) for rank in range(2)]
    ended = [process.wait() for process in started]
    return next((code for code, _ in ended if code != 0), 0), "".join(output for _, output in ended)


def _main(
    arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], output: Path, signal_after: tuple[int, int] | None
) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method("fork", force=True)  # the workers of loaders, as in any other process
    if signal_after:
        _signal_after(*signal_after)
    from tests.double import double_precision
    from vos_lightning.app.cli import main

    # So that two trainings are compared by more than what rounding makes of them.
    with double_precision():
        sys.exit(main(arguments))


def _signal_after(count: int, number: int) -> None:
    """Watched from outside, a short training may have ended before the signal arrives."""
    move, written = os.replace, 0

    def counting(source: str, target: str) -> None:
        nonlocal written
        move(source, target)
        written += Path(target).name == "last.ckpt"
        if written == count:
            os.kill(os.getpid(), number)

    os.replace = counting  # type: ignore[assignment]
