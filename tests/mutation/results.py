"""The mutants of a room and what became of them, as mutmut keeps them; a sample of them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

KILLED = {1, 3}
"""Exit codes of pytest: a test failed, or an error stopped it."""
SURVIVED = {0, 5, 33}
"""All tests passed, or none reaches the function."""

STATISTICS = Path("mutants", "mutmut-stats.json")
"""Which tests reach which function, in a workshop."""

Results = dict[str, int | None]
"""Exit code of the tests by mutant; None for those that have not been tested."""


def read_results(folder: Path) -> Results:
    """All mutants of a workshop: of files that mutmut has not seen, or not as they are now, with what it will call them."""
    found: Results = {}
    with contextlib.chdir(folder):
        for path in _sources():
            written, kept = Path("mutants", path), Path("mutants", f"{path}.meta")
            if kept.exists() and written.stat().st_mtime > path.stat().st_mtime:
                found |= json.loads(kept.read_text())["exit_code_by_key"]
            else:
                found |= dict.fromkeys(_generated(path))
    return found


def mend(folder: Path) -> None:
    """Forget the files that a process was writing when it was killed; nothing else may be working in the workshop."""
    with contextlib.chdir(folder):
        for path in _sources():
            written, kept = Path("mutants", path), Path("mutants", f"{path}.meta")
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                json.loads(kept.read_text())
                continue
            written.unlink(missing_ok=True)
            kept.unlink(missing_ok=True)


def knows_all_functions(folder: Path) -> bool:
    """Whether it was found out after the last change of the room which tests reach a function; mutmut believes old statistics."""
    with contextlib.chdir(folder):
        return STATISTICS.exists() and all(path.stat().st_mtime < STATISTICS.stat().st_mtime for path in _sources())


def _sources() -> Iterator[Path]:
    # mutmut reads its configuration once a process; here is one workshop after the other.
    from mutmut import configuration
    from mutmut.utils.file_utils import walk_mutatable_files

    configuration.reset_config()
    yield from sorted(walk_mutatable_files())


def _generated(path: Path) -> list[str]:
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    return [get_mutant_name(path, name) for name in mutate_file_contents(str(path), path.read_text()).mutant_names]


def sample(results: dict[str, Results], number: int | None, seed: int) -> dict[str, list[str]]:
    """Mutants of every room, in proportion to their number; a larger sample holds the smaller ones."""
    total = sum(map(len, results.values()))
    chosen = {}
    for room, mutants in results.items():
        names = sorted(mutants)
        if number is not None and number < total:
            names = in_random_order(room, mutants, seed)[: -(-number * len(names) // total)]
        chosen[room] = names
    return chosen


def in_random_order(room: str, mutants: Results, seed: int) -> list[str]:
    """The mutants of a room in the order in which a sample takes them."""
    names = sorted(mutants)
    random.Random(f"{seed} {room}").shuffle(names)
    return names
