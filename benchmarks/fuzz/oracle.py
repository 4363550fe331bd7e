"""What a command may do with broken inputs: succeed, or say in one line what is wrong; and write nowhere but to its output."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

Command = Callable[[Sequence[str]], int]
LIMIT = 20
"""Seconds after which a command counts as hanging."""
OUTPUTS = ("--output", "--run-dir", "--json")
"""Options that name what a command writes; ``results`` without ``--output`` writes to ``--runs``."""
SEVERAL = ("evaluate", "curves", "doctor")
"""Commands that print a line for every problem."""
CODES: dict[str, tuple[int, ...]] = {"doctor": (0, 1, 2), "train": (0, 2, 71, 75), "predict": (0, 2, 3), "segment": (0, 1, 2)}
"""Exit codes of commands that have more than success (0) and an error of the user (2)."""
OWN = re.compile(r"/(?=(?:vos_lightning|data_modules)/)")
"""What comes before the packages of the library in the path of a file."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    output: str
    errors: str
    fault: str | None = None
    """What the command must not do, in one line; None if it did nothing wrong."""
    place: str = ""
    """Exception and place of a fault that is one."""


class HangError(BaseException):
    """The command takes too long."""


def judge(command: Command, argv: Sequence[str], root: Path, folder: Path, limit: float = LIMIT) -> Outcome:
    """Run a command in a folder and say what is wrong with what it did.

    Args:
        command: function that takes the arguments and returns the exit code, as ``vos_lightning.app.cli.main`` does.
        argv: name of the command and its arguments.
        root: folder in which everything is watched; it holds ``folder``.
        folder: working directory of the command.
        limit: seconds after which it counts as hanging.
    """
    before = listing(root)
    code, output, errors, raised = _run(command, argv, folder, limit)
    after = listing(root)
    place = _place(raised) if raised is not None else ""
    if isinstance(raised, HangError):
        return Outcome(code, output, errors, f"hangs for more than {limit:g} s", place)
    if raised is not None:
        return Outcome(code, output, errors, f"raises {type(raised).__name__}", place)
    return Outcome(
        code, output, errors, _complaint(code, output + errors, errors, argv, _stray(before, after, argv, root, folder))
    )


def listing(root: Path) -> dict[str, str]:
    """Every file, folder and link below a folder -> what it is: digest of a file, target of a link."""
    found = {}
    for place, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink():
                found[str(path)] = f"link to {os.readlink(path)}"
            elif path.is_dir():
                found[str(path)] = "folder"
            else:
                found[str(path)] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


def _run(command: Command, argv: Sequence[str], folder: Path, limit: float) -> tuple[int, str, str, BaseException | None]:
    output, errors = io.StringIO(), io.StringIO()
    raised: BaseException | None = None
    code = 0
    with _at(folder), _alarm(limit), _of_children() as children, warnings.catch_warnings():
        warnings.simplefilter("default")
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = output, errors
        try:
            code = command(argv)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except BaseException as error:
            raised = error
        finally:
            sys.stdout, sys.stderr = streams
    return code, output.getvalue(), errors.getvalue() + "".join(children), raised


@contextlib.contextmanager
def _of_children() -> Iterator[list[str]]:
    """What processes that the command starts, such as the stages of a training, write to standard error; known at the end."""
    found: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found.append(file.read().decode(errors="replace"))


def _complaint(code: int, text: str, errors: str, argv: Sequence[str], stray: str | None) -> str | None:
    if stray:
        return stray
    if "Traceback (most recent call last)" in text:
        return "prints a traceback"
    if code == 70:
        return "reports a fault of its own"
    if code not in CODES.get(argv[0], (0, 2)):
        return f"ends with the exit code {code}"
    lines = [
        line
        for line in errors.splitlines()
        if re.match(r"(vos|python -m vos_lightning|vos_lightning)?( [\w-]+)?(: )?error: ", line)
    ]
    if code in (2, 3) and not lines:
        return f"ends with the exit code {code} and no line that begins with 'error: '"
    if code == 2 and len(lines) > 1 and argv[0] not in SEVERAL:
        return f"prints {len(lines)} lines that begin with 'error: '"
    if code == 2 and any(len(line.partition("error: ")[2].strip()) < 5 for line in lines):
        return "prints an error without words"
    return None


def _stray(before: dict[str, str], after: dict[str, str], argv: Sequence[str], root: Path, folder: Path) -> str | None:
    """The first file that was changed, or created outside of the output."""
    named = [value for option, value in itertools.pairwise(argv) if option in OUTPUTS]
    named += [text.partition("=")[2] for text in argv if text.startswith(tuple(f"{option}=" for option in OUTPUTS))]
    if argv[0] == "train":  # the stages of a training are runs beside its directory
        named += [str(Path(value).parent) for value in named]
    if argv[0] == "results" and not named:
        named = [value for option, value in itertools.pairwise(argv) if option == "--runs"] or ["runs"]
    if argv[0] in ("train", "test", "validate", "predict") and not named:
        named = ["runs"]
    if argv[0] == "doctor" and "--fix" in argv:
        named = ["."]  # it repairs data sets and keeps what it replaces beside them
    outputs = [os.path.realpath(folder / name) for name in named]
    rewritten = argv[0] in ("train", "test", "validate", "predict") or "--fix" in argv or argv[0] == "results"
    for path in sorted({*before, *after}):
        if before.get(path) == after.get(path):
            continue
        inside = any(
            os.path.realpath(path) == output or os.path.realpath(path).startswith(f"{output}{os.sep}") for output in outputs
        )
        # A folder that leads to the output is made with it.
        leads = before.get(path) is None and after[path] == "folder" and any(o.startswith(f"{path}{os.sep}") for o in outputs)
        if leads or (inside and (path not in before or rewritten)):
            continue
        what = "changes" if path in after and path in before else "creates" if path in after else "removes"
        return f"{what} a file outside of its output: {os.path.relpath(path, root)[:80]}"
    return None


def _place(error: BaseException) -> str:
    """Exception, and the last line of the library that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if OWN.search(frame.filename) and "site-packages" not in frame.filename]
    frame = (own or frames)[-1] if frames else None
    where = f"{OWN.split(frame.filename, maxsplit=1)[-1]}:{frame.lineno}" if frame else "?"
    message = " ".join(str(error).split())[:140]
    return f"{type(error).__name__} at {where}: {message}"


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    """In another working directory, with its own experiments; environment and directory are restored."""
    environment, here = dict(os.environ), Path.cwd()
    os.chdir(folder)
    if (folder / "experiments").is_dir():
        os.environ["VOS_EXPERIMENTS"] = "experiments"
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _alarm(limit: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    # It rings again, as the first one may be caught by what it interrupts.
    signal.setitimer(signal.ITIMER_REAL, limit, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
