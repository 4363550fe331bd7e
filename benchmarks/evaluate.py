"""Time of the whole command ``evaluate`` beside a plain formulation, on one thread: ``python -m benchmarks.evaluate``.

Both start a process of their own that imports what it needs, reads the PNG files of a data set as large as the validation set of
DAVIS 2016 (20 videos, 1,376 frames of 480 x 854; grey truth, predictions as the library writes them) and scores them. The plain
one reads with Pillow and scores by the oracle of the tests, on fewer frames; its time for the others is scaled up. Processor time
is measured, which on one thread is the time that passes, less what other programs take. With more processes the time that passes
counts, so let nothing else run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.metrics import synthetic_chunks
from vos_lightning.io.files import write_atomically
from vos_lightning.io.label_maps import write_label_map


def write_videos(root: Path, num_frames: int) -> None:
    """Truth and predictions in folders of about 70 frames, as many as in the data set."""
    length, t = 70, 0
    for preds, target in synthetic_chunks(num_frames):
        for pred, true in zip(preds, target, strict=True):
            video, stem = f"{t // length:02d}", f"{t % length:05d}"
            (root / "truth" / video).mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * true.numpy()).save(root / "truth" / video / f"{stem}.png")
            write_label_map(root / "predictions" / video / f"{stem}.png", pred)
            t += 1


def plain(root: Path, num_frames: int) -> None:
    """Score the first frames with Pillow and the oracle, and print the time of reading and scoring and the mean J and F."""
    from tests.oracles import davis_metrics as oracle

    started = time.process_time()
    values = []
    for video in sorted((root / "truth").iterdir()):
        for path in sorted(video.iterdir())[1:-1]:
            pred, true = (np.array(Image.open(root / side / video.name / path.name)) > 0 for side in ("predictions", "truth"))
            values.append((oracle.region_similarity(pred, true), oracle.boundary_accuracy(pred, true)))
            if len(values) == num_frames:
                break
        if len(values) == num_frames:
            break
    j, f = np.array(values).T.tolist()
    print(json.dumps({"seconds": time.process_time() - started, "J": j, "F": f}))


def timed(command: list[str]) -> tuple[float, float, str]:
    """Processor time and time that passes of a command with its processes, and what it prints."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, finished.stdout


def main() -> None:
    """Measure, print and optionally save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1376, help="frames of the data set (1376: DAVIS 2016 val)")
    parser.add_argument("--plain-frames", type=int, default=150, help="frames that the plain formulation reads and scores")
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="numbers of processes that are timed beside one")
    parser.add_argument("--folders", type=Path, help="folder with truth/ and predictions/ of your own, instead of synthetic ones")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.plain, arguments.plain_frames)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.folders or Path(folder, "data")
        if not arguments.folders:
            write_videos(root, arguments.frames)
        lengths = [len(list(video.glob("*.png"))) for video in sorted((root / "truth").iterdir())]
        scored = sum(length - 2 for length in lengths)
        command = ["-m", "vos_lightning", "evaluate", "--protocol", "davis16"]
        command += ["--truth", str(root / "truth"), "--predictions", str(root / "predictions")]
        ours, tables = {}, []
        for workers in dict.fromkeys([1, *arguments.workers]):
            output = Path(folder, f"scores{workers}")
            ours[workers] = timed([*command, "--workers", str(workers), "--output", str(output)])[:2]
            tables.append((output / "objects.csv").read_text())
        assert len(set(tables)) == 1, "the scores depend on the number of processes"
        # The first videos, whose frames the plain formulation scores whole, are compared.
        count = min(arguments.plain_frames, scored)
        total, _, printed = timed(["-m", "benchmarks.evaluate", "--plain", str(root), "--plain-frames", str(count)])
    result = json.loads(printed)
    difference, start = 0.0, 0
    for row, length in zip(csv.DictReader(tables[0].splitlines()), lengths, strict=True):
        end = start + length - 2
        if end > count:
            break
        difference = max(difference, *(abs(float(row[key]) - np.mean(result[key][start:end])) for key in ("J", "F")))
        start = end
    per_frame = result["seconds"] / count
    scaled = total - result["seconds"] + per_frame * scored
    print(f"{sum(lengths)} frames of {len(lengths)} videos; the whole command, start included, one thread a process")
    for workers, (cpu, wall) in ours.items():
        # What the processes of a pool take is not counted for the command.
        spent = f"{cpu:.2f} s of processor time, " if workers == 1 else ""
        print(f"ours, processes: {workers}  {spent}{wall:.2f} s pass")
    print(f"plain               {scaled:.2f} s of processor time (scaled from {count} frames)")
    ratio = scaled / ours[1][0]
    print(f"plain / ours = {ratio:.1f}; largest difference of a video's J or F {difference:.1e}, in {start} frames")
    if arguments.json:
        content = {"frames": sum(lengths), "ours": ours, "plain": scaled, "plain_to_ours": ratio}
        write_atomically(arguments.json, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
