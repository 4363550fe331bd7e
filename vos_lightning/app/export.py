"""The command ``export``: weights of a run as one small file with a model card."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vos_lightning.io.files import list_files
from vos_lightning.io.outputs import claim_file


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments after ``export``.

    Returns:
        The exit code.

    Raises:
        ValueError: an input cannot be used; the message is for the user.
        OSError: a file cannot be read or written.
    """
    arguments = _parser().parse_args(argv)
    licences = dict(_named(text) for text in arguments.licence)

    from vos_lightning.app.runs import provenance
    from vos_lightning.checkpoints.loading import describe_model, load_module
    from vos_lightning.checkpoints.portable import SUFFIX, ModelCard, write_portable
    from vos_lightning.io.texts import read_json

    if arguments.output.suffix != SUFFIX:
        raise ValueError(f"{arguments.output}: weights are exported as {SUFFIX}: choose a name that ends so")
    claim_file(arguments.output, [arguments.checkpoint], arguments.overwrite)
    source = provenance(arguments.checkpoint)
    folder = arguments.checkpoint.resolve().parent.parent / "scores"
    measured = list_files(folder, [".json"]) if source["run"] and folder.is_dir() else {}
    scores = {name: read_json(place) for name, place in measured.items()}
    training = {"weights": source["weights"], **(source["run"] or {})}
    card: ModelCard = {
        "model": describe_model(arguments.checkpoint),
        "step": source["step"],
        "training": without_places(training),
        "licences": licences,
        "scores": without_places(scores),
    }
    write_portable(arguments.output, load_module(arguments.checkpoint, device="cpu").state_dict(), card)
    sys.stdout.write(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB\n")
    return 0


def without_places(value: Any) -> Any:
    """Plain values without folders of this machine: those of data sets begin with ``${VOS_DATA}``, others lose their parents."""
    if isinstance(value, dict):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if not isinstance(value, str):
        return value
    data = os.environ.get("VOS_DATA", "")
    if data.startswith("/"):
        value = value.replace(data.rstrip("/") + "/", "${VOS_DATA}/")
    return re.sub(r"(?<![\w.}-])/(?:[^\s/=]+/)+", "", value)


def _named(text: str) -> tuple[str, str]:
    name, separator, terms = text.partition("=")
    if not separator or not name.strip() or not terms.strip():
        raise ValueError(f"--licence {text!r}: write NAME=TERMS, as 'DAVIS 2016=CC BY-NC 4.0'")
    return name.strip(), terms.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos export",
        description="Write the weights of a run as safetensors in half precision, with a model card: network, training, scores.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".ckpt file of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    parser.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="NAME=TERMS",
        help="terms of something that the weights were made from, such as a data set; may be repeated",
    )
    return parser
