"""Train the small networks of all systems, score them, time them, and write the table: ``python -m benchmarks.lite``.

Every system is trained by its experiment ``<paper>_lite`` on photographs (BSDS500) and on the 7 training videos of
``davis16-dev``, all with the same clips, steps and seeds; the 3 other videos are only scored, once, after the training. What
each step printed and measured stays in the folder of runs, ``<runs>/seed_<seed>/<experiment>``, so that the command goes on
where it stopped. ``--switches`` takes the same networks with the parts that each paper switches off instead, and ``--long`` the
two best ones with more steps. A row that evaluates the weights of another one is not trained, and its seconds are left out.

``--record`` adds what was measured to a file with one line of JSON a run, which outlives the folder of runs and may come from
several machines, and ``--table`` writes the table of all that is recorded. A run whose experiment has changed since is left out
of it. ``--only-table`` trains nothing.

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
LONG = ("stcn_lite_long", "munet_lite_long")
"""The two best ones with four times the steps."""
GROUPS = {"": SYSTEMS, " --switches": SWITCHES, " --long": LONG}
"""Experiments of each table, by the option that chooses it."""
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


def entry(name: str, folder: Path) -> dict[str, Any]:
    """What is recorded of a run: the experiment and its settings, the seed, the machine, seconds and scores."""
    trained = load_experiment(name).checkpoint_of
    source = folder.parent / trained if trained else folder
    record = json.loads((source / "record.json").read_text())
    scores = json.loads((folder / "scores" / "test.json").read_text())
    done = measured(folder)
    first = record["starts"][0]
    found: dict[str, Any] = {
        "experiment": name,
        "seed": record["seed"][0],
        "fingerprint": scores["fingerprint"],
        "trained": record["fingerprint"],
        "departures": sorted({key for one in (*record["starts"], scores["evaluation"]) for key in one["departures"]}),
        "commit": first["commit"],
        "date": first["date"],
        "hardware": first["hardware"],
        "steps": record["steps"],
        "train_seconds": done.get("train_seconds"),
        "videos": {one["video"]: {key: one[key] for key in ("J", "F")} for one in scores["rows"]},
        "mean": {key: scores["summary"][key] for key in ("J", "F", "J&F")},
    }
    if "speed" in done:
        (speed,) = done["speed"]["results"]
        found["speed"] = {"seconds_a_frame": speed["median"], "parameters": speed["parameters"]}
    return found | pace(source)


def add(record: Path, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add runs to the file of recorded ones, in place of earlier runs of the same experiment and seed, and return them all."""
    lines = record.read_text().splitlines() if record.is_file() else []
    every = {(one["experiment"], one["seed"]): one for one in map(json.loads, lines)}
    every |= {(one["experiment"], one["seed"]): one for one in entries}
    found = [every[key] for key in sorted(every)]
    if entries:
        write_atomically(record, "".join(f"{json.dumps(one)}\n" for one in found).encode())
    return found


def is_current(found: dict[str, Any]) -> bool:
    """Whether a recorded run has the settings that its experiment and the training of its weights have today, and no others."""
    try:
        asked = load_experiment(found["experiment"])
        trained = load_experiment(asked.checkpoint_of) if asked.checkpoint_of else asked
    except ExperimentError:  # the experiment is gone
        return False
    return [asked.fingerprint, trained.fingerprint, []] == [found["fingerprint"], found["trained"], found["departures"]]


