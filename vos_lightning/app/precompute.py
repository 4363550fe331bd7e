"""Compute proposals of videos or images: ``vos precompute-proposals --images DIR --output DIR``."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress

from vos_lightning.app.devices import launched_place
from vos_lightning.app.options import at_least
from vos_lightning.callbacks.stopping import LostProcessError
from vos_lightning.io.overlaps import refuse_overlap
from vos_lightning.proposals.options import Architecture, Order


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors of the user are one line and exit code 2."""
    arguments = _parser().parse_args(argv)
    # What computes is imported after the arguments are read, so that --help and mistakes do not wait for it.
    from vos_lightning.io.pretrained import MissingWeightsError
    from vos_lightning.proposals.detector import ProposalDetector, Selection
    from vos_lightning.proposals.precomputing import find_videos, precompute
    from vos_lightning.proposals.processes import precompute_in_processes

    try:
        selection = Selection(
            arguments.order, arguments.nms, arguments.top_k, arguments.score_threshold, tight_boxes=arguments.tight_boxes
        )
        place, (part, parts) = launched_place(), arguments.shard
        # Every video belongs to one part, and in it to one of the processes that a cluster has started.
        videos = find_videos(arguments.images, arguments.stills)[part - 1 :: parts][place.rank :: place.processes]
        refuse_overlap([arguments.output], [arguments.images, arguments.weights])
        if arguments.pretrained is None and arguments.weights is None:
            raise ValueError("pass --pretrained COCO_V1 (resnet50, resnet50_v2) or --weights FILE")
        devices = _devices(arguments.device, arguments.processes, place.local_rank)
        make = functools.partial(
            ProposalDetector,
            arguments.architecture,
            arguments.pretrained,
            None if arguments.weights is None else str(arguments.weights),
            arguments.num_classes,
            selection,
            arguments.min_size,
            arguments.max_size,
        )
        detector = make()  # here too if others compute, so that what is wrong is said once, and weights are downloaded once
        output, batch_size = arguments.output, arguments.batch_size
        steps = (
            precompute(detector.to(devices[0]), videos, output, batch_size)
            if len(devices) == 1
            else precompute_in_processes(make, videos, output, devices, batch_size)
        )
        computed, empty = 0, []
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("proposals", total=len(videos))
            for one in steps:
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
    except BrokenProcessPool as error:
        raise LostProcessError("a process has died, often for lack of memory: start the same command again") from error
    share = f" (part {part} of {parts})" if parts > 1 else ""
    share += f" (process {place.rank + 1} of {place.processes})" if place.processes > 1 else ""
    sys.stdout.write(f"{computed} computed, {len(videos) - computed} there already{share}: {output}\n")
    if empty:
        of_all = "each of them" if len(empty) == len(videos) else f"{len(empty)} of {len(videos)}, first {empty[0]}"
        sys.stdout.write(f"nothing was found in any frame of {of_all}: lower --score-threshold or take another detector\n")
    return 0


def _devices(name: str, processes: int, local_rank: int) -> list[Any]:
    """The device (``torch.device``) of each process; ``auto`` gives them the accelerators of this machine in turn.

    Args:
        name: ``auto``, or the name of a device.
        processes: number of processes that this one starts, or 1.
        local_rank: number of this process among those that a cluster has started here.
    """
    import torch

    own = torch.accelerator.current_accelerator() if name == "auto" and torch.accelerator.is_available() else None
    if own is not None:
        count = torch.accelerator.device_count()
        names = [f"{own.type}:{(local_rank * processes + i) % count}" for i in range(processes)]
    else:
        names = ["cpu" if name == "auto" else name] * processes
    try:
        return [torch.zeros(0, device=each).device for each in names]
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is unknown or not available; use auto, cpu, cuda, cuda:1 or mps") from error


def _shard(text: str) -> tuple[int, int]:
    """``2/8``: the second of eight parts."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"write 1/8 to 8/8 for eight parts, not {text!r}")
    return int(part), int(parts)


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
    parser.add_argument(
        "--device", default="auto", help="auto (default: processes share the accelerators), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument(
        "--processes", type=at_least(1), default=1, metavar="N", help="number of processes that this command starts; default: 1"
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="K/N",
        help="compute the K-th of N parts of the videos, 1/N to N/N, each in a command of its own; tasks of SLURM (srun) and "
        "processes of torchrun share them by themselves",
    )
    return parser
