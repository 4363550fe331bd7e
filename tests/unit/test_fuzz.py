"""Broken inputs end in one line: fixed cases of ``benchmarks.fuzz``, and the oracle that judges them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.fuzz.__main__ import run_case
from benchmarks.fuzz.cases import COMMANDS, Case, choose_cases, draw_case
from benchmarks.fuzz.corpus import make_corpus
from benchmarks.fuzz.mutations import ARGUMENTS, MUTATIONS
from benchmarks.fuzz.oracle import Command, judge

ROOT = Path(__file__).resolve().parents[2]
NUM_CASES, NUM_GROUPS = 300, 10
UNFINISHED = {"train p_other", "train p_fine", "submit --server youtube-vos18", "precompute-proposals", "import-checkpoint"}
"""Commands that cannot succeed on a small corpus: an experiment that is not trained, a full validation set, real weights."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("fuzz") / "corpus"
    return folder, make_corpus(folder)


@pytest.fixture(scope="module")
def cases(corpus: tuple[Path, dict[str, list[str]]]) -> list[Case]:
    return choose_cases(0, NUM_CASES, corpus[1])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


# Fixed cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", range(NUM_GROUPS))
def test_fixed_cases_end_in_one_line(
    group: int, cases: list[Case], corpus: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    failed = []
    for case in cases[group::NUM_GROUPS]:
        outcome = run_case(case, corpus[0], tmp_path)
        if outcome.fault:
            failed.append(f"--only {case.number}: vos {' '.join(case.argv)[:150]}: {outcome.fault} {outcome.place}")
    assert not failed, "\n".join(failed)


def test_fixed_cases_cover_every_command_and_mutation(cases: list[Case]) -> None:
    assert len(cases) == NUM_CASES
    wanted = {f"{kind} {line.split()[0]}" for kind, (lines, _) in COMMANDS.items() for line in lines}
    wanted |= {*MUTATIONS, *(f"arguments-{how}" for how in ARGUMENTS), "option"}
    assert wanted <= set().union(*(case.covers for case in cases))


def test_who_imports_it_keeps_the_number_of_threads() -> None:
    """Processes that later tests start inherit it, and other threads give other last digits."""
    code = "import os, benchmarks.fuzz.__main__; print(os.environ['OMP_NUM_THREADS'])"
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"


def test_a_number_decides_a_case(corpus: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    folder, files = corpus
    case = next(case for case in (draw_case(0, number, files) for number in range(100)) if len(case.changes) > 1)
    assert case == draw_case(0, case.number, files)
    assert case.argv + case.changes != draw_case(1, case.number, files).argv + draw_case(1, case.number, files).changes
    contents = []
    for name in ("one", "two"):
        case.build(folder, tmp_path / name / "case")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", [kind for kind in COMMANDS if not kind.endswith(("-run", "-built", "trainer"))])
def test_commands_succeed_on_the_corpus(kind: str, corpus: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    """Else nothing but the first check of a command would be tried."""
    _succeed(kind, corpus[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in COMMANDS if kind.endswith(("-run", "-built", "trainer"))])
def test_runs_succeed_on_the_corpus(kind: str, corpus: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    _succeed(kind, corpus[0], tmp_path)


def _succeed(kind: str, corpus: Path, place: Path) -> None:
    for number, line in enumerate(dict.fromkeys(COMMANDS[kind][0])):
        if not line.startswith(tuple(UNFINISHED)):
            outcome = run_case(Case(0, number, kind, line.split()), corpus, place)
            assert (outcome.code, outcome.fault) == (0, None), f"{line}\n{outcome.errors}"


# The oracle -----------------------------------------------------------------------------------------------------------


def succeed(argv: Sequence[str]) -> int:
    Path(argv[2]).mkdir()
    Path(argv[2], "new.txt").write_text("new")
    return 0


def explain(argv: Sequence[str]) -> int:
    sys.stderr.write("error: input.txt is empty\n")
    return 2


def refuse_arguments(argv: Sequence[str]) -> int:
    sys.stderr.write("usage: vos show EXP\nvos show: error: the following arguments are required: EXP\n")
    raise SystemExit(2)


def raise_an_error(argv: Sequence[str]) -> int:
    raise KeyError("videos")


def hang(argv: Sequence[str]) -> int:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def write_outside(argv: Sequence[str]) -> int:
    Path("..", "outside.txt").write_text("x")
    return 0


def change_an_input(argv: Sequence[str]) -> int:
    Path("input.txt").write_text("changed")
    return 0


def change_an_input_that_is_the_output(argv: Sequence[str]) -> int:
    Path(argv[2]).mkdir()
    Path("input.txt").unlink()
    return 0


def print_a_traceback(argv: Sequence[str]) -> int:
    sys.stderr.write("Traceback (most recent call last):\n")
    return 0


def fail_silently(argv: Sequence[str]) -> int:
    return 2


def fail_twice(argv: Sequence[str]) -> int:
    sys.stderr.write("error: input.txt is empty\nerror: input.txt is empty\n")
    return 2


def fail_strangely(argv: Sequence[str]) -> int:
    return 3


def report_a_fault(argv: Sequence[str]) -> int:
    sys.stderr.write("error: this is a fault of vos_lightning\n")
    return 70


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (succeed, None),
        (explain, None),
        (refuse_arguments, None),
        (raise_an_error, "raises KeyError"),
        (hang, "hangs for more than 0.2 s"),
        (write_outside, "creates a file outside of its output: inner/outside.txt"),
        (change_an_input, "changes a file outside of its output: inner/case/input.txt"),
        (change_an_input_that_is_the_output, "removes a file outside of its output: inner/case/input.txt"),
        (print_a_traceback, "prints a traceback"),
        (fail_silently, "ends with the exit code 2 and no line that begins with 'error: '"),
        (fail_twice, "prints 2 lines that begin with 'error: '"),
        (fail_strangely, "ends with the exit code 3"),
        (report_a_fault, "reports a fault of its own"),
    ],
)
def test_the_oracle_sees(command: Command, fault: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "case"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text("input")
    outcome = judge(command, ["show", "--output", "out"], tmp_path, folder, limit=0.2 if command is hang else 20)
    assert outcome.fault == fault
    assert Path.cwd() != folder


def test_the_oracle_names_the_place_of_an_error(tmp_path: Path) -> None:
    outcome = judge(raise_an_error, ["show"], tmp_path, tmp_path)
    assert outcome.place.startswith("KeyError at ")
    assert "videos" in outcome.place
