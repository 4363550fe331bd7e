"""Run many cases and report what went wrong: ``python -m benchmarks.fuzz --seed 0 --cases 10000``."""

from __future__ import annotations

import argparse
import logging
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

if __name__ == "__main__":  # before libraries read them; whoever imports this module keeps its own
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from benchmarks.fuzz.cases import Case, draw_case
from benchmarks.fuzz.corpus import make_corpus, put
from benchmarks.fuzz.oracle import LIMIT, Outcome, judge
from vos_lightning.app import cli

MEMORY = 24 * 2**30
"""Most bytes of address space, so that a number that is too large fails here as it does on any machine."""
FOREIGN = re.compile(r"error: (.*) \(VOS_TRACEBACK=1 shows where\)")
"""A line about an error that no command expects."""


def main() -> int:
    """Run the cases; returns 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, metavar="N", help="run this case alone, and print what it prints")
    parser.add_argument("--kind", help="run cases of this kind alone")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a command counts as hanging")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as Markdown")
    parser.add_argument("--failures", type=Path, metavar="DIR", help="keep the inputs of the first case of every failure here")
    known = parser.parse_args()
    logging.disable(logging.WARNING)  # what Lightning logs goes to the terminal, and not to where a case writes
    sys.dont_write_bytecode = True
    # A process that a command starts is in the folder of its case, from which it would not find this repository.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place, "corpus")
        files = make_corpus(corpus)
        numbers = range(known.start, known.start + known.cases) if known.only is None else [known.only]
        cases = [case for case in (draw_case(known.seed, number, files) for number in numbers) if known.kind in (None, case.kind)]
        started = time.monotonic()
        results: list[tuple[Case, Outcome, float]] = []
        for index, case in enumerate(cases):
            before = time.monotonic()
            outcome = run_case(case, corpus, Path(place), known.limit, known.failures)
            results.append((case, outcome, time.monotonic() - before))
            if outcome.fault:
                print(f"--only {case.number}: {outcome.fault}; {outcome.place}", file=sys.stderr)
            if sys.stderr.isatty() or index % 500 == 499:
                print(f"{index + 1} of {len(cases)}, {sum(o.fault is not None for _, o, _ in results)} failures", file=sys.stderr)
        text = report(results, time.monotonic() - started, known.seed)
    if known.only is not None:
        case, outcome, _ = results[0]
        print(f"$ vos {' '.join(case.argv)}\n# {case.changes}\n{outcome.output}{outcome.errors}exit code {outcome.code}")
    print(text)
    if known.report is not None:
        put(known.report, text)
    return int(any(outcome.fault for _, outcome, _ in results))


def run_case(case: Case, corpus: Path, place: Path, limit: float = LIMIT, keep: Path | None = None) -> Outcome:
    """Build a case, run its command and judge it; a fault that the command hides is looked for in a second run."""
    root = place / f"{case.number}"
    folder = root / "inner" / "case"
    try:
        case.build(corpus, folder)
        outcome = judge(cli.main, case.argv, root, folder, limit)
        if outcome.fault and not outcome.place:
            shutil.rmtree(folder)
            case.build(corpus, folder)
            os.environ["VOS_TRACEBACK"] = "1"
            try:
                again = judge(cli.main, case.argv, root, folder, limit)
            finally:
                del os.environ["VOS_TRACEBACK"]
            outcome = Outcome(outcome.code, outcome.output, outcome.errors, outcome.fault, again.place)
        if outcome.fault and keep is not None:
            shutil.rmtree(folder)
            case.build(corpus, keep / f"{case.seed}-{case.number}" / "case")
            put(
                keep / f"{case.seed}-{case.number}" / "command.txt",
                f"vos {' '.join(case.argv)}\n{outcome.fault}\n{outcome.place}\n",
            )
        return outcome
    finally:
        shutil.rmtree(root, ignore_errors=True)


def report(results: list[tuple[Case, Outcome, float]], seconds: float, seed: int) -> str:
    """What was run and what went wrong, as Markdown."""
    failures: dict[str, list[Case]] = defaultdict(list)
    for case, outcome, _ in results:
        if outcome.fault:
            failures[f"{outcome.fault}; {outcome.place}"].append(case)
    codes = Counter(outcome.code for _, outcome, _ in results)
    kinds: dict[str, list[tuple[Outcome, float]]] = defaultdict(list)
    for case, outcome, taken in results:
        kinds[f"{case.kind} {case.argv[0]}"].append((outcome, taken))
    faults = Counter(outcome.fault.split()[0] for _, outcome, _ in results if outcome.fault)
    mutations = Counter(name for case, _, _ in results for name, _ in case.changes)
    ends = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    lines = [
        f"{len(results)} cases of seed {seed} in {seconds:.0f} s; exit codes: {ends}.",
        f"Tracebacks and faults: {faults['raises'] + faults['prints'] + faults['reports']}; hangs: {faults['hangs']}; files "
        f"outside the output: {faults['changes'] + faults['creates'] + faults['removes']}; other failures: {faults['ends']}.",
        "",
        "| kind and command | cases | errors of the user | failures | mean ms |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {kind} | {len(each)} | {sum(o.code == 2 for o, _ in each)} | {sum(o.fault is not None for o, _ in each)} "
            f"| {1000 * sum(t for _, t in each) / len(each):.0f} |"
            for kind, each in sorted(kinds.items())
        ),
        "",
        f"Mutations: {', '.join(f'{name} {count}' for name, count in sorted(mutations.items()))}.",
        "",
    ]
    foreign = Counter(found[1] for _, outcome, _ in results if (found := FOREIGN.search(outcome.errors)))
    if foreign:
        lines += ["Messages that the library did not write itself, with the number of cases:", ""]
        lines += [f"- {count} x {message}" for message, count in foreign.most_common()] + [""]
    for failure, cases in sorted(failures.items(), key=lambda item: -len(item[1])):
        lines.append(f"- {len(cases)} x {failure} (--only {cases[0].number}: vos {' '.join(cases[0].argv)[:100]})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
