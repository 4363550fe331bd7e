"""The command ``import-checkpoint``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vos_lightning.io.overlaps import claim_file

PAPERS = ("emvos", "pmvos", "stcn", "stm")
"""Papers whose authors have released weights: the keys of :data:`vos_lightning.checkpoints.released.conversion.FORMATS`."""


def main(argv: Sequence[str]) -> int:
    """``import-checkpoint FILE --paper PAPER --output OUT.ckpt``."""
    parser = argparse.ArgumentParser(
        prog="vos import-checkpoint",
        description="Convert a checkpoint released by the authors to one of this library; keys and shapes are checked strictly.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="PMVOS_best.tar, coco_davis_best.pth, stcn.pth, STM_weights.pth ..."
    )
    parser.add_argument("--paper", choices=PAPERS, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.ckpt")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.ckpt where it exists")
    arguments = parser.parse_args(argv)

    from vos_lightning.checkpoints.released.conversion import import_released
    from vos_lightning.checkpoints.saving import write_checkpoint

    claim_file(arguments.output, [arguments.file], arguments.overwrite)
    checkpoint, dropped = import_released(arguments.file, arguments.paper)
    write_checkpoint(arguments.output, checkpoint)
    number = len(checkpoint["state_dict"])
    sys.stdout.write(f"{arguments.output}: {number} tensors of {arguments.paper}; dropped {', '.join(dropped) or 'none'}\n")
    return 0
