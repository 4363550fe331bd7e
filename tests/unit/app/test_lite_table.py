"""The table of the small networks is made of the files of their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lite


def make_run(folder: Path, experiment: str) -> None:
    (folder / "scores").mkdir(parents=True)
    (folder / "logs" / "start_0").mkdir(parents=True)
    rows = [{"video": "cat", "J": 0.71, "F": 0.8}, {"video": "dog", "J": 0.5, "F": 0.625}]
    scores = {"rows": rows, "summary": {"J": 0.605, "F": 0.7125, "J&F": 0.65875}}
    (folder / "scores" / "test.json").write_text(json.dumps(scores))
    record = {"experiment": experiment, "seed": [3, 0], "steps": 600, "batch_size": 4}
    (folder / "record.json").write_text(json.dumps(record))
    speed = {"results": [{"median": 0.08, "parameters": 1_234_000}]}
    done = {"train_seconds": 301.4, "test_seconds": 9.0, "speed": speed}
    (folder / "lite.json").write_text(json.dumps(done))
    log = "step,train/clips_per_second,train/peak_memory_gib\n9,8.0,1.5\n19,16.0,2.5\n20,,\n"
    (folder / "logs" / "start_0" / "metrics.csv").write_text(log)


def test_a_row_is_what_the_files_say_and_nothing_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "vos", lambda *_: pytest.fail("nothing is left to do"))
    make_run(tmp_path / "runs" / "stcn_lite", "stcn_lite")
    page = tmp_path / "lite.md"
    begin, end = lite.MARK.format("", "begin"), lite.MARK.format("", "end")
    page.write_text(f"# Before\n{begin}\nold\n{end}\nafter\n")
    assert lite.main(["stcn_lite", "--runs", str(tmp_path / "runs"), "--table", str(page)]) == 0
    assert page.read_text() == (
        f"# Before\n{begin}\n"
        "| experiment | seed | cat | dog | J | F | J&F | steps | training | frames a second | parameters |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| `stcn_lite` | 3 | 71.0 / 80.0 | 50.0 / 62.5 | 60.5 | 71.2 | 65.9 | 600 | 301 s | 12.5 | 1.23 M |\n"
        f"{end}\nafter\n"
    )
    cells = lite.first_look("stcn_lite", tmp_path / "runs" / "stcn_lite")
    assert (cells["steps"], cells["steps a second"], cells["peak memory"]) == ("21", "3.00", "2.5 GiB")


@pytest.mark.parametrize(("begun", "expected"), [(False, 12.0), (True, None)])
def test_the_time_of_an_interrupted_training_is_not_known(
    begun: bool, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stcn_lite"
    if begun:
        folder.mkdir()

    def command(*_: str) -> float:
        folder.mkdir(exist_ok=True)
        (folder / "speed.json").write_text("{}")
        return 12.0

    monkeypatch.setattr(lite, "vos", command)
    lite.run("stcn_lite", tmp_path, (), None)
    assert json.loads((folder / "lite.json").read_text())["train_seconds"] == expected


def test_a_command_that_fails_ends_everything(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        lite.main(["nothing_lite", "--runs", str(tmp_path)])
    assert caught.value.code == 2
