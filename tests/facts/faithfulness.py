"""Writes ``docs/faithfulness.md``: what each paper says, what the experiments do, and the tests that notice if they do not.

``python -m tests.facts.faithfulness`` writes it anew from the files of facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.facts.facts import PAPERS, ROOT, Facts, read_facts

PAGE = ROOT / "docs" / "faithfulness.md"
INTRODUCTION = """\
# What the papers say, and what the experiments do

`python -m tests.facts.faithfulness` writes this page from `tests/facts/<paper>.yaml`, which was transcribed from the papers and
not from the experiments. `tests/facts/test_facts.py` compares every option and every published number with the experiments, and
fails by name where they differ, where an experiment has no facts, and where one sets an option of which no fact speaks. The last
column names further tests, which notice if the code does something else under these options. Of two lines about one option the
lower one holds, for the experiments that it names.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(line for paper in PAPERS for line in _lines(read_facts(paper)))])


def _lines(facts: Facts) -> Iterator[str]:
    yield from (f"## {facts.name}: {facts.paper}", "")
    yield from ("| says | source | experiments | they set | guarded by |", "| --- | --- | --- | --- | --- |")
    for one in facts.statements:
        options = "<br>".join(f"`{option}: {_value(value)}`" for option, value in one.values.items())
        experiments = "all" if one.of == ("*",) else ", ".join(f"`{pattern}`" for pattern in one.of)
        guard = f"`{one.guard.rpartition('/')[2]}`" if one.guard else ""
        yield f"| {one.says} | {one.source} | {experiments} | {options} | {guard} |"
    yield from ("", "| table | data set | row | published | experiment |", "| --- | --- | --- | --- | --- |")
    for name, run in facts.experiments.items():
        published = run.get("published")
        if published:
            scores = ", ".join(f"{metric} {value}" for metric, value in published["metrics"].items())
            speed = f", {published['fps']} fps" if "fps" in published else ""
            stages = ", ".join(f"`{stage}`" for stage in run["stages"])
            how = f", stages {stages}" if stages else f", checkpoint of `{run['checkpoint_of']}`" if run["checkpoint_of"] else ""
            yield f"| {published['table']} | {published['dataset']} | {published['row']} | {scores}{speed} | `{name}`{how} |"
    yield ""


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
