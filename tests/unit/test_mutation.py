"""The tool of ``make mutate``: which mutants are drawn, and what the page says about them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.mutation.named import read_named
from tests.mutation.report import Reason, Survivor, _head, as_change, read_reasons, readable, wilson
from tests.mutation.results import STATISTICS, Results, in_random_order, knows_all_functions, mend, read_results, sample
from tests.mutation.rooms import ROOMS, ROOT, workshop


def test_a_larger_sample_holds_the_smaller_one() -> None:
    results: dict[str, Results] = {room: {f"{room} {i}": None for i in range(size)} for room, size in (("a", 30), ("b", 10))}
    small, large, other = (sample(results, number, seed) for number, seed in ((8, 0), (20, 0), (8, 1)))
    assert {room: len(names) for room, names in small.items()} == {"a": 6, "b": 2}
    assert all(large[room][: len(names)] == names for room, names in small.items())
    assert small != other
    assert sample(results, None, 0) == sample(results, 40, 1) == {room: sorted(names) for room, names in results.items()}


def test_files_that_a_kill_left_half_written_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mutation.rooms.WORKSHOPS", tmp_path)
    folder = workshop("losses")
    whole, empty, cut = (
        folder / "mutants" / "vos_lightning" / "losses" / f"{name}.py" for name in ("auxiliary", "matching", "segmentation")
    )
    whole.parent.mkdir(parents=True)
    for path, results in ((whole, '{"exit_code_by_key": {"a": 1}}'), (empty, None), (cut, '{"exit_code')):
        path.write_text("")
        if results is not None:
            path.with_name(f"{path.name}.meta").write_text(results)
    mend(folder)
    assert [path.exists() for path in (whole, empty, cut)] == [True, False, False]
    found = read_results(folder)
    assert found["a"] == 1
    assert "vos_lightning.losses.segmentation.x__mean_of__mutmut_1" in found
    assert not any("auxiliary" in name for name in found)


def test_statistics_from_before_a_change_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mutmut adds new tests to them, but never the tests of a new function, whose mutants would all seem to survive."""
    monkeypatch.setattr("tests.mutation.rooms.WORKSHOPS", tmp_path)
    folder = workshop("mask_ops")
    assert not knows_all_functions(folder)
    (folder / STATISTICS).parent.mkdir()
    (folder / STATISTICS).touch()
    assert knows_all_functions(folder)
    changed = (ROOT / "vos_lightning" / "mask_ops.py").stat().st_mtime
    os.utime(folder / STATISTICS, (changed - 1, changed - 1))
    assert not knows_all_functions(folder)


def test_a_change_is_one_line() -> None:
    difference = "--- a.py\n+++ a.py\n@@ -1,3 +1,3 @@\n def f(x):\n-    return (x\n-            + 1)\n+    return x - 1\n"
    assert as_change(difference) == "return (x + 1) → return x - 1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vos_lightning.losses.matching.x__mean__mutmut_12", "losses.matching._mean"),
        ("vos_lightning.networks.stm.xǁSTMǁ__init____mutmut_3", "networks.stm.STM.__init__"),
    ],
)
def test_names_of_mutants_are_readable(name: str, expected: str) -> None:
    assert readable(name) == expected


def test_the_page_counts_what_was_tested() -> None:
    names = in_random_order("a", dict.fromkeys("123456"), 0)
    results: dict[str, Results] = {"a": dict(zip(names, (1, 3, 0, 33, -24, None), strict=True))}
    survivors = [Survivor("f", "x → y", "nothing is computed with it"), Survivor("g", "x → y", None)]
    assert _rows(results, survivors) == [
        "| a | 6 | 5 | 2 | 1 | 1 | 1 | 40.0 % | 5 | 11.8 to 76.9 % |",
        "| **all** | 6 | 5 | 2 | 1 | 1 | 1 | 40.0 % |  |  |",
    ]
    # What is tested behind a gap was not drawn.
    results["a"] |= {names[2]: None, names[5]: 1}
    assert _rows(results, survivors[:1])[0] == "| a | 6 | 5 | 3 | 1 | 1 | 0 | 60.0 % | 2 | 34.2 to 100.0 % |"
    results["a"] |= {names[0]: None}
    assert _rows(results, survivors[:1])[0].endswith("| 0 |  |")
    results["a"] = dict.fromkeys("123", 1)
    assert _rows(results, [])[0] == "| a | 3 | 3 | 3 | 0 | 0 | 0 | 100.0 % | all |  |"


def _rows(results: dict[str, Results], survivors: list[Survivor]) -> list[str]:
    return [line for line in _head(results, {"a": survivors}).splitlines() if line.startswith(("| a |", "| **all**"))]


@pytest.mark.parametrize(("hits", "number"), [(0, 10), (7, 10), (90, 100), (250, 250)])
def test_the_interval_of_a_share_holds_what_fits_the_sample(hits: int, number: int) -> None:
    """At the bounds, what was found is 1.96 standard deviations away from what is expected."""
    bounds = wilson(hits, number)
    assert bounds[0] - 1e-12 <= hits / number <= bounds[1] + 1e-12
    for share in bounds:
        assert (hits / number - share) ** 2 == pytest.approx(1.959964**2 * share * (1 - share) / number, abs=1e-12)


def test_reasons_are_for_functions_and_changes() -> None:
    reason = Reason("losses.*", r"clamp_min\(1e-6\)", "never as small")
    assert reason.fits("losses.matching._mean", "x.clamp_min(1e-6) → x")
    assert not reason.fits("losses.matching._mean", "x.clamp_min(1) → x")
    assert not reason.fits("matching.points.f", "x.clamp_min(1e-6) → x")
    assert all(len(reason.reason) > 20 for reason in read_reasons())


def test_every_room_has_its_mutants_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mutation.rooms.WORKSHOPS", tmp_path)
    for room in ROOMS.values():
        for path, _, function in (test.partition("::") for test in (*room.tests, *room.without)):
            assert (ROOT / path).exists()
            assert not function or f"def {function}(" in (ROOT / path).read_text()
        assert any(ROOT.glob(room.sources))
    found = read_results(workshop("losses"))
    assert set(found.values()) == {None}
    functions = Counter(map(readable, found))
    assert functions["losses.segmentation.mask_iou_loss"] > 20
    assert {name.split(".")[0] for name in functions} == {"losses"}


def test_named_faults_are_in_their_files() -> None:
    named = read_named()
    assert len({each.key for each in named}) == len(named) > 10
    for each in named:
        assert (ROOT / "vos_lightning" / each.file).read_text().count(each.was) == 1, each.fault
        assert each.was != each.becomes
        assert all((ROOT / "tests" / "unit" / test).exists() for test in each.tests)
