"""Mutation testing: change the library in one place at a time, and see whether a test notices.

``python -m tests.mutation [ROOM ...]`` goes on where it was stopped, at any time. Results lie in ``runs/mutation/``; mutmut tests
those mutants again whose function has changed. ``--sample 300`` tests that many mutants of the rooms, drawn in proportion to
their number: the same ones again for the same seed, and those of a smaller sample first. ``--again`` tests the survivors once
more, after tests have been written. ``--report`` tests nothing and writes ``docs/mutation.md``. ``--named`` tests the
mutants that people have written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.named import run_named
from tests.mutation.report import write_report
from tests.mutation.results import STATISTICS, SURVIVED, knows_all_functions, mend, read_results, sample
from tests.mutation.rooms import ROOMS, workshop


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; all without one")
    parser.add_argument("--sample", type=int, help="number of mutants; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--again", action="store_true", help="test the survivors again")
    parser.add_argument("--report", action="store_true", help="write docs/mutation.md and test nothing")
    parser.add_argument("--named", action="store_true", help="test the mutants of named.yaml and no others")
    known = parser.parse_args(argv)
    rooms = known.rooms or list(ROOMS)
    if unknown := set(rooms) - set(ROOMS):
        parser.error(f"no room {', '.join(sorted(unknown))}; rooms are {', '.join(ROOMS)}")
    if known.report:
        print(write_report())
        return 0
    if known.named:
        run_named(known.again)
        return 0
    with contextlib.ExitStack() as stack:
        for room in rooms:
            if not _locked(stack, workshop(room)):
                parser.error(f"{room} is being tested already, by another process")
            mend(workshop(room))
        return _run(rooms, known)


def _locked(stack: contextlib.ExitStack, folder: Path) -> bool:
    lock = stack.enter_context((folder / "lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(rooms: list[str], known: argparse.Namespace) -> int:
    again = known.again
    for _ in range(2):  # when the tests of a room are others than last time, mutmut forgets results; the second turn fills in
        results = {room: read_results(workshop(room)) for room in rooms}
        for room, names in sample(results, known.sample, known.seed).items():
            wanted = [name for name in names if results[room][name] is None or (again and results[room][name] in SURVIVED)]
            print(f"{room}: {len(names)} mutants, {len(wanted)} to test", flush=True)
            if wanted and (code := _test(workshop(room), wanted, known.jobs, again)):
                return code
        again = False
    return 0


def _test(folder: Path, names: list[str], jobs: int, again: bool) -> int:
    if again or not knows_all_functions(folder):  # which tests reach a function may have changed
        (folder / STATISTICS).unlink(missing_ok=True)
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    variables.pop("PYTHONPATH", None)  # the library is the one below mutants/
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(jobs), *names]
    with contextlib.suppress(KeyboardInterrupt):
        return subprocess.run(command, cwd=folder, env=variables).returncode
    return 130


if __name__ == "__main__":
    sys.exit(main())
