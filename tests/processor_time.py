"""Processor time of every test, with the processes that it starts: unlike time by the clock, the same whatever else runs.

A pytest plugin, registered by ``tests/conftest.py``. The closing summary names the most expensive tests and the sum over all
workers, in which imports and the collection of tests are counted too.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHOWN = 10
_workers: list[float] = []
_mark = 0.0


def seconds() -> float:
    """Of this process, of all its children that have ended, and, where the system tells, of those that run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + _running_seconds()


def _running_seconds() -> float:
    ticks = 0
    for listing in Path("/proc/self/task").glob("*/children"):
        children: list[str] = []
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            children = listing.read_text().split()
        for child in children:
            with contextlib.suppress(OSError):  # the child has ended meanwhile
                # Fields 14 to 17 of the manual page proc(5); the second field, a name in brackets, may hold spaces.
                ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def pytest_runtest_logstart() -> None:
    global _mark
    _mark = seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Setup, call and teardown have a report each; attributes of reports travel from the workers of pytest-xdist."""
    global _mark
    report = yield
    now = seconds()
    report.processor_seconds, _mark = now - _mark, now
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands its sum to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["processor_seconds"] = seconds()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _workers.append(getattr(node, "workeroutput", {}).get("processor_seconds", 0.0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    spent: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "processor_seconds"):
                spent[report.nodeid] = spent.get(report.nodeid, 0.0) + report.processor_seconds
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = sum(_workers) + own.ru_utime + own.ru_stime if _workers else seconds()
    terminalreporter.section(f"processor time: {total:.0f} s, the most expensive tests")
    for nodeid, amount in sorted(spent.items(), key=lambda item: -item[1])[:SHOWN]:
        terminalreporter.write_line(f"{amount:7.1f} s  {nodeid}")