def row(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """A row of the table from the recorded runs of an experiment, one for each seed. Scores are means over the seeds."""
    first = runs[0]
    trained = load_experiment(first["experiment"]).checkpoint_of
    cells = {"experiment": f"`{first['experiment']}`", "seeds": ", ".join(str(one["seed"]) for one in runs)}
    for video in first["videos"]:
        cells[video] = " / ".join(_percent([one["videos"][video][key] for one in runs]) for key in ("J", "F"))
    for key in ("J", "F", "J&F"):
        cells[key] = _percent([one["mean"][key] for one in runs])
    if len(runs) > 1:
        cells["J&F of each seed"] = ", ".join(_percent([one["mean"]["J&F"]]) for one in runs)
    cells["steps"] = str(first["steps"])
    known = sorted(one["train_seconds"] for one in runs if one["train_seconds"] is not None)
    took = f"{known[len(known) // 2]:.0f} s, {first['hardware']}" if known else "interrupted"
    cells["training"] = f"that of `{trained}`" if trained else took
    speed = next((one["speed"] for one in runs if "speed" in one), None)
    if speed is not None:
        cells["frames a second"] = f"{1 / speed['seconds_a_frame']:.1f}"
        cells["parameters"] = f"{speed['parameters'] / 1e6:.2f} M"
    if "steps_a_second" in first:
        cells["steps a second"] = f"{first['steps_a_second']:.1f}"
    if "peak_memory_gib" in first:
        cells["peak memory"] = f"{first['peak_memory_gib']:.1f} GiB"
    return cells


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def table(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The recorded runs of experiments as a table in Markdown, in the order of ``names``; nothing if there are none."""
    groups = [[one for one in runs if one["experiment"] == name] for name in names]
    rows = [row(group) for group in groups if group]
    if not rows:
        return ""
    head = list(dict.fromkeys(key for cells in rows for key in cells))
    lines = [head, ["---"] * len(head), *([cells.get(key, "") for key in head] for cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_table(page: Path, text: str, kind: str = "") -> None:
    """Put a table between its two marks in a page of Markdown."""
    begin, end = (MARK.format(kind, word) for word in ("begin", "end"))
    before, mark, rest = page.read_text().partition(begin)
    _, other, after = rest.partition(end)
    if not (mark and other):
        raise SystemExit(f"{page} has no lines {begin} and {end}, between which the table goes")
    write_atomically(page, f"{before}{begin}\n{text}{end}{after}".encode())


def pace(folder: Path) -> dict[str, float]:
    """Steps a second and peak memory of a training, from its log."""
    values: dict[str, list[float]] = {"train/clips_per_second": [], "train/peak_memory_gib": []}
    for log in sorted((folder / "logs").glob("*/metrics.csv")):
        with log.open(newline="") as file:
            for line in csv.DictReader(file):
                for key, found in values.items():
                    if line.get(key):
                        found.append(float(line[key]))
    speed, memory = (sorted(found) for found in values.values())
    batch = json.loads((folder / "record.json").read_text())["batch_size"]
    cells = {"steps_a_second": speed[len(speed) // 2] / batch} if speed else {}
    return cells | ({"peak_memory_gib": memory[-1]} if memory and memory[-1] else {})


def measure(
    parser: argparse.ArgumentParser, known: argparse.Namespace, names: Sequence[str], options: Sequence[str]
) -> list[dict[str, Any]]:
    """Train, score and time experiments with every seed, and return what is recorded of the runs."""
    try:
        evaluated = [name for name in names if load_experiment(name).checkpoint_of]
    except ExperimentError as error:
        parser.error(str(error))
    with ThreadPoolExecutor(known.jobs) as pool:
        for group in ([name for name in names if name not in evaluated], evaluated):
            jobs = [(name, seed) for seed in known.seeds for name in group]
            for done in [pool.submit(run, *job, known.runs, options, known.seconds) for job in jobs]:
                done.result()
    if not known.untimed:
        for name in names:
            time_network(name, known.runs / f"seed_{known.seeds[0]}" / name)
    return [entry(name, known.runs / f"seed_{seed}" / name) for name in names for seed in known.seeds]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lite", description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", metavar="EXP", help=f"default: {', '.join(SYSTEMS)}")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--switches", action="store_true", help="the parts of each paper switched off, one after the other")
    group.add_argument("--long", action="store_true", help="the two best systems, trained four times as long")
    parser.add_argument("--runs", type=Path, default=Path("runs/lite"), help="folder of the runs; default: runs/lite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="train with each of these; default: 0")
    parser.add_argument("--seconds", type=int, metavar="N", help="end every training after N seconds")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at work at the same time; default: 1")
    parser.add_argument("--untimed", action="store_true", help="do not time the networks")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add the runs to this file, one line of JSON each")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Markdown file with marks between which the table goes")
    parser.add_argument("--only-table", action="store_true", help="train nothing: write the table of what --record holds")
    known, options = parser.parse_known_args(argv)
    kind = " --switches" if known.switches else " --long" if known.long else ""
    names = known.experiments or GROUPS[kind]
    if known.only_table and (known.record is None or not known.record.is_file()):
        parser.error("--only-table needs --record with a file of recorded runs")
    found = [] if known.only_table else measure(parser, known, names, options)
    if known.record is not None:
        found = add(known.record, found)
        current = [one for one in found if is_current(one)]
        for one in found:
            if one not in current:
                print(f"{one['experiment']}, seed {one['seed']}: its settings have changed since; it is left out of the table")
        found = current
    # A table of everything that is recorded; of single experiments only where nothing is.
    text = table(found, GROUPS[kind] if known.record is not None else names)
    print(text)
    if known.table is not None:
        write_table(known.table, text, kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
