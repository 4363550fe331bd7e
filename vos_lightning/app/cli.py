"""The command line: ``vos COMMAND``, or ``python -m vos_lightning COMMAND``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from vos_lightning.callbacks.stopping import LOST_PROCESS, LostProcessError
from vos_lightning.io.files import one_line

FAULT = 70
"""Exit code after a fault of the library (``EX_SOFTWARE`` of ``sysexits.h``)."""
MAX_MESSAGE = 500
"""Most characters of a message that the library did not write itself."""


def _predict(argv: Sequence[str]) -> int:
    """``predict EXP``; the user's own videos had the options ``--video`` and ``--masks`` here before they got a command."""
    if any(text.partition("=")[0] in ("--video", "--masks") for text in argv) and argv[0].startswith("-"):
        raise ValueError("your own videos are segmented by: vos segment VIDEO --mask MASK --output DIR")
    return _command("vos_lightning.app.scoring", "predict")(argv)


def _command(module: str, *given: str) -> Callable[[Sequence[str]], int]:
    """The ``main`` of a module, which is imported when the command is run: the modules of other commands are not."""

    def call(argv: Sequence[str]) -> int:
        entry: Callable[..., int] = importlib.import_module(module).main
        return entry(*given, argv)

    return call


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_command("vos_lightning.app.training"), "train an experiment, or continue where it stopped"),
    "slurm": (
        _command("vos_lightning.app.slurm"),
        "submit a training to SLURM, or print the job: slurm EXP --nodes 1 --gpus 4 [--dry-run]",
    ),
    "test": (_command("vos_lightning.app.scoring", "test"), "score an experiment's test videos with its checkpoint"),
    "validate": (
        _command("vos_lightning.app.scoring", "validate"),
        "score an experiment's validation videos with its checkpoint",
    ),
    "segment": (
        _command("vos_lightning.app.segment"),
        "cut objects out of your own videos: segment VIDEO --mask M --output D [--formats overlay webm coco ...]",
    ),
    "app": (
        _command("vos_lightning.app.browser.command"),
        "the same in the browser: app [VIDEO]; mark objects, follow, correct, export",
    ),
    "predict": (_predict, "segment an experiment's videos with its checkpoint"),
    "visualize": (
        _command("vos_lightning.app.visualize"),
        "draw score maps and other intermediate results: visualize EXP --video NAME --frame T --output D",
    ),
    "benchmark": (
        _command("vos_lightning.app.benchmark.command"),
        "seconds a frame and peak memory: benchmark EXP ... --objects 1 3 --precision 32-true bf16-mixed",
    ),
    "evaluate": (
        _command("vos_lightning.evaluation.command"),
        "score a folder of PNGs: evaluate --truth D --predictions D --protocol davis17|...",
    ),
    "curves": (
        _command("vos_lightning.visualization.curves"),
        "J of every frame over time: curves --truth D --predictions NAME=D ... --output D",
    ),
    "import-checkpoint": (
        _command("vos_lightning.checkpoints.released.command"),
        "turn the authors' weights into a checkpoint: import-checkpoint FILE --paper emvos|pmvos|stcn|stm --output OUT.ckpt",
    ),
    "export": (
        _command("vos_lightning.app.export"),
        "turn a checkpoint into a small file to pass on, with a model card: export CKPT --output OUT.safetensors",
    ),
    "precompute-proposals": (
        _command("vos_lightning.app.precompute"),
        "find object proposals, one file a video: precompute-proposals --images D --output D --pretrained COCO_V1",
    ),
    "doctor": (
        _command("vos_lightning.app.doctor"),
        "check data sets and proposals on disk: doctor DIR ..., or doctor EXP for those of an experiment [--fix] [--json]",
    ),
    # Data sets are referred to by name only, as in experiments: the library does not import them.
    "submit": (_command("data_modules.submission.command"), "check predictions and zip them for an evaluation server"),
    "results": (
        _command("vos_lightning.app.results.command"),
        "compare published results with the runs' scores, as Markdown and HTML",
    ),
    "list": (
        _command("vos_lightning.app.results.listing"),
        "list the papers, or their experiments with the published results that they reproduce: list PAPER ...",
    ),
    "show": (_command("vos_lightning.app.show"), "print the composed configuration of an experiment"),
}


def main(argv: Sequence[str]) -> int:
    """Run a command.

    Returns:
        The exit code of the command; 2 after an error of the user, and 70 after a fault of the library, each with one line on
        standard error. With ``VOS_TRACEBACK`` set, errors are raised.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        _help()
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        return _fail(f"there is no command {name!r}: " + (f"did you mean {close[0]}?" if close else f"use {', '.join(COMMANDS)}"))
    if os.environ.get("VOS_TRACEBACK"):
        return COMMANDS[name][0](rest)
    try:
        return COMMANDS[name][0](rest)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        sys.stdout = None  # type: ignore[assignment]  # nothing is left to flush
        return 141
    except (ValueError, OSError) as error:
        return _fail(one_line(error))
    except LostProcessError as error:
        return _fail(str(error), LOST_PROCESS)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("vos_lightning", "data_modules", "None"):
            return _fault(error)
        return _fail(
            f"vos {name} needs the package {package}, which is not installed: pip install vos_lightning installs all of them"
        )
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if _comes_from_outside(error):
            return _fail(f"{one_line(error)[:MAX_MESSAGE]} (VOS_TRACEBACK=1 shows where)")
        return _fault(error)


def _comes_from_outside(error: Exception) -> bool:
    """Whether an error comes from files, options or the machine, and not from a fault in the code.

    PyTorch raises a RuntimeError for these. Lightning's error is known by its name, as Lightning takes seconds to import.
    """
    if isinstance(error, (NotImplementedError, RecursionError)):  # kinds of RuntimeError that only code can cause
        return False
    return isinstance(error, (RuntimeError, MemoryError)) or type(error).__name__ == "MisconfigurationException"


def _fault(error: Exception) -> int:
    kind = f"{type(error).__name__}: {one_line(error)}"[:MAX_MESSAGE]
    return _fail(f"this is a fault of vos_lightning ({kind}): VOS_TRACEBACK=1 shows where, please report it", FAULT)


def _fail(message: str, code: int = 2) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _help() -> None:
    console = Console()
    console.print("usage: vos COMMAND [options]\n", highlight=False, markup=False)
    for name, (_, text) in COMMANDS.items():
        console.print(f"  {name:<21} {text}", highlight=False, markup=False, soft_wrap=True)
    console.print("\nEvery command has --help. VOS_TRACEBACK=1 shows where an error came from.", highlight=False, soft_wrap=True)
