"""Train the small networks of all systems, score them, time them, and write the table: ``python -m benchmarks.lite``.

Every system is trained by its experiment ``<paper>_lite`` on photographs (BSDS500) and on the 7 training videos of
``davis16-dev``, all with the same clips, steps and seed; the 3 other videos are only scored, once, after the training. What each
step printed and measured stays in the folder of runs, so that the command goes on where it stopped, and ``--table`` writes the
table again from it. ``--switches`` takes the same networks with the parts that each paper switches off instead; a row that
evaluates the weights of another one is not trained, and its seconds are left out.

With ``--seconds``, every training ends after so many seconds, which is what a first look at a new machine needs (``make
lite-gpu``); its scores compare nothing, because the systems then take different numbers of steps, some of them side by side.
Other options go to the experiments, as ``--trainer.accelerator=gpu``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.experiments import load_experiment
from vos_lightning.app.runs import run_command
from vos_lightning.io.files import write_atomically

SYSTEMS = ("stcn_lite", "stm_lite", "munet_lite", "pmnet_lite", "emvos_lite", "pmvos_lite", "dmn_aoa_lite")
SWITCHES = (
    *(f"emvos_lite{part}" for part in ("_surjective", "_equalized", "")),
    *(f"pmvos_lite{part}" for part in ("_row_i", "_row_ii", "_row_iii", "")),
    *(f"munet_lite{part}" for part in ("_no_motion", "_no_uncertainty", "")),
    *(f"pmnet_lite_row_{part}" for part in ("baseline", "all", "probs", "learn", "adapt", "all_adapt", "probs_adapt")),
    "pmnet_lite",
    *(f"dmn_aoa_lite{part}" for part in ("_base", "")),
)
"""What the ablations of the papers switch: the kinds of matching, attention, motion, points, the dynamic template."""
UNLIMITED = ("--trainer.max_steps=1000000", "--trainer.log_every_n_steps=5")
MARK = "<!-- table of benchmarks.lite{}: {} -->"


def vos(*arguments: str) -> float:
    """Run a command of the library, and return its seconds by the clock.

    Raises:
        SystemExit: the command failed; it has said why.
    """
    print("vos", *arguments, flush=True)
    start = time.perf_counter()
    code = run_command(arguments)
    if code:
        sys.exit(code)
    return time.perf_counter() - start


def run(name: str, runs: Path, options: Sequence[str], seconds: int | None) -> None:
    """Train an experiment, score its videos and time its network, each where it has not been done yet."""
    folder = runs / name
    measured = folder / "lite.json"
    done: dict[str, Any] = json.loads(measured.read_text()) if measured.is_file() else {}
    if "train_seconds" not in done and not load_experiment(name).checkpoint_of:
        limits = [] if seconds is None else [f"--trainer.max_time=00:00:{seconds // 60:02}:{seconds % 60:02}", *UNLIMITED]
        fresh = not folder.exists()
        took = vos("train", name, f"--run-dir={folder}", *limits, *options)
        done["train_seconds"] = took if fresh else None  # nobody knows the seconds of a training that was interrupted
        done["threads"] = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
        write_atomically(measured, json.dumps(done).encode())
    if "test_seconds" not in done:
        done["test_seconds"] = vos("test", name, f"--run-dir={folder}", *options)
        write_atomically(measured, json.dumps(done).encode())
    if "speed" not in done:
        speed = folder / "speed.json"
        vos("benchmark", name, "--objects", "1", "--frames", "20", "--json", str(speed), "--overwrite")
        done["speed"] = json.loads(speed.read_text())
        write_atomically(measured, json.dumps(done).encode())


def row(name: str, folder: Path) -> dict[str, str]:
    """A row of the table, from the files of a run."""
    scores = json.loads((folder / "scores" / "test.json").read_text())
    measured = json.loads((folder / "lite.json").read_text())
    trained = load_experiment(name).checkpoint_of
    record = json.loads(((folder.parent / trained if trained else folder) / "record.json").read_text())
    (speed,) = measured["speed"]["results"]
    cells = {"experiment": f"`{name}`", "seed": str(record["seed"][0])}
    for video in scores["rows"]:
        cells[video["video"]] = f"{100 * video['J']:.1f} / {100 * video['F']:.1f}"
    cells["J"], cells["F"], cells["J&F"] = (f"{100 * scores['summary'][key]:.1f}" for key in ("J", "F", "J&F"))
    seconds = measured.get("train_seconds")
    took = f"that of `{trained}`" if trained else "interrupted" if seconds is None else f"{seconds:.0f} s"
    cells["steps"], cells["training"] = str(record["steps"]), took
    cells["frames a second"] = f"{1 / speed['median']:.1f}"
    cells["parameters"] = f"{speed['parameters'] / 1e6:.2f} M"
    return cells


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as a table in Markdown."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([cells.get(key, "") for key in head] for cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def first_look(name: str, folder: Path) -> dict[str, str]:
    """A row about a training that was ended by the clock: speed and memory beside the score."""
    values: dict[str, list[float]] = {"train/clips_per_second": [], "train/peak_memory_gib": [], "step": []}
    for log in sorted((folder / "logs").glob("*/metrics.csv")):
        with log.open(newline="") as file:
            for line in csv.DictReader(file):
                for key, found in values.items():
                    if line.get(key):
                        found.append(float(line[key]))
    cells = row(name, folder)
    batch = json.loads((folder / "record.json").read_text())["batch_size"]
    speed = values["train/clips_per_second"]
    cells["steps"] = f"{max(values['step'], default=0) + 1:.0f}"
    cells["steps a second"] = f"{sum(speed) / len(speed) / batch:.2f}" if speed else ""
    memory = max(values["train/peak_memory_gib"], default=0.0)
    cells["peak memory"] = f"{memory:.1f} GiB" if memory else ""
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lite", description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", metavar="EXP", help=f"default: {', '.join(SYSTEMS)}")
    parser.add_argument("--switches", action="store_true", help="the parts of each paper switched off, one after the other")
    parser.add_argument("--runs", type=Path, default=Path("runs/lite"), help="folder of the runs; default: runs/lite")
    parser.add_argument("--seconds", type=int, metavar="N", help="end every training after N seconds")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="systems at work at the same time; default: 1")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Markdown file with marks between which the table goes")
    known, options = parser.parse_known_args(argv)
    names = known.experiments or (SWITCHES if known.switches else SYSTEMS)
    try:
        evaluated = [name for name in names if load_experiment(name).checkpoint_of]
    except ExperimentError as error:
        parser.error(str(error))
    with ThreadPoolExecutor(known.jobs) as pool:
        for group in ([name for name in names if name not in evaluated], evaluated):
            for done in [pool.submit(run, name, known.runs, options, known.seconds) for name in group]:
                done.result()
    describe = row if known.seconds is None else first_look
    text = table([describe(name, known.runs / name) for name in names])
    print(text)
    if known.table is not None:
        begin, end = (MARK.format(" --switches" if known.switches else "", word) for word in ("begin", "end"))
        before, _, rest = known.table.read_text().partition(begin)
        after = rest.partition(end)[2]
        write_atomically(known.table, f"{before}{begin}\n{text}{end}{after}".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
