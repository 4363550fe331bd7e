"""Compute proposals of videos or images: ``vos precompute-proposals --images DIR --output DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress

from vos_lightning.io.outputs import refuse_overlap
from vos_lightning.proposals.options import Architecture, Order


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors of the user are one line and exit code 2."""
    arguments = _parser().parse_args(argv)
    # What computes is imported after the arguments are read, so that --help and mistakes do not wait for it.
    from vos_lightning.io.pretrained import MissingWeightsError
    from vos_lightning.proposals.detector import ProposalDetector, Selection
    from vos_lightning.proposals.precomputing import find_videos, precompute

    try:
        selection = Selection(
            arguments.order, arguments.nms, arguments.top_k, arguments.score_threshold, tight_boxes=arguments.tight_boxes
        )
        videos = find_videos(arguments.images, arguments.stills)
        refuse_overlap([arguments.output], [arguments.images, arguments.weights])
        if arguments.pretrained is None and arguments.weights is None:
            raise ValueError("pass --pretrained COCO_V1 (resnet50, resnet50_v2) or --weights FILE")
        device = _device(arguments.device)
        detector = ProposalDetector(
            arguments.architecture,
            arguments.pretrained,
            None if arguments.weights is None else str(arguments.weights),
            arguments.num_classes,
            selection,
            arguments.min_size,
            arguments.max_size,
        )
        detector.to(device)
        output = arguments.output
        computed, empty = 0, []
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("proposals", total=len(videos))
            for one in precompute(detector, videos, output, arguments.batch_size):
                computed += one.new
                if one.empty:
                    empty.append(one.name)
                progress.advance(task)
    except MissingWeightsError as error:
        sys.stderr.write(f"error: {error}, or pass --weights FILE\n")
        return 2
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{computed} computed, {len(videos) - computed} there already: {output}\n")
    if empty:
        of_all = "each of them" if len(empty) == len(videos) else f"{len(empty)} of {len(videos)}, first {empty[0]}"
        sys.stdout.write(f"nothing was found in any frame of {of_all}: lower --score-threshold or take another detector\n")
    return 0


def _device(name: str) -> Any:
    """The device (``torch.device``) of a name."""
    import torch

    if name == "auto":
        name = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is unknown or not available; use auto, cpu, cuda, cuda:1 or mps") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vos precompute-proposals",
        description="Find object proposals in videos or images and store them, one file a video. If it is started again, it "
        "continues where it stopped.",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="folder with one folder for each video (JPEGImages/480p), a folder of images, or a video",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of this detector for these videos; receives <video>.npz"
    )
    parser.add_argument("--stills", action="store_true", help="every image has its own proposals, in sub-folders too (COCO)")
    parser.add_argument("--architecture", choices=get_args(Architecture), default="resnet50")
    parser.add_argument("--pretrained", choices=["COCO_V1"], help="torchvision's weights of resnet50 or resnet50_v2")
    parser.add_argument("--weights", type=Path, help="file with a state dict of the detector")
    parser.add_argument(
        "--num-classes", type=int, default=91, help="classes, background included: 91 for COCO (default), 2 for object"
    )
    parser.add_argument(
        "--order", choices=get_args(Order), default="nms_first", help="order of suppression and the cut to the best"
    )
    parser.add_argument("--nms", type=float, default=0.4, help="overlap above which the weaker proposal is dropped")
    parser.add_argument("--top-k", type=int, default=30, help="number of proposals of a frame")
    parser.add_argument("--score-threshold", type=float, default=0.0)
    parser.add_argument("--tight-boxes", action="store_true", help="draw boxes tight around the masks first (DMM-Net)")
    parser.add_argument("--min-size", type=int, default=800, help="short side of frames in the detector, in pixels")
    parser.add_argument("--max-size", type=int, default=1333)
    parser.add_argument("--batch-size", type=int, default=4, help="number of frames that are processed together")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    return parser
