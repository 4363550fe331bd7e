"""The command ``export``: weights of a run as one small file with a model card, or as graphs for ONNX Runtime."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vos_lightning.io.files import list_everything, list_files
from vos_lightning.io.overlaps import claim_file


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

    if arguments.format == "onnx":
        return _export_onnx(arguments, licences)

    from vos_lightning.checkpoints.portable import SUFFIX

    if arguments.output.suffix != SUFFIX:
        raise ValueError(f"{arguments.output}: weights are exported as {SUFFIX}: choose a name that ends so")
    claim_file(arguments.output, [arguments.checkpoint], arguments.overwrite)
    _write_weights(arguments.checkpoint, arguments.output, licences)
    sys.stdout.write(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB\n")
    return 0


def _write_weights(checkpoint: Path, path: Path, licences: dict[str, str]) -> None:
    """Write the weights of a checkpoint with their model card."""
    from vos_lightning.app.runs import provenance
    from vos_lightning.checkpoints.loading import describe_model, load_module
    from vos_lightning.checkpoints.portable import ModelCard, write_portable
    from vos_lightning.io.texts import read_json

    source = provenance(checkpoint)
    folder = checkpoint.resolve().parent.parent / "scores"
    measured = list_files(folder, [".json"]) if source["run"] and folder.is_dir() else {}
    scores = {name: read_json(place) for name, place in measured.items()}
    training = {"weights": source["weights"], **(source["run"] or {})}
    card: ModelCard = {
        "model": describe_model(checkpoint),
        "step": source["step"],
        "training": without_places(training),
        "licences": licences,
        "scores": without_places(scores),
    }
    write_portable(path, load_module(checkpoint, device="cpu").state_dict(), card)


def _export_onnx(arguments: argparse.Namespace, licences: dict[str, str]) -> int:
    """Write a folder for ONNX Runtime: weights with their model card, and graphs that read them."""
    from vos_lightning.checkpoints.loading import load_engine
    from vos_lightning.checkpoints.onnx_graphs import check_exportable, write_graphs
    from vos_lightning.checkpoints.portable import SUFFIX, resolve
    from vos_lightning.io.files import write_atomically
    from vos_lightning.io.outputs import OutputFolder

    source = resolve(arguments.checkpoint)
    check_exportable(load_engine(source, device="cpu"), arguments.checkpoint)
    output = OutputFolder(arguments.output, "export", [source], arguments.overwrite)
    name = f"{source.stem}{SUFFIX}"
    if source.suffix == SUFFIX:
        output.put(name, functools.partial(write_atomically, content=source.read_bytes()))
    else:
        output.put(name, lambda path: _write_weights(source, path, licences))
    weights = arguments.output / name
    write_graphs(output, load_engine(weights, device="cpu"), weights)
    output.finish()
    size = sum(path.stat().st_size for path in list_everything(arguments.output) if path.is_file()) / 1e6
    sys.stdout.write(f"{arguments.output}: {size:.2f} MB; vos segment VIDEO --checkpoint {arguments.output} computes with them\n")
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
        description="Write the weights of a run as safetensors in half precision, with a model card: network, training, scores. "
        "As ONNX, graphs that read them are written beside them.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".ckpt file of a run, .safetensors file, or lite")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE|DIR", help="FILE.safetensors, or DIR for ONNX")
    parser.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        default="safetensors",
        help="safetensors (default), or onnx: a folder with the parts of an STCN that reads its whole memory, as lite does, for "
        "vos segment --backend onnxruntime and other programs",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output of an earlier export")
    parser.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="NAME=TERMS",
        help="terms of something that the weights were made from, such as a data set; may be repeated",
    )
    return parser
