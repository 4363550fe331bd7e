"""Train the small networks of all systems, score them, time them, and write the table: ``python -m benchmarks.lite``.

Every system is trained by its experiment ``<paper>_lite`` on photographs (BSDS500) and on the 7 training videos of
``davis16-dev``, all with the same clips, steps and seeds; the 3 other videos are only scored, once, after the training. What each
step printed and measured stays in the folder of runs, ``<runs>/seed_<seed>/<experiment>``, so that the command goes on where it
stopped, and ``--table`` writes the table again from it. ``--switches`` takes the same networks with the parts that each paper
switches off instead; a row that evaluates the weights of another one is not trained, and its seconds are left out.

``--jobs`` lets several trainings share a machine. Networks are timed last, when nothing else runs; ``--untimed`` leaves that to
another machine, to which the folder of runs is copied.

With ``--seconds``, every training ends after so many seconds, which is what a first look at a new machine needs; its scores
compare nothing, because the systems then take different numbers of steps, and the learning rate does not fall. Other options go
to the experiments, as ``--trainer.accelerator=gpu``.
"""

from __future__ import annotations

import argparse
import csv
import json
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


def measured(folder: Path, **found: Any) -> dict[str, Any]:
    """What has been measured of a run, after ``found`` has been added to its file."""
    file = folder / "lite.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if found:
        done |= found
        write_atomically(file, json.dumps(done).encode())
    return done


def run(name: str, seed: int, runs: Path, options: Sequence[str], seconds: int | None) -> None:
    """Train an experiment and score its videos, each where it has not been done yet."""
    folder = runs / f"seed_{seed}" / name
    if "train_seconds" not in measured(folder) and not load_experiment(name).checkpoint_of:
        limits = [] if seconds is None else [f"--trainer.max_time=00:00:{seconds // 60:02}:{seconds % 60:02}", *UNLIMITED]
        fresh = not folder.exists()
        took = vos("train", name, f"--run-dir={folder}", f"--seed_everything={seed}", *limits, *options)
        # Nobody knows the seconds of a training that was interrupted.
        measured(folder, train_seconds=took if fresh else None)
    if "test_seconds" not in measured(folder):
        measured(folder, test_seconds=vos("test", name, f"--run-dir={folder}", *options))


def time_network(name: str, folder: Path) -> None:
    """Time an experiment's network on this machine where it has not been done yet."""
    if "speed" not in measured(folder):
        file = folder / "speed.json"
        vos("benchmark", name, "--objects", "1", "--frames", "20", "--json", str(file), "--overwrite")
        measured(folder, speed=json.loads(file.read_text()))


def row(name: str, folders: Sequence[Path]) -> dict[str, str]:
    """A row of the table, from the files of an experiment's runs, one for each seed. Scores are means over the seeds."""
    scores = [json.loads((folder / "scores" / "test.json").read_text()) for folder in folders]
    trained = load_experiment(name).checkpoint_of
    trainings = [folder.parent / trained if trained else folder for folder in folders]
    records = [json.loads((folder / "record.json").read_text()) for folder in trainings]
    cells = {"experiment": f"`{name}`", "seeds": ", ".join(str(record["seed"][0]) for record in records)}
    for videos in zip(*(score["rows"] for score in scores), strict=True):
        cells[videos[0]["video"]] = " / ".join(_percent([video[key] for video in videos]) for key in ("J", "F"))
    for key in ("J", "F", "J&F"):
        cells[key] = _percent([score["summary"][key] for score in scores])
    if len(scores) > 1:
        cells["J&F of each seed"] = ", ".join(_percent([score["summary"]["J&F"]]) for score in scores)
    cells["steps"] = str(records[0]["steps"])
    seconds = [measured(folder).get("train_seconds") for folder in folders]
    known = sorted(second for second in seconds if second is not None)
    took = f"{known[len(known) // 2]:.0f} s, {records[0]['starts'][0]['hardware']}" if known else "interrupted"
    cells["training"] = f"that of `{trained}`" if trained else took
    timed = measured(folders[0]).get("speed")
    if timed:
        (speed,) = timed["results"]
        cells["frames a second"] = f"{1 / speed['median']:.1f}"
        cells["parameters"] = f"{speed['parameters'] / 1e6:.2f} M"
    return cells


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as a table in Markdown."""
    head = list(dict.fromkeys(key for cells in rows for key in cells))
    lines = [head, ["---"] * len(head), *([cells.get(key, "") for key in head] for cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def pace(folder: Path, ended_by_clock: bool) -> dict[str, str]:
    """Steps a second and peak memory of a training, from its log; the number of steps too if nobody knew it before."""
    values: dict[str, list[float]] = {"train/clips_per_second": [], "train/peak_memory_gib": [], "step": []}
    for log in sorted((folder / "logs").glob("*/metrics.csv")):
        with log.open(newline="") as file:
            for line in csv.DictReader(file):
                for key, found in values.items():
                    if line.get(key):
                        found.append(float(line[key]))
    if not values["step"]:
        return {}
    batch = json.loads((folder / "record.json").read_text())["batch_size"]
    speed = sorted(values["train/clips_per_second"])
    cells = {"steps": f"{max(values['step']) + 1:.0f}"} if ended_by_clock else {}
    if speed:
        cells["steps a second"] = f"{speed[len(speed) // 2] / batch:.1f}"
    memory = max(values["train/peak_memory_gib"], default=0.0)
    if memory:
        cells["peak memory"] = f"{memory:.1f} GiB"
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lite", description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", metavar="EXP", help=f"default: {', '.join(SYSTEMS)}")
    parser.add_argument("--switches", action="store_true", help="the parts of each paper switched off, one after the other")
    parser.add_argument("--runs", type=Path, default=Path("runs/lite"), help="folder of the runs; default: runs/lite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="train with each of these; default: 0")
    parser.add_argument("--seconds", type=int, metavar="N", help="end every training after N seconds")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at work at the same time; default: 1")
    parser.add_argument("--untimed", action="store_true", help="do not time the networks")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Markdown file with marks between which the table goes")
    known, options = parser.parse_known_args(argv)
    names = known.experiments or (SWITCHES if known.switches else SYSTEMS)
    try:
        evaluated = [name for name in names if load_experiment(name).checkpoint_of]
    except ExperimentError as error:
        parser.error(str(error))
    with ThreadPoolExecutor(known.jobs) as pool:
        for group in ([name for name in names if name not in evaluated], evaluated):
            jobs = [(name, seed) for seed in known.seeds for name in group]
            for done in [pool.submit(run, *job, known.runs, options, known.seconds) for job in jobs]:
                done.result()
    folders = {name: [known.runs / f"seed_{seed}" / name for seed in known.seeds] for name in names}
    if not known.untimed:
        for name in names:
            time_network(name, folders[name][0])
    text = table([row(name, folders[name]) | pace(folders[name][0], known.seconds is not None) for name in names])
    print(text)
    if known.table is not None:
        begin, end = (MARK.format(" --switches" if known.switches else "", word) for word in ("begin", "end"))
        before, _, rest = known.table.read_text().partition(begin)
        after = rest.partition(end)[2]
        write_atomically(known.table, f"{before}{begin}\n{text}{end}{after}".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
