"""The table of the small networks is made of the files of their runs, and those of the page of the recorded runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lite
from vos_lightning.app.experiments import load_experiment

DOCS = Path(__file__).parents[3] / "docs"
BEGIN, END = lite.MARK.format("", "begin"), lite.MARK.format("", "end")


def make_run(folder: Path, seed: int = 3, worse: float = 0.0, departures: Sequence[str] = (), fingerprint: str = "") -> None:
    (folder / "scores").mkdir(parents=True)
    (folder / "logs" / "start_0").mkdir(parents=True)
    experiment = load_experiment(folder.name)
    rows = [{"video": "cat", "J": 0.71 - worse, "F": 0.8}, {"video": "dog", "J": 0.5 - worse, "F": 0.625}]
    scores = {
        "rows": rows,
        "summary": {"J": 0.605 - worse, "F": 0.7125, "J&F": 0.65875 - worse / 2},
        "fingerprint": fingerprint or experiment.fingerprint,
        "evaluation": {"departures": []},
    }
    (folder / "scores" / "test.json").write_text(json.dumps(scores))
    start = {"hardware": "2 threads", "departures": [*departures], "commit": {"id": "12ab"}, "date": "2026-11-28"}
    record = {"experiment": folder.name, "seed": [seed, 0], "steps": 600, "batch_size": 4, "starts": [start]}
    record["fingerprint"] = experiment.fingerprint
    (folder / "record.json").write_text(json.dumps(record))
    speed = {"results": [{"median": 0.08, "parameters": 1_234_000}]}
    done = {"train_seconds": 301.4 + 100 * worse, "test_seconds": 9.0, "speed": speed}
    (folder / "lite.json").write_text(json.dumps(done))
    log = "step,train/clips_per_second,train/peak_memory_gib\n9,8.0,1.5\n19,16.0,2.5\n20,,\n"
    (folder / "logs" / "start_0" / "metrics.csv").write_text(log)


def page(folder: Path) -> Path:
    file = folder / "lite.md"
    file.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
    return file


def rows_of(text: str) -> list[dict[str, str]]:
    head, ruler, *rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    assert set(ruler) == {"---"}
    return [dict(zip(head, cells, strict=True)) for cells in rows]


def test_a_row_is_what_the_files_say_and_nothing_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "vos", lambda *_: pytest.fail("nothing is left to do"))
    make_run(tmp_path / "runs" / "seed_3" / "stcn_lite")
    file = page(tmp_path)
    assert lite.main(["stcn_lite", "--seeds", "3", "--runs", str(tmp_path / "runs"), "--table", str(file)]) == 0
    text = file.read_text()
    assert text.startswith(f"# Before\n{BEGIN}\n|")
    assert text.endswith(f"|\n{END}\nafter\n")
    assert rows_of(text) == [
        {
            "experiment": "`stcn_lite`",
            "seeds": "3",
            "cat": "71.0 / 80.0",
            "dog": "50.0 / 62.5",
            "J": "60.5",
            "F": "71.2",
            "J&F": "65.9",
            "steps": "600",
            "training": "301 s, 2 threads",
            "frames a second": "12.5",
            "parameters": "1.23 M",
            "steps a second": "4.0",
            "peak memory": "2.5 GiB",
        }
    ]


def test_a_row_of_several_seeds_has_their_means_and_each_ones_score(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed_{seed}" / "stcn_lite" for seed in range(3)]
    for seed, folder in enumerate(folders):
        make_run(folder, seed, worse=0.1 * seed)
    cells = lite.row([lite.entry("stcn_lite", folder) for folder in folders])
    assert (cells["seeds"], cells["cat"], cells["J"], cells["F"]) == ("0, 1, 2", "61.0 / 80.0", "50.5", "71.3")
    assert (cells["J&F"], cells["J&F of each seed"]) == ("60.9", "65.9, 60.9, 55.9")
    assert cells["training"] == "311 s, 2 threads"  # the median


def test_a_row_that_evaluates_other_weights_names_them(tmp_path: Path) -> None:
    name = next(name for name in lite.SWITCHES if load_experiment(name).checkpoint_of)
    trained = load_experiment(name).checkpoint_of
    assert trained is not None
    for folder in (tmp_path / "seed_4" / trained, tmp_path / "seed_4" / name):
        make_run(folder, seed=4)
    (tmp_path / "seed_4" / name / "record.json").unlink()
    found = lite.entry(name, tmp_path / "seed_4" / name)
    cells = lite.row([found])
    assert (cells["seeds"], cells["training"]) == ("4", f"that of `{trained}`")
    assert lite.is_current(found)
    assert not lite.is_current(found | {"trained": "0" * 16})


def test_runs_are_recorded_in_place_of_earlier_ones_and_other_machines_runs_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, file = tmp_path / "runs.jsonl", page(tmp_path)
    names = ["--record", str(record), "--table", str(file)]
    for machine, seed, worse in (("a", 0, 0.0), ("b", 1, 0.1), ("c", 0, 0.2)):
        make_run(tmp_path / machine / f"seed_{seed}" / "stcn_lite", seed, worse)
        assert lite.main(["stcn_lite", "--seeds", str(seed), "--runs", str(tmp_path / machine), *names]) == 0
    assert [json.loads(line)["seed"] for line in record.read_text().splitlines()] == [0, 1]
    (cells,) = rows_of(file.read_text())
    assert (cells["seeds"], cells["J&F of each seed"]) == ("0, 1", "55.9, 60.9")
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed", [{"fingerprint": "0" * 16}, {"departures": ["trainer.max_steps"]}], ids=["settings", "options"]
)
def test_a_run_with_other_settings_is_recorded_but_left_out_of_the_table(
    changed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, file = tmp_path / "runs.jsonl", page(tmp_path)
    make_run(tmp_path / "seed_0" / "stcn_lite", 0)
    make_run(tmp_path / "seed_1" / "stcn_lite", 1, worse=0.2, **changed)
    options = ["--runs", str(tmp_path), "--record", str(record), "--table", str(file)]
    assert lite.main(["stcn_lite", "--seeds", "0", "1", *options]) == 0
    assert "stcn_lite, seed 1: its settings have changed since; it is left out of the table" in capsys.readouterr().out
    assert len(record.read_text().splitlines()) == 2
    assert [cells["seeds"] for cells in rows_of(file.read_text())] == ["0"]


@pytest.mark.parametrize("kind", lite.GROUPS)
def test_the_table_of_the_page_is_that_of_the_recorded_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "vos", lambda *_: pytest.fail("nothing is trained"))
    copy = tmp_path / "lite.md"
    copy.write_text((DOCS / "lite.md").read_text())
    options = ["--only-table", "--record", str(DOCS / "lite_runs.jsonl"), "--table", str(copy)]
    assert lite.main([*options, *kind.split()]) == 0
    assert copy.read_text() == (DOCS / "lite.md").read_text()


def test_a_page_without_the_marks_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("# Nothing here\n")
    with pytest.raises(SystemExit, match="between which the table goes"):
        lite.write_table(file, "| a |\n")
    assert file.read_text() == "# Nothing here\n"


def test_a_table_of_nothing_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        lite.main(["--only-table", "--record", str(tmp_path / "missing.jsonl")])
    assert caught.value.code == 2


@pytest.mark.parametrize(("begun", "expected"), [(False, 12.0), (True, None)])
def test_the_time_of_an_interrupted_training_is_not_known(
    begun: bool, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "seed_1" / "stcn_lite"
    if begun:
        folder.mkdir(parents=True)
    commands: list[tuple[str, ...]] = []

    def command(*arguments: str) -> float:
        commands.append(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        return 12.0

    monkeypatch.setattr(lite, "vos", command)
    lite.run("stcn_lite", 1, tmp_path, (), None)
    assert json.loads((folder / "lite.json").read_text())["train_seconds"] == expected
    assert [words[0] for words in commands] == ["train", "test"]
    assert "--seed_everything=1" in commands[0]


def test_a_command_that_fails_ends_everything(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        lite.main(["nothing_lite", "--runs", str(tmp_path)])
    assert caught.value.code == 2
