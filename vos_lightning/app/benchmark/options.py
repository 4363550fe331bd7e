"""What ``benchmark`` measures: options of the command line. PyTorch is not imported, so that ``--help`` comes at once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from vos_lightning.app.options import PRECISIONS


@dataclass(frozen=True)
class Options:
    """What is measured, and how."""

    size: tuple[int, int] = (480, 854)
    objects: tuple[int, ...] = (1, 3)
    precisions: tuple[str, ...] = ("32-true",)
    frames: int = 10
    """Timed frames of a round. Networks whose memory grows need enough of them: their time depends on the length."""
    warmup: int = 2
    """Frames after the annotated one that are not timed."""
    rounds: int = 2
    """How often every network takes its turn. Taking turns spreads a change of the machine's load over all networks."""
    sections: bool = False
    """Also profile a round and sum the marked parts of the networks."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("warmup", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        if min(self.size) < 16 or not self.objects or min(self.objects) < 1:
            raise ValueError("--size must be at least 16 16, --objects at least 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command, with the defaults of :class:`Options`."""
    default = Options()
    parser.add_argument("--size", type=int, nargs=2, default=default.size, metavar=("H", "W"), help="size of the frames")
    parser.add_argument("--objects", type=int, nargs="+", default=default.objects, metavar="N", help="default: 1 3")
    parser.add_argument("--precision", nargs="+", choices=sorted(PRECISIONS), default=default.precisions, help="default: 32-true")
    parser.add_argument("--frames", type=int, default=default.frames, help=f"timed frames of a round: {default.frames}")
    parser.add_argument("--warmup", type=int, default=default.warmup, help=f"frames before the timed ones: {default.warmup}")
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help=f"how often every network takes its turn: {default.rounds}"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as PyTorch chooses)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu ...")
    parser.add_argument("--sections", action="store_true", help="also sum the marked parts of each network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")


def options_of(known: argparse.Namespace) -> Options:
    """Checked options of the command line."""
    return Options(
        size=(known.size[0], known.size[1]),
        objects=tuple(known.objects),
        precisions=tuple(known.precision),
        frames=known.frames,
        warmup=known.warmup,
        rounds=known.rounds,
        sections=known.sections,
    )
