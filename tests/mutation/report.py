"""The page ``docs/mutation.md``: how many mutants of each room die, and every survivor with the reason why nothing notices it."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from tests.mutation.named import Named, read_named, read_outcomes
from tests.mutation.results import KILLED, SURVIVED, Results, in_random_order, read_results
from tests.mutation.rooms import ROOMS, ROOT, UNCHANGED, workshop

PAGE = ROOT / "docs" / "mutation.md"
REASONS = Path(__file__).with_name("reasons.yaml")
OPEN = "not looked at, or not noticed yet"


@dataclass(frozen=True)
class Reason:
    """Why survivors are no fault of the tests: those in functions like ``where`` whose change holds the expression ``change``."""

    where: str
    change: str
    reason: str

    def fits(self, function: str, change: str) -> bool:
        return fnmatch(function, self.where) and re.search(self.change, change) is not None


@dataclass(frozen=True)
class Survivor:
    function: str
    change: str
    reason: str | None


def read_reasons() -> list[Reason]:
    return [Reason(**entry) for entry in yaml.safe_load(REASONS.read_text())]


def write_report() -> str:
    """Write the page from the results of every room; its text without the survivors."""
    results = {room: read_results(workshop(room)) for room in ROOMS}
    reasons = read_reasons()
    survivors = {room: _survivors(room, found, reasons) for room, found in results.items()}
    head = _head(results, survivors)
    sections = (_section(room, found) for room, found in survivors.items() if found)
    PAGE.write_text("\n".join([head, _named_section(read_named(), read_outcomes()), *sections]))
    for reason in reasons:
        if not any(reason.fits(s.function, s.change) for found in survivors.values() for s in found):
            head += f"\nNo survivor fits this reason: {reason}"
    return head


def _survivors(room: str, results: Results, reasons: list[Reason]) -> list[Survivor]:
    from mutmut import configuration
    from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant

    found = []
    with contextlib.chdir(workshop(room)):
        configuration.reset_config()
        for name in sorted(name for name, code in results.items() if code in SURVIVED):
            change = as_change(get_diff_for_mutant(name, path=find_mutant(name).path))
            function = readable(name)
            reason = next((reason.reason for reason in reasons if reason.fits(function, change)), None)
            found.append(Survivor(function, change, reason))
    return found


def readable(name: str) -> str:
    """``room.file.Class.method`` of the name that mutmut gives to a mutant."""
    from mutmut.utils.format_utils import get_module_from_key, orig_function_and_class_names_from_key

    function, owner = orig_function_and_class_names_from_key(name)
    return ".".join(filter(None, [get_module_from_key(name).removeprefix("vos_lightning."), owner, function]))


def as_change(difference: str) -> str:
    """``was → becomes`` of a unified difference, each in one line."""
    lines = [line for line in difference.splitlines() if not line.startswith(("---", "+++"))]
    was, becomes = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return f"{was} → {becomes}"


FRESH = """
A fresh sample, drawn when the tests for earlier survivors stood: of 204 further mutants of propagation 193 died (94.6 %; interval
90.6 to 97.0 %), of 42 further ones of networks 41 (97.6 %; 87.7 to 99.6 %). Survivors among them have tests since, or reasons.
"""


def _head(results: dict[str, Results], survivors: dict[str, list[Survivor]]) -> str:
    text = """# Mutation testing

The library is changed in one place at a time: a sign, a number, an argument, a condition. The tests of the room should notice.
`make mutate` does this with [mutmut](https://github.com/boxed/mutmut), for as long as it is left running, and `make mutate
ARGS=--report` writes this page from the results. Recorded losses (`tests/golden/`) do not take part: what notices a mutant is a
unit test, an oracle or an invariant. `tests/mutation/rooms.py` says which tests belong to which room.

*Died* is the share of all tested mutants. Where some are not tested, *drawn* is the number of those that were drawn at random and
have all been tested, and the share of all mutants of the room that die lies in the interval with a probability of 95 % (Wilson's
score interval of what was drawn; it is a little too high, as tests have been written for survivors among them). *Explained*
survivors change nothing that can be seen here, each for the reason below; *open* ones do, or have not been looked at. *Stopped*
mutants did not end in time, and do not count as dead.

| room | mutants | tested | died | stopped | survived, explained | survived, open | died | drawn | 95 % interval |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""
    rows = {room: _row(found, survivors[room]) for room, found in results.items()}
    for room, row in rows.items():
        text += _line(room, row, *(("all", "") if row["tested"] == row["mutants"] else _sampled(room, results[room])))
    text += _line("**all**", sum(rows.values(), Counter()))
    text += FRESH
    text += "\nNot mutated: type annotations, docstrings, functions with decorators (but for methods of classes), and\n\n"
    return text + "".join(f"- `{pattern}`: {reason}\n" for pattern, reason in UNCHANGED.items())


def _row(results: Results, survivors: list[Survivor]) -> Counter[str]:
    codes = Counter(results.values())
    tested = len(results) - codes[None]
    died = sum(codes[code] for code in KILLED)
    opened = sum(survivor.reason is None for survivor in survivors)
    row = {"mutants": len(results), "tested": tested, "died": died, "stopped": tested - died - len(survivors)}
    return Counter(row | {"explained": len(survivors) - opened, "open": opened})


def _line(room: str, row: Counter[str], drawn: str = "", interval: str = "") -> str:
    share = f"{100 * row['died'] / row['tested']:.1f} %" if row["tested"] else ""
    columns = ("mutants", "tested", "died", "stopped", "explained", "open")
    return f"| {room} | {' | '.join(str(row[column]) for column in columns)} | {share} | {drawn} | {interval} |\n"


def _sampled(room: str, results: Results) -> tuple[str, str]:
    """Size of the largest sample of a room that is tested as a whole, and the interval of the share that dies."""
    codes = [results[name] for name in in_random_order(room, results, 0)]
    number = next(index for index, code in enumerate(codes) if code is None)
    if not number:
        return "0", ""
    low, high = wilson(sum(code in KILLED for code in codes[:number]), number)
    return str(number), f"{100 * low:.1f} to {100 * high:.1f} %"


def wilson(hits: int, number: int) -> tuple[float, float]:
    """Bounds of a share of which a sample is known, with a confidence of 95 % (Wilson, 1927)."""
    share, square = hits / number, 1.959964**2 / number
    middle, half = share + square / 2, math.sqrt(square * (share * (1 - share) + square / 4))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def _named_section(named: list[Named], outcomes: dict[str, str]) -> str:
    text = """## Faults written by hand

They are those of `tests/mutation/named.yaml`; `make mutate ARGS=--named` tests them.

| fault | seen |
| --- | --- |
"""
    return text + "".join(f"| {each.fault} | {outcomes.get(each.key, 'not tested')} |\n" for each in named)


def _section(room: str, survivors: list[Survivor]) -> str:
    parts = [f"## Survivors in {room}\n"]
    for reason in sorted({survivor.reason or "" for survivor in survivors}):
        chosen = [survivor for survivor in survivors if (survivor.reason or "") == reason]
        lines = "".join(f"- `{survivor.function}`: `` {survivor.change} ``\n" for survivor in chosen)
        parts.append(f"{reason or OPEN}:\n\n{lines}")
    return "\n".join(parts)
